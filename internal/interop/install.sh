#!/bin/sh
# Installs the programs that the interop tests meet, on Debian, as root. A second run is quick.
set -u

kaminari=0.6.1
shadowsocks=1.25.0
peers=${RAIMON_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/raimon-interop}

missing=

# program:package; the tests look for the programs.
packages='
ss-local:shadowsocks-libev
ss-v2ray-plugin:shadowsocks-v2ray-plugin
nginx:nginx-light
haproxy:haproxy
stunnel4:stunnel4
openssl:openssl
curl:curl
sshd:openssh-server
ss:iproute2
nc:netcat-openbsd
chromium:chromium
named:bind9
dig:bind9-dnsutils
knotd:knot
'
PATH=$PATH:/usr/sbin:/sbin

wanted() {
    for p in $packages; do
        command -v "${p%%:*}" >/dev/null || echo "${p#*:}"
    done
}

install_debian() {
    [ -n "$(wanted)" ] || return 0
    export DEBIAN_FRONTEND=noninteractive
    # Packages start their daemons; these would sit on ports 22 and 80. 101 forbids it.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        trap 'rm -f $policy' EXIT
    fi
    # shellcheck disable=SC2046 # one word a package
    apt-get install -y -q --no-install-recommends $(wanted) ||
        { apt-get update -q && apt-get install -y -q --no-install-recommends $(wanted); } ||
        for p in $(wanted); do # whatever can be had
            apt-get install -y -q --no-install-recommends "$p"
        done
    missing="$missing $(wanted | tr '\n' ' ')"
}

# install_crate CRATE VERSION PROGRAM [cargo options]
install_crate() {
    crate=$1 version=$2 program=$3 root=$peers/${1%-cmd}-$2
    shift 3
    [ -x "$root/bin/$program" ] && return 0
    command -v cargo >/dev/null && command -v cc >/dev/null &&
        cargo install --locked --root "$root" --version "$version" "$@" "$crate" && return 0
    missing="$missing $crate-$version"
}

install_debian
# Its WebSocket library uses specialization, a nightly feature.
export RUSTC_BOOTSTRAP=1
install_crate kaminari-cmd $kaminari kaminaris --no-default-features --features tls,tls-ring
unset RUSTC_BOOTSTRAP
install_crate shadowsocks-rust $shadowsocks ssserver --no-default-features \
    --features local,server,logging,aead-cipher,stream-cipher

missing=$(echo "$missing" | xargs)
if [ -n "$missing" ]; then
    echo "install.sh: missing: $missing" >&2
    exit 1
fi
echo "install.sh: everything is there, in PATH and $peers"
