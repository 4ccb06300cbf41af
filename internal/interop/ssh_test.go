//go:build interop

package interop

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sshServer is an sshd of the test's own, and what a client needs to log in as the current user.
type sshServer struct {
	address, user, key, hosts string
}

// startSSH starts it; more are lines of its config.
func startSSH(t testing.TB, more ...string) sshServer {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"host", "user"} {
		if out, err := exec.Command(program(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", file(name)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	// Debian's sshd wants this folder, which the service makes when it starts.
	if me.Uid == "0" {
		os.MkdirAll("/run/sshd", 0o755)
	}
	s := sshServer{address: freePort(), user: me.Username, key: file("user"), hosts: file("known_hosts")}
	conf := fmt.Sprintf("ListenAddress %s\nHostKey %s\nAuthorizedKeysFile %s\nPidFile none\nStrictModes no\nUsePAM no\n"+
		"PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\n%s\n", s.address, file("host"), file("user.pub"), strings.Join(more, "\n"))
	if err := os.WriteFile(file("conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	hostKey, err := os.ReadFile(file("host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.hosts, []byte("raimon "+string(hostKey)), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, "sshd", nil, "-D", "-e", "-f", file("conf")).awaitPort(t, s.address)
	return s
}

// command is ssh with a ProxyCommand.
func (s sshServer) command(t testing.TB, proxy string, words ...string) *exec.Cmd {
	t.Helper()
	args := []string{"-F", "none", "-i", s.key, "-l", s.user, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15",
		"-o", "UserKnownHostsFile=" + s.hosts, "-o", "StrictHostKeyChecking=yes", "-o", "ProxyCommand=" + proxy, "raimon"}
	cmd := exec.CommandContext(minute(t), program(t, "ssh"), append(args, words...)...)
	cmd.Env = append(os.Environ(), noProxy...)
	return cmd
}

func TestSSH(t *testing.T) {
	s := startSSH(t)
	for _, c := range transports(t) {
		_, edge := startRaimons(t, s.address, c.server)
		t.Run(c.name+" banner", func(t *testing.T) {
			t.Parallel()
			_, client := startRaimonc(t, edge, c.client)
			conn, err := net.Dial("tcp", client)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			// The server speaks first, while we say nothing.
			banner, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil || !strings.HasPrefix(banner, "SSH-2.0-") {
				t.Errorf("banner: %q, %v", banner, err)
			}
			host, number, _ := net.SplitHostPort(client)
			out, err := exec.CommandContext(minute(t), program(t, "ssh-keyscan"), "-t", "ed25519", "-p", number, host).Output()
			if err != nil || !strings.Contains(string(out), "ssh-ed25519 ") {
				t.Errorf("ssh-keyscan: %q, %v", out, err)
			}
		})
		t.Run(c.name+" login", func(t *testing.T) {
			t.Parallel()
			proxy := fmt.Sprintf("%s stdio %s '%s'", program(t, "raimonc"), edge, c.client)
			const n = 4 * megabyte
			var failed bytes.Buffer
			cmd := s.command(t, proxy, "cat; exit 7")
			cmd.Stdin, cmd.Stderr = stream(n), &failed
			got := newSum()
			cmd.Stdout = got
			err := cmd.Run()
			if cmd.ProcessState.ExitCode() != 7 || got.String() != sumOf(n) {
				t.Errorf("cat: %v with %v, want %v; %v: %s", cmd.ProcessState, got, sumOf(n), err, trim(failed.String(), 1000))
			}
		})
	}
}
