//go:build interop

package interop

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// waitingEdge is a client's end of a connection to remote behind which an edge waits; secure is nil without TLS. AwaitOpen runs,
// and gives its result.
func waitingEdge(t testing.TB, remote string, secure *tls.Config) (c tunnel.Conn, opened chan error) {
	t.Helper()
	bare, err := net.Dial("tcp", remote)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bare.Close() })
	layers := tunnel.Transport{&tunnel.WebSocket{Host: "localhost", Path: "/tunnel", Wait: true, Ping: time.Second}}
	if secure != nil {
		layers = append(tunnel.Transport{&tunnel.TLS{ClientConfig: secure}}, layers...)
	}
	if c, err = layers.Client(t.Context(), bare.(*net.TCPConn)); err != nil {
		t.Fatal(err)
	}
	if !tunnel.Waiting(c) {
		t.Fatal("the edge does not wait")
	}
	opened = make(chan error, 1)
	go func() { opened <- tunnel.AwaitOpen(c) }()
	return c, opened
}

// Waiting survives a proxy that gives up silent connections after 3 seconds, and so does what comes afterwards.
func TestWaitThroughNginx(t *testing.T) {
	echo := tunneltest.Echo(t)
	s := newSecrets(t)
	_, edge := startRaimons(t, echo, "ws;host=localhost;path=/tunnel;ping=1s")
	plain, secure := startNginx(t, s, edge)
	roots := x509.NewCertPool()
	pem, err := os.ReadFile(s.CA)
	if err != nil || !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no CA:", err)
	}
	for _, way := range []struct {
		name, remote string
		tls          *tls.Config
	}{{"ws", plain, nil}, {"wss", secure, &tls.Config{RootCAs: roots, ServerName: "localhost"}}} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			c, opened := waitingEdge(t, way.remote, way.tls)
			select {
			case err := <-opened:
				t.Fatal("while it waits:", err)
			case <-time.After(5 * time.Second):
			}
			if err := tunnel.Take(c, ""); err != nil {
				t.Fatal(err)
			}
			sent := make(chan error, 1)
			go func() { sent <- tunneltest.SendRandomly(c, 1<<20, 1) }()
			if err := <-opened; err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(tunneltest.Receive(struct{ io.Reader }{c}, 1<<20, 1), <-sent); err != nil {
				t.Error(err)
			}
		})
	}
}

// Who waits hears of the end of the edge at once, be it a good one.
func TestEdgeEndsWhileItWaits(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "drains": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			p, edge := startRaimons(t, tunneltest.Echo(t), "ws;host=localhost;path=/tunnel")
			_, opened := waitingEdge(t, edge, nil)
			p.Process.Signal(signal)
			select {
			case err := <-opened:
				var closed *tunnel.CloseError
				good := errors.As(err, &closed) && closed.Code == 1001
				if err == nil || good != (signal == syscall.SIGTERM) {
					t.Errorf("got %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("nothing is heard of it")
			}
		})
	}
}
