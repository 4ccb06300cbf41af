#!/bin/sh
# Installs the programs that the bench measures beside raimon: what can be had. A second run is quick.
set -u
. "$(dirname "$0")/../interop/installers.sh"

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    install_debian \
        ss-v2ray-plugin:shadowsocks-v2ray-plugin \
        haproxy:haproxy \
        stunnel4:stunnel4 \
        cmake:cmake \
        '/usr/lib/llvm-*/lib/libclang.so*:libclang-dev'
else
    echo "install.sh: packages are installed on Debian, as root: v2ray-plugin, haproxy and stunnel as far as they are there" >&2
fi
# Its default: TLS by aws-lc, for which it wants cmake and libclang.
install_kaminari -awslc
install_go chisel-1.10.1 github.com/jpillora/chisel v1.10.1 chisel
# wstunnel is not on crates.io, by its author's decision: what stands in the path is taken.
command -v wstunnel >/dev/null || missing="$missing wstunnel"

missing=$(echo "$missing" | xargs)
[ -z "$missing" ] || echo "install.sh: left out, because it could not be had: $missing" >&2
