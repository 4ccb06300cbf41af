#!/bin/sh
# After an installation and after an upgrade, of deb, rpm and apk.
set -e

# The user, as sysusers.conf has it.
if ! id -u raimon >/dev/null 2>&1; then
	if command -v systemd-sysusers >/dev/null; then
		systemd-sysusers raimon.conf
	elif command -v useradd >/dev/null; then
		useradd --system --user-group --home-dir /var/lib/raimon --no-create-home --shell /usr/sbin/nologin raimon
	else
		addgroup -S raimon
		adduser -S -D -H -h /var/lib/raimon -s /sbin/nologin -G raimon -g "raimon edge" raimon
	fi
fi

# The config may name tokens and keys beside it.
chown root:raimon /etc/raimon /etc/raimon/edge.toml
chmod 0750 /etc/raimon

# Nothing is started for the first time: the config has to be written before. An edge that runs is
# replaced; unless it is one of several units, which take over from each other when you say so.
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-restart raimons.service || true # a mistake in the config is told by its log
fi
