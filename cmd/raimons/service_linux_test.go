package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"raimon/internal/commandtest"
	"raimon/internal/tunneltest"
)

// Under a service manager the edge starts with the first connection, which waits for it, and tells how it does from then on.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	activate, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip(err)
	}
	raimons, err := exec.LookPath("raimons")
	if err != nil {
		t.Fatal(err)
	}
	notified, notify := notifySocket(t)
	address := "127.0.0.1:" + tunneltest.FreePort()
	dir := t.TempDir()
	config := filepath.Join(dir, "edge.toml")
	text := fmt.Sprintf(`listen = [%q]
storage = %q
http = "off"
drain = "0"
[[site]]
names = ["edge.test"]
certificate = "self-signed"
target = %q
`, address, filepath.Join(dir, "storage"), tunneltest.Echo(t))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	first := make(chan error, 1)
	go func() { first <- throughTLS(address) }()
	p := commandtest.Start(t, exec.Command(activate, "--listen="+address, "--fdname=https", "--setenv=NOTIFY_SOCKET="+notify,
		"--setenv=WATCHDOG_USEC=400000", raimons, "-config", config))
	if err := <-first; err != nil {
		t.Errorf("the connection that starts the edge: %v", err)
	}
	awaitMessage(t, notified, "READY=1\nSTATUS=1 site")
	awaitMessage(t, notified, "WATCHDOG=1")
	if p.Log.Count(`is not used: no listener of the config has its address`) > 0 {
		t.Error("the socket of the service manager is not used")
	}

	if err := syscall.Kill(p.PID(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	awaitMessage(t, notified, "RELOADING=1\nMONOTONIC_USEC=")
	awaitMessage(t, notified, "READY=1")
	if err := throughTLS(address); err != nil {
		t.Errorf("after a reload: %v", err)
	}
	terminate(t, p)
	awaitMessage(t, notified, "STOPPING=1")
	if status := p.Ended(t); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

// notifySocket is what systemd holds, and where.
func notifySocket(t testing.TB) (*net.UnixConn, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "notify") // its name has to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, path
}

// awaitMessage waits for one that begins with prefix, and passes over those of the watchdog.
func awaitMessage(t testing.TB, c *net.UnixConn, prefix string) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(commandtest.Patience))
	for b := make([]byte, 4096); ; {
		n, err := c.Read(b)
		if err != nil {
			t.Fatalf("no %q: %v", prefix, err)
		}
		switch text := string(b[:n]); {
		case strings.HasPrefix(text, prefix):
			return
		case text != "WATCHDOG=1":
			t.Fatalf("got %q, want %q", text, prefix)
		}
	}
}

// throughTLS sends something to an echo, as soon as somebody listens.
func throughTLS(address string) error {
	end := time.Now().Add(commandtest.Patience)
	tcp, err := net.Dial("tcp", address)
	for ; err != nil && time.Now().Before(end); tcp, err = net.Dial("tcp", address) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return err
	}
	defer tcp.Close()
	tcp.SetDeadline(end)
	c := tls.Client(tcp, &tls.Config{ServerName: "edge.test", InsecureSkipVerify: true})
	if _, err := io.WriteString(c, "hello"); err != nil {
		return err
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		return fmt.Errorf("got %q, %v", got, err)
	}
	return nil
}
