//go:build interop

package interop

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// roomToGrow is how much more memory (KiB) abuse may take than a tunnel that works.
const roomToGrow = 24 << 10

// abused is an edge that has to go on working while something is done to it.
type abused struct {
	process       *process
	edge          string
	before        int // resident memory in KiB
	grown         atomic.Int64
	transportCase transportCase
}

// newAbused starts an edge and a client of good will, and looks after them until stop.
func newAbused(t *testing.T, c transportCase) (a *abused, stop func()) {
	t.Helper()
	g := newTarget(t)
	a = &abused{transportCase: c}
	a.process, a.edge = startRaimons(t, g.address, c.server+";timeout=2s")
	_, client := startRaimonc(t, a.edge, c.client)
	if err := tryEcho(t, client, 8*megabyte); err != nil {
		t.Fatal(err)
	}
	a.before = a.process.status(t, "VmRSS")
	enough := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for rounds := 0; ; rounds++ {
			if err := tryLockstep(t, client, 100_000, 3001); err != nil {
				t.Errorf("a good tunnel meanwhile, round %d: %v", rounds, err)
			}
			a.grown.Store(max(a.grown.Load(), int64(a.process.status(t, "VmRSS")-a.before)))
			select {
			case <-enough:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return a, func() {
		close(enough)
		watch.Wait()
		t.Logf("%d KiB before, up to %d more", a.before, a.grown.Load())
		if a.grown.Load() > roomToGrow {
			t.Errorf("memory grew by %d KiB from %d", a.grown.Load(), a.before)
		}
	}
}

// underAbuse runs do against edges that speak the named transports.
func underAbuse(t *testing.T, names []string, do func(t *testing.T, a *abused)) {
	for _, c := range transports(t) {
		if !slices.Contains(names, c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, stop := newAbused(t, c)
			defer stop()
			do(t, a)
		})
	}
}

func TestGarbage(t *testing.T) {
	const total = 100 * megabyte
	underAbuse(t, []string{"ws", "tls", "wss"}, func(t *testing.T, a *abused) {
		var sent atomic.Int64
		var all sync.WaitGroup
		for n := range 32 {
			all.Go(func() {
				for round := 0; sent.Load() < total; round++ {
					c, err := net.Dial("tcp", a.edge)
					if err != nil {
						t.Error(err)
						return
					}
					c.SetDeadline(time.Now().Add(patience))
					m, _ := io.Copy(c, stream(megabyte+n*1000+round))
					sent.Add(m)
					c.Close()
				}
			})
		}
		all.Wait()
	})
}

// In an open WebSocket garbage ends the connection.
func TestGarbageFrames(t *testing.T) {
	underAbuse(t, []string{"ws", "wss"}, func(t *testing.T, a *abused) {
		for n := range 200 {
			c := upgrade(t, a)
			go io.Copy(c, stream(100_000+n))
			if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) {
				t.Errorf("garbage %d is still taken", n)
			}
			c.Close()
		}
	})
}

func TestSlowHandshakes(t *testing.T) {
	underAbuse(t, []string{"ws", "tls", "wss"}, func(t *testing.T, a *abused) {
		opening := "GET /tunnel HTTP/1.1\r\nHost: localhost\r\nX: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
		if a.transportCase.name != "ws" {
			opening = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
		}
		var all sync.WaitGroup
		for range 200 {
			all.Go(func() {
				c, err := net.Dial("tcp", a.edge)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				begin := time.Now()
				cut := make(chan struct{})
				go func() {
					defer close(cut)
					c.SetReadDeadline(begin.Add(patience))
					io.Copy(io.Discard, c)
				}()
				for i := range opening {
					if _, err := c.Write([]byte{opening[i]}); err != nil {
						break
					}
					select {
					case <-cut:
					case <-time.After(time.Second):
						continue
					}
					break
				}
				<-cut
				if lasted := time.Since(begin); lasted < 1500*time.Millisecond || lasted > 6*time.Second {
					t.Errorf("cut after %v, want about 2s", lasted)
				}
			})
		}
		all.Wait()
	})
}

// A length is only a promise: nothing is reserved for it.
func TestEndlessFrame(t *testing.T) {
	underAbuse(t, []string{"ws", "wss"}, func(t *testing.T, a *abused) {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				c := upgrade(t, a)
				defer c.Close()
				if err := ws.WriteHeader(c, ws.Header{Fin: true, OpCode: ws.OpBinary, Masked: true, Length: math.MaxInt64}); err != nil {
					t.Error(err)
					return
				}
				fmt.Fprintf(c, "hold %s\n", newID())
				if line, err := bufio.NewReader(c).ReadString('\n'); !strings.Contains(line, "ready") {
					t.Errorf("got %q, %v", line, err)
				}
				if _, err := io.Copy(c, stream(16*megabyte)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	})
}

// upgrade opens a WebSocket as a foreign client, and leaves the frames to the caller.
func upgrade(t testing.TB, a *abused) net.Conn {
	t.Helper()
	url := "ws://localhost/tunnel"
	if a.transportCase.ca != "" {
		url = "wss://localhost/tunnel"
	}
	dialer := ws.Dialer{
		TLSConfig: &tls.Config{InsecureSkipVerify: true},
		NetDial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, a.edge)
		},
	}
	c, early, _, err := dialer.Dial(t.Context(), url)
	if err != nil {
		panic(err) // we may be in another goroutine than the test's
	}
	if early != nil {
		t.Error("the edge speaks first")
	}
	c.SetDeadline(time.Now().Add(2 * patience))
	return c
}
