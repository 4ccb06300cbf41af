#!/bin/sh
# Before a removal, and not before an upgrade: deb says remove, rpm 0, apk nothing.
set -e

case "${1:-}" in
upgrade | [1-9]* | failed-upgrade | deconfigure)
	# apk gives the version that goes; with it there is no other way to tell that this is no upgrade,
	# but it has a script of its own for those.
	command -v apk >/dev/null || exit 0
	;;
esac
if [ -d /run/systemd/system ]; then
	systemctl disable --now raimons.socket raimons.service || true # they need not be enabled
	systemctl stop 'raimons@*.service' || true
elif command -v rc-service >/dev/null; then
	rc-service --ifstarted raimons stop || true
	rc-update del raimons || true
fi
