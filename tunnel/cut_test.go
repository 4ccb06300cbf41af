package tunnel_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// The link is cut after every single byte of a request and its reply, handshakes included. Each side
// gets everything and the end, or an error: never an end after less.
func TestCutAtEveryByte(t *testing.T) {
	for _, tr := range transportsInBubbles(t) {
		if secure, ok := first(tr.Client).(*tunnel.TLS); ok {
			secure.ClientConfig.CurvePreferences = []tls.CurveID{tls.X25519} // fewer bytes to cut behind
		}
		for _, direction := range []string{"up", "down"} {
			for _, reset := range []bool{true, false} {
				if !reset && len(tr.Client) == 0 {
					continue // in plain tcp a FIN is an end
				}
				t.Run(fmt.Sprintf("%s/%s/reset=%v", tr.Name, direction, reset), func(t *testing.T) {
					step, cut := 1, true
					if tunnel.RaceEnabled || testing.Short() {
						step = 7
					}
					n := 0
					for ; cut && !t.Failed(); n += step {
						link := tunneltest.NewLink()
						link.Reset = reset
						if direction == "up" {
							link.CutUp = n
						} else {
							link.CutDown = n
						}
						synctest.Test(t, func(t *testing.T) { cut = cutExchange(t, tr, link, n) })
					}
					t.Log("all sent after", n-step, "bytes at most")
				})
			}
		}
	}
}

func first(tr tunnel.Transport) tunnel.Layer {
	if len(tr) == 0 {
		return nil
	}
	return tr[0]
}

// cutExchange plays a request and its reply over link, and tells whether link was cut on the way.
func cutExchange(t *testing.T, tr tunneltest.Transport, link *tunneltest.Link, n int) bool {
	request, reply := tunneltest.Bytes(200, 1), tunneltest.Bytes(150, 2)
	s := tunneltest.NewStage(t, tr, link)
	s.App.Write(request)
	s.App.CloseWrite()
	app, target := tunneltest.NewRecord(s.App), tunneltest.NewRecord(s.Target)

	arrived, err := target.Wait()
	if !bytes.HasPrefix(request, arrived) || err == io.EOF && len(arrived) < len(request) {
		t.Errorf("cut after %d: the target sees %d of %d bytes and %v", n, len(arrived), len(request), err)
	}
	if err == io.EOF {
		s.Target.Write(reply)
		s.Target.Close()
	}
	answered, err := app.Wait()
	if !bytes.HasPrefix(reply, answered) || err == io.EOF && len(answered) < len(reply) {
		t.Errorf("cut after %d: the app sees %d of %d bytes and %v", n, len(answered), len(reply), err)
	}
	<-s.Client
	<-s.Edge
	if !link.WasCut() && err != io.EOF {
		t.Errorf("nothing was cut, but the app sees %v", err)
	}
	return link.WasCut()
}

// A reset in the middle of traffic both ways is found by a read or by a write, whichever comes first;
// the kernel tells it once. To the other side it is no end in either case.
func TestResetUnderTrafficIsNoEnd(t *testing.T) {
	tunneltest.NoLeaks(t)
	for _, tr := range tunneltest.Transports(t, tunneltest.NewCA(t)) {
		t.Run(tr.Name, func(t *testing.T) {
			accepted := make(chan *net.TCPConn)
			done := make(chan struct{})
			app := startTunnel(t, tr, tunneltest.Serve(t, func(c *net.TCPConn) {
				accepted <- c
				<-done
			}))
			defer close(done)
			runs := 16
			if tunnel.RaceEnabled {
				runs = 4
			}
			for run := range runs {
				dialed, err := net.Dial("tcp", app)
				if err != nil {
					t.Fatal(err)
				}
				defer dialed.Close()
				quitter, other := dialed.(*net.TCPConn), <-accepted
				if run%2 == 1 {
					quitter, other = other, quitter
				}
				seen := make(chan error, 1)
				go func() { seen <- flood(other) }()
				go io.Copy(quitter, endless{})
				if _, err := io.CopyN(io.Discard, quitter, 256<<10); err != nil {
					t.Fatal(err)
				}

				quitter.SetLinger(0)
				quitter.Close()

				select {
				case err := <-seen:
					if err == nil {
						t.Errorf("run %d: the other side sees a clean end", run)
					}
				case <-time.After(30 * time.Second):
					t.Fatalf("run %d: the other side sees nothing", run)
				}
			}
		})
	}
}

// flood writes and reads until both fail, and returns nil for a clean end.
func flood(c *net.TCPConn) error {
	wrote := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, endless{})
		wrote <- err
	}()
	_, err := io.Copy(io.Discard, c)
	// Here too, only one of the two is told; EPIPE means that an end came first.
	if werr := <-wrote; err == nil && errors.Is(werr, syscall.ECONNRESET) {
		return werr
	}
	return err
}

// endless has always more to read.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
