# Functions for install.sh here and in internal/bench, which are run on Debian, as root. What cannot be
# had is added to $missing.

peers=${RAIMON_PEERS:-${XDG_CACHE_HOME:-$HOME/.cache}/raimon-interop}
missing=
PATH=$PATH:/usr/sbin:/sbin

# wanted PROGRAM:PACKAGE... prints the packages whose programs are not there. A program may be a
# file, with wildcards.
wanted() {
    for p in "$@"; do
        command -v "${p%%:*}" >/dev/null || ls ${p%%:*} >/dev/null 2>&1 || echo "${p#*:}"
    done
}

# install_debian PROGRAM:PACKAGE...
install_debian() {
    [ -n "$(wanted "$@")" ] || return 0
    export DEBIAN_FRONTEND=noninteractive
    # Packages start their daemons; these would sit on ports 22 and 80. 101 forbids it.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        trap 'rm -f $policy' EXIT
    fi
    # shellcheck disable=SC2046 # one word a package
    apt-get install -y -q --no-install-recommends $(wanted "$@") ||
        { apt-get update -q && apt-get install -y -q --no-install-recommends $(wanted "$@"); } ||
        for p in $(wanted "$@"); do # whatever can be had
            apt-get install -y -q --no-install-recommends "$p"
        done
    missing="$missing $(wanted "$@" | tr '\n' ' ')"
}

# install_crate FOLDER CRATE VERSION PROGRAM [cargo options]
install_crate() {
    root=$peers/$1 crate=$2 version=$3 program=$4
    shift 4
    [ -x "$root/bin/$program" ] && return 0
    command -v cargo >/dev/null && command -v cc >/dev/null &&
        cargo install --locked --root "$root" --version "$version" "$@" "$crate" && return 0
    missing="$missing $crate-$version"
}

# install_kaminari FOLDER [cargo options]. Its WebSocket library uses specialization, a nightly feature.
install_kaminari() {
    folder=kaminari-0.6.1$1
    shift
    export RUSTC_BOOTSTRAP=1
    install_crate "$folder" kaminari-cmd 0.6.1 kaminaris "$@"
    unset RUSTC_BOOTSTRAP
}

# install_go FOLDER PACKAGE VERSION PROGRAM
install_go() {
    [ -x "$peers/$1/bin/$4" ] && return 0
    command -v go >/dev/null && GOBIN=$peers/$1/bin GOFLAGS= go install "$2@$3" && return 0
    missing="$missing $4-$3"
}
