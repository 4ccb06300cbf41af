#!/bin/sh
# Installs the programs that the interop tests meet, on Debian, as root. A second run is quick.
set -u
. "$(dirname "$0")/installers.sh"

# program:package; the tests look for the programs.
install_debian \
    ss-local:shadowsocks-libev \
    ss-v2ray-plugin:shadowsocks-v2ray-plugin \
    nginx:nginx-light \
    haproxy:haproxy \
    stunnel4:stunnel4 \
    openssl:openssl \
    curl:curl \
    sshd:openssh-server \
    ss:iproute2 \
    nft:nftables \
    conntrack:conntrack \
    nc:netcat-openbsd \
    chromium:chromium \
    certutil:libnss3-tools \
    testssl:testssl.sh \
    sslscan:sslscan \
    named:bind9 \
    dig:bind9-dnsutils \
    knotd:knot \
    /usr/lib/squid/security_file_certgen:squid-openssl \
    tinyproxy:tinyproxy-bin \
    microsocks:microsocks \
    git:git \
    rsync:rsync \
    psql:postgresql-client \
    '/usr/lib/postgresql/*/bin/postgres:postgresql' \
    mariadbd:mariadb-server-core \
    mariadb:mariadb-client-core

# The one of internal/bench will do; this one is built faster.
[ -x "$peers/kaminari-0.6.1-awslc/bin/kaminaris" ] ||
    install_kaminari '' --no-default-features --features tls,tls-ring
shadowsocks=1.25.0
install_crate shadowsocks-rust-$shadowsocks shadowsocks-rust $shadowsocks ssserver --no-default-features \
    --features local,server,logging,aead-cipher,stream-cipher

missing=$(echo "$missing" | xargs)
if [ -n "$missing" ]; then
    echo "install.sh: missing: $missing" >&2
    exit 1
fi

# Its test is skipped where it is not there. The newest version that the Go module proxy has.
install_go h2spec-2.2.1 github.com/summerwind/h2spec/cmd/h2spec v2.2.1+incompatible h2spec
if [ -n "$missing" ]; then
    echo "install.sh: left out, because it could not be had:$missing" >&2
    exit 0
fi
echo "install.sh: everything is there, in PATH and $peers"
