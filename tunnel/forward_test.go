package tunnel_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"testing"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// startTunnel runs client and edge of a transport before target and returns the client's address.
func startTunnel(t testing.TB, tr tunneltest.Transport, target string) string {
	t.Helper()
	edge := &tunnel.Forwarder{Accept: tr.Server, Dial: dialTCP(target), Drain: -1}
	edgeAddr := serveForwarder(t, edge)
	client := &tunnel.Forwarder{Connect: tr.Client, Dial: dialTCP(edgeAddr), Drain: -1}
	return serveForwarder(t, client)
}

func serveForwarder(t testing.TB, f *tunnel.Forwarder) string {
	t.Helper()
	l := tunneltest.Listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Serve(ctx, l)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return l.Addr().String()
}

func TestTunnelEchoes(t *testing.T) {
	ca := tunneltest.NewCA(t)
	for _, tr := range tunneltest.Transports(t, ca) {
		t.Run(tr.Name, func(t *testing.T) {
			addr := startTunnel(t, tr, tunneltest.Echo(t))
			for _, size := range []int{0, 1, 100, 70000, 16 << 20} {
				data := make([]byte, size)
				rand.Read(data)
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				go func() {
					c.Write(data)
					c.(*net.TCPConn).CloseWrite()
				}()
				got, err := io.ReadAll(c)
				c.Close()
				if err != nil {
					t.Fatalf("%d bytes: %v after %d", size, err, len(got))
				}
				if !bytes.Equal(got, data) {
					t.Fatalf("%d bytes: got %d other ones", size, len(got))
				}
			}
		})
	}
}
