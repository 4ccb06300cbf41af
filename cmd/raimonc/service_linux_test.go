package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"raimon/internal/commandtest"
)

// withManager is run as the first process of a namespace, in which it starts a systemd that looks after one user.
const withManager = `
set -e
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p -m 0700 /run/systemd/system "$XDG_RUNTIME_DIR"
"$SYSTEMD" --user &
manager=$!

# within runs a command until it succeeds, for 20 seconds.
within() {
	for n in $(seq 200); do
		if "$@" > out 2>&1; then return; fi
		sleep 0.1
	done
	echo "not within 20 s: $*"
	cat out
	systemctl --user status raimonc-tunnels || true
	return 1
}
refused() {
	if "$@" > out 2>&1; then
		echo "not refused: $*"
		return 1
	fi
}
property() { test "$(systemctl --user show --property="$1" --value raimonc-tunnels)" = "$2"; }

within systemctl --user is-system-running
raimonc service install -config tunnels.toml
refused raimonc service status -config tunnels.toml
grep 'does not run: inactive (dead), enabled' out

echo : starts, and is a client like others
raimonc service start -config tunnels.toml
raimonc service status -config tunnels.toml
within raimonc status -config tunnels.toml
grep '^one ' out
systemctl --user reload raimonc-tunnels

echo : is started again when it was killed
kill -9 "$(systemctl --user show --property=MainPID --value raimonc-tunnels)"
within property NRestarts 1
within raimonc status -config tunnels.toml

echo : is not started again with a file that is wrong
raimonc service stop -config tunnels.toml
refused raimonc service status -config tunnels.toml
cp tunnels.toml good
echo 'x = 1' >> tunnels.toml
refused raimonc service install -config tunnels.toml
refused raimonc service start -config tunnels.toml
grep 'tunnels.toml:2: x is neither a line nor a table' out
property ActiveState failed
property ExecMainStatus 23
property NRestarts 0

echo : goes without a trace
cp good tunnels.toml
raimonc service start -config tunnels.toml
raimonc service uninstall -config tunnels.toml
property ActiveState inactive
property LoadState not-found
refused raimonc status
test -z "$(find "$HOME/.config/systemd" -name '*raimonc*')"
kill $manager
wait $manager
`

// A systemd of our own does with the service what it says.
func TestServiceOfSystemd(t *testing.T) {
	systemd := "/lib/systemd/systemd"
	for _, need := range []string{systemd, "systemctl", "mount"} {
		if _, err := exec.LookPath(need); err != nil {
			t.Skip(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can make the namespace")
	}
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Skip("this system has a systemd already, which may take offence at another")
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, "raimon/cmd/raimonc")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "tunnels.toml"), []byte("one = \"127.0.0.1:0 -> tcp://127.0.0.1:1\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", withManager)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "HOME=" + dir, "XDG_RUNTIME_DIR=/run/user/0", "SYSTEMD=" + systemd}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Unshareflags: syscall.CLONE_NEWNS}
	late := time.AfterFunc(4*commandtest.Patience, func() { cmd.Process.Kill() }) // and all that it has started
	defer late.Stop()
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}
