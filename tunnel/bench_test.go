package tunnel_test

import (
	"context"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// bothEnds runs f with a tunnel over each transport: app is the client's side of it, target the edge's.
func bothEnds(b *testing.B, f func(b *testing.B, app, target net.Conn)) {
	for _, tr := range tunneltest.Transports(b, tunneltest.NewCA(b)) {
		b.Run(tr.Name, func(b *testing.B) {
			targets := make(chan net.Conn, 1)
			edge := &tunnel.Forwarder{Accept: tr.Server, Dial: dialTCP(tunneltest.Serve(b, func(c *net.TCPConn) {
				ended := make(chan struct{})
				targets <- closer{c, ended}
				<-ended
			})), Drain: -1}
			client := &tunnel.Forwarder{Connect: tr.Client, Dial: dialTCP(serveForwarder(b, edge)), Drain: -1}
			app, err := net.Dial("tcp", serveForwarder(b, client))
			if err != nil {
				b.Fatal(err)
			}
			defer app.Close()
			target := <-targets
			defer target.Close()
			f(b, app, target)
		})
	}
}

// closer tells when it is closed.
type closer struct {
	net.Conn
	ended chan struct{}
}

func (c closer) Close() error {
	close(c.ended)
	return nil
}

// One operation carries 1 MiB through client and edge. What a direction moves in the steady state
// allocates nothing.
func BenchmarkRelay(b *testing.B) {
	const block = 1 << 20
	for _, way := range []string{"up", "down"} {
		b.Run(way, func(b *testing.B) {
			bothEnds(b, func(b *testing.B, from, to net.Conn) {
				if way == "down" {
					from, to = to, from
				}
				data, got := make([]byte, block), make([]byte, block)
				carry := func() {
					go from.Write(data)
					if _, err := io.ReadFull(to, got); err != nil {
						b.Fatal(err)
					}
				}
				for range 16 { // pools, pipes and stacks grow to their sizes
					carry()
				}
				b.SetBytes(block)
				b.ReportAllocs()
				for b.Loop() {
					carry()
				}
			})
		})
	}
}

// One operation is 64 bytes there and back.
func BenchmarkRoundTrip(b *testing.B) {
	bothEnds(b, func(b *testing.B, app, target net.Conn) {
		go io.Copy(struct{ io.Writer }{target}, struct{ io.Reader }{target})
		data := make([]byte, 64)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := app.Write(data); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(app, data); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// One operation is a new connection, a byte there and back, and its end.
func BenchmarkConnect(b *testing.B) {
	for _, tr := range tunneltest.Transports(b, tunneltest.NewCA(b)) {
		b.Run(tr.Name, func(b *testing.B) {
			addr := startTunnel(b, tr, tunneltest.Echo(b))
			data := make([]byte, 1)
			b.ReportAllocs()
			for b.Loop() {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := c.Write(data); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, data); err != nil {
					b.Fatal(err)
				}
				c.(*net.TCPConn).SetLinger(0) // leaves no TIME_WAIT, of which ports would run out
				c.Close()
			}
		})
	}
}

// No read and no write of data that moves allocates. What the poller, the pools and this test itself
// need is far less than one allocation for each. crypto/tls needs 24 bytes for each of its own reads: one
// for a small record, two for a large one.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	if tunnel.RaceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	const messages = 2000
	for _, tr := range tunneltest.Transports(t, tunneltest.NewCA(t)) {
		t.Run(tr.Name, func(t *testing.T) {
			c, err := net.Dial("tcp", startTunnel(t, tr, tunneltest.Echo(t)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for _, size := range []int{64, 64 << 10} {
				data := make([]byte, size)
				send := func(rounds int) {
					for range rounds {
						if _, err := c.Write(data); err != nil {
							t.Fatal(err)
						}
						if _, err := io.ReadFull(c, data); err != nil {
							t.Fatal(err)
						}
					}
				}
				send(100)
				runtime.GC()
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				send(messages)
				runtime.ReadMemStats(&after)
				// A message there and back is read and written four times each, two of them by TLS.
				limit := uint64(messages / 2)
				if strings.HasPrefix(tr.Name, "wss") || tr.Name == "tls" {
					const largest = 16 << 10 // of records; the last of a message may be small
					limit += messages * 2 * uint64(1+2*(size/largest+1)*min(1, size/largest))
				}
				if n := after.Mallocs - before.Mallocs; n > limit {
					t.Errorf("%d bytes: %d allocations for %d messages there and back", size, n, messages)
				}
			}
		})
	}
}

// writeCounter counts the writes of a handshake.
type writeCounter struct {
	*net.TCPConn
	n int
}

func (w *writeCounter) Write(p []byte) (int, error) {
	w.n++
	return w.TCPConn.Write(p)
}

// Each flight of the handshakes is one write: two of TLS from the client and one from the edge (RFC 8446,
// section 2), then one head of HTTP each.
func TestFlightIsOneWrite(t *testing.T) {
	for _, tr := range tunneltest.Transports(t, tunneltest.NewCA(t)) {
		want := map[string][2]int{"tls": {2, 1}, "ws-skip": {1, 1}, "wss-skip": {3, 2}}[tr.Name]
		if want == [2]int{} {
			continue
		}
		t.Run(tr.Name, func(t *testing.T) {
			dialed, accepted := tunneltest.Pair(t)
			client, edge := &writeCounter{TCPConn: dialed}, &writeCounter{TCPConn: accepted}
			done := make(chan error, 1)
			go func() {
				_, err := tr.Server.Server(context.Background(), edge, &tunnel.Info{})
				done <- err
			}()
			if _, err := tr.Client.Client(context.Background(), client); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if got := [2]int{client.n, edge.n}; got != want {
				t.Errorf("writes of client and edge: %d, want %d", got, want)
			}
		})
	}
}

// What is written at once leaves at once, in one write: a keystroke as a frame and a record, and bulk however many records it takes.
func TestMessageIsOneWrite(t *testing.T) {
	for _, tr := range tunneltest.Transports(t, tunneltest.NewCA(t)) {
		t.Run(tr.Name, func(t *testing.T) {
			dialed, accepted := tunneltest.Pair(t)
			client, edge := &writeCounter{TCPConn: dialed}, &writeCounter{TCPConn: accepted}
			served := make(chan tunnel.Conn, 1)
			go func() {
				c, err := tr.Server.Server(context.Background(), edge, &tunnel.Info{})
				if err != nil {
					t.Error(err)
				}
				served <- c
			}()
			a, err := tr.Client.Client(context.Background(), client)
			if err != nil {
				t.Fatal(err)
			}
			b := <-served
			for _, size := range []int{1, 64, 1400, 64 << 10} {
				for _, way := range []struct {
					from, to tunnel.Conn
					count    *writeCounter
				}{{a, b, client}, {b, a, edge}} {
					before := way.count.n
					written := make(chan error, 1)
					go func() {
						_, err := way.from.Write(make([]byte, size))
						written <- err
					}()
					if _, err := io.ReadFull(way.to, make([]byte, size)); err != nil {
						t.Fatal(err)
					}
					if err := <-written; err != nil {
						t.Fatal(err)
					}
					if n := way.count.n - before; n != 1 {
						t.Errorf("%d bytes left in %d writes", size, n)
					}
				}
			}
		})
	}
}
