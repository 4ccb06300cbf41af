//go:build unix

package main

import (
	"crypto/tls"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"raimon/internal/tunneltest"
)

// startTLSEcho is an echo over TLS that tells for each connection whether it resumed a session.
func startTLSEcho(t *testing.T, certificate tls.Certificate) (address string, resumed <-chan bool) {
	t.Helper()
	results := make(chan bool, 10)
	config := &tls.Config{Certificates: []tls.Certificate{certificate}}
	return tunneltest.Serve(t, func(bare *net.TCPConn) {
		c := tls.Server(bare, config)
		if c.Handshake() == nil {
			results <- c.ConnectionState().DidResume
			io.Copy(c, c)
			c.CloseWrite()
		}
	}), results
}

func TestTicketsSurviveARestart(t *testing.T) {
	t.Parallel()
	ca := tunneltest.NewCA(t)
	certificate := ca.Issue(t, "localhost")
	root := ca.Write(t, t.TempDir(), certificate).CA
	address, resumed := startTLSEcho(t, certificate)

	home := t.TempDir()
	connect := func(options string) (resumes bool) {
		t.Helper()
		cmd := exec.Command("raimonc", "stdio", address, "tls;ca="+root+";"+options)
		cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CACHE_HOME="+filepath.Join(home, "cache"))
		cmd.Stdin = strings.NewReader("hello")
		if out, err := cmd.Output(); err != nil || string(out) != "hello" {
			t.Fatalf("got %q, %v; want hello", out, err)
		}
		return <-resumed
	}

	for _, step := range []struct {
		why, options string
		want         bool
	}{
		{"the first connection", "sni=localhost;0rtt", false},
		{"after a restart", "sni=localhost;0rtt", true},
		{"after another one, as a ticket is used once and replaced", "sni=localhost;0rtt", true},
		{"without 0rtt", "sni=localhost", false},
		{"with another trust", "sni=localhost;0rtt;alpn=h2", false},
		{"with what was there before", "sni=localhost;0rtt", true},
	} {
		got := connect(step.options)
		for tries := 1; step.want && !got && tries < 5; tries++ {
			got = connect(step.options) // a busy machine may miss the 250 ms that a dial waits for the file
		}
		if got != step.want {
			t.Errorf("%s: resumed: %v, want %v", step.why, got, step.want)
		}
	}

	files := 0
	filepath.WalkDir(home, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			t.Error(err)
		}
		if info, _ := entry.Info(); info.Mode().IsRegular() {
			files++
			if info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v, want -rw-------", path, info.Mode())
			}
		}
		return nil
	})
	if files == 0 {
		t.Error("no ticket file was written")
	}
}
