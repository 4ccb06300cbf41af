#!/bin/sh
# After a removal. Certificates and keys stay, except where deb is asked to purge.
set -e

if [ "${1:-}" = purge ]; then
	rm -rf /var/lib/raimon /var/log/raimon
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
