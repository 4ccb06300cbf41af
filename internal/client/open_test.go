package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	gobwas "github.com/gobwas/ws"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// turnedAway connects to address, and returns how long it takes to be reset.
func turnedAway(t testing.TB, address string) time.Duration {
	t.Helper()
	begin := time.Now()
	c, err := net.Dial("tcp", address)
	if tunnel.IsReset(err) { // so soon that the system has not yet told of the connection
		return time.Since(begin)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(begin.Add(patience))
	io.WriteString(c, "hello")
	if n, err := c.Read(make([]byte, 1)); n > 0 || !tunnel.IsReset(err) {
		t.Fatalf("got %d bytes, %v; want a reset", n, err)
	}
	return time.Since(begin)
}

// What is set as the wait is what a program waits, however long an attempt may take.
func TestWaitIsTheLimit(t *testing.T) {
	t.Parallel()
	address, _ := startClient(t, &Tunnel{Remote: "127.0.0.1:1", Dialer: new(tunnel.Dialer), Wait: time.Second, Timeout: time.Minute})
	if took := turnedAway(t, address); took < time.Second || took > patience/2 {
		t.Errorf("turned away after %v, want a second", took)
	}
}

// Programs that have gone are not waited for, and the target hears nothing of them.
func TestProgramLeavesWhileItWaits(t *testing.T) {
	t.Parallel()
	var dialed atomic.Int64
	e := newEdge(t, ws(), tunneltest.Serve(t, func(*net.TCPConn) { dialed.Add(1) }))
	e.stop()
	address, l := startClient(t, &Tunnel{Remote: e.address, Dialer: new(tunnel.Dialer), Transport: ws(), Wait: time.Hour})
	for n := range 20 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 {
			c.(*net.TCPConn).SetLinger(0)
			io.WriteString(c, "hello")
		}
		c.Close()
	}
	eventually(t, "all have come", func() bool { return l.stats.total.Load() == 20 })
	eventually(t, "all have gone", func() bool { return l.client.Status()[0].Open == 0 })
	e.start()
	if n := dialed.Load(); n > 0 {
		t.Errorf("the target was dialed %d times", n)
	}
}

// A connection of the pool that breaks when it is used is replaced, also for programs that do not wait.
func TestPoolBreaksAtUse(t *testing.T) {
	t.Parallel()
	e := newEdge(t, ws(), tunneltest.Echo(t))
	g := newGate(t, e.address)
	address, l := startClient(t, &Tunnel{Remote: g.address, Dialer: new(tunnel.Dialer), Transport: ws(), Pool: 1})
	full(t, l)
	_, lose := g.hold(toEdge)
	answer := make(chan string, 1)
	go func() {
		text, err := exchange(t, address, "hello")
		answer <- text + " " + errorText(err)
	}()
	eventually(t, "the connection is taken", func() bool { return l.stats.total.Load() == 1 && l.pool.size() == 0 })
	lose()
	if got := <-answer; got != "hello " {
		t.Errorf("got %q", got)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// An edge that knows no targets is asked once, not until the wait is over. No program gets to the target that it has
// for everybody, over connections that were ready neither.
func TestEdgeWithoutTargets(t *testing.T) {
	t.Parallel()
	for pool, most := range []int64{1, 3} {
		t.Run(fmt.Sprint("pool=", pool), func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			old := tunneltest.Serve(t, func(c *net.TCPConn) {
				asked.Add(1)
				if _, err := gobwas.Upgrade(c); err == nil { // it knows nothing of our header
					io.Copy(io.Discard, c)
				}
			})
			address, l := startClient(t, &Tunnel{
				Remote: old, Dialer: new(tunnel.Dialer), Transport: ws(), Accept: tunnel.Transport{chooser{}}, Chooses: true, Wait: time.Hour, Pool: pool,
			})
			if pool > 0 {
				eventually(t, "the pool asks", func() bool { return asked.Load() > 0 })
			}
			turnedAway(t, address)
			if n := asked.Load(); n > most || l.pool.size() > 0 {
				t.Errorf("the edge was asked %d times, and %d connections are ready", n, l.pool.size())
			}
			if since, cause := l.outage.state(); since.IsZero() || !errors.Is(cause, tunnel.ErrNoTargets) {
				t.Errorf("the reason is %v", cause)
			}
		})
	}
}

// chooser is what programs speak that choose their target.
type chooser struct{}

func (chooser) Client(context.Context, tunnel.Conn) (tunnel.Conn, error) {
	return nil, errors.ErrUnsupported
}

func (chooser) Server(_ context.Context, c tunnel.Conn, info *tunnel.Info) (tunnel.Conn, error) {
	info.Target = "127.0.0.1:1"
	return c, nil
}

// A program that goes while the edge still dials its target is no failure of anybody.
func TestProgramLeavesBeforeTarget(t *testing.T) {
	t.Parallel()
	dialing := make(chan bool, 1)
	slow := &tunnel.Forwarder{Accept: ws(), Dial: func(ctx context.Context, _ *tunnel.Info) (tunnel.Conn, error) {
		dialing <- true
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	remote := tunneltest.Serve(t, func(c *net.TCPConn) { slow.Handle(t.Context(), c) })
	address, l := startClient(t, &Tunnel{Remote: remote, Dialer: new(tunnel.Dialer), Transport: ws(), Wait: time.Hour, Pool: 1})
	full(t, l)
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "hello")
	<-dialing
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	eventually(t, "the connection is over", func() bool { return l.client.Status()[0].Open == 0 })
	if s := l.client.Status()[0]; s.LastError != "" {
		t.Errorf("the status says %q", s.LastError)
	}
}

// A program that resets its connection does not look as if it had said all, whatever lies between here and the edge.
func TestProgramResets(t *testing.T) {
	t.Parallel()
	for name, pool := range map[string]int{"without a pool": 0, "with a pool": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ends := make(chan error, 1)
			target := tunneltest.Serve(t, func(c *net.TCPConn) {
				c.Write([]byte("x"))
				_, err := io.Copy(io.Discard, c)
				ends <- err
			})
			g := newGate(t, newEdge(t, ws(), target).address)
			g.gentle = true
			address, l := startClient(t, &Tunnel{Remote: g.address, Dialer: new(tunnel.Dialer), Transport: ws(), Pool: pool})
			full(t, l)
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, "hello")
			c.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}

			c.(*net.TCPConn).SetLinger(0)
			c.Close()

			select {
			case err := <-ends:
				if !tunnel.IsReset(err) {
					t.Errorf("the target sees %v, want a reset", err)
				}
			case <-time.After(patience):
				t.Error("the target sees nothing")
			}
		})
	}
}
