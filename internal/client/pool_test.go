package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

const patience = 20 * time.Second

// edge is an edge that can be killed and started again at one address.
type edge struct {
	t         testing.TB
	forwarder *tunnel.Forwarder
	address   string
	stop      func()
}

func newEdge(t testing.TB, accept tunnel.Transport, target string) *edge {
	// A restart sets the port free: it must not be one that the system hands out to others meanwhile.
	e := &edge{t: t, address: "127.0.0.1:" + tunneltest.FreePort(), forwarder: &tunnel.Forwarder{
		Accept: accept, Drain: -1,
		Dial: func(ctx context.Context, _ *tunnel.Info) (tunnel.Conn, error) {
			return new(tunnel.Dialer).Dial(ctx, target)
		},
	}}
	e.start()
	t.Cleanup(func() { e.stop() })
	return e
}

func (e *edge) start() {
	e.t.Helper()
	var l net.Listener
	eventually(e.t, "listen again", func() bool {
		var err error
		l, err = net.Listen("tcp", e.address)
		return err == nil
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		e.forwarder.Serve(ctx, l)
	}()
	e.stop = func() { cancel(); <-ended }
}

func (e *edge) restart() {
	e.t.Helper()
	e.stop()
	e.start()
}

// startClient runs a client with one tunnel to remote until the test ends.
func startClient(t testing.TB, tunnel *Tunnel) (address string, l *link) {
	t.Helper()
	c := &Client{Alone: true}
	tunnel.Listen = []string{"127.0.0.1:0"}
	if err := c.Apply(t.Context(), []*Tunnel{tunnel}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Error("the client does not end")
		}
	})
	return c.doors["127.0.0.1:0"].Addr().String(), c.links[0]
}

func ws() tunnel.Transport {
	return tunnel.Transport{&tunnel.WebSocket{Host: "edge.test", Path: "/ws"}}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func full(t testing.TB, l *link) {
	t.Helper()
	eventually(t, "the pool is full", func() bool { return l.pool.size() == l.Pool })
}

// exchange says text through address and returns the answer up to its end.
func exchange(t testing.TB, address, text string) (string, error) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(c)
	return string(answer), err
}

// gate is a line to an edge that can be made to hold back what goes in one direction.
type gate struct {
	address string
	gentle  bool // it makes an end of a reset, as web servers do
	mu      sync.Mutex
	held    [2]chan struct{} // by direction, closed when that is over; nil: it flows
	lost    int              // how often all connections were
}

const (
	toEdge = iota
	fromEdge
)

func newGate(t testing.TB, edge string) *gate {
	g := new(gate)
	g.address = tunneltest.Serve(t, func(c *net.TCPConn) {
		_, lost := g.state(toEdge)
		d, err := net.Dial("tcp", edge)
		if err != nil {
			c.SetLinger(0)
			return
		}
		defer d.Close()
		var both sync.WaitGroup
		both.Go(func() { g.carry(toEdge, d.(*net.TCPConn), c, lost) })
		both.Go(func() { g.carry(fromEdge, c, d.(*net.TCPConn), lost) })
		both.Wait()
	})
	return g
}

func (g *gate) state(direction int) (held chan struct{}, lost int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held[direction], g.lost
}

func (g *gate) carry(direction int, to, from *net.TCPConn, lostBefore int) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if held, _ := g.state(direction); held != nil {
			<-held
		}
		if _, lost := g.state(direction); lost > lostBefore {
			to.SetLinger(0)
			to.Close()
			from.SetLinger(0)
			from.Close()
			return
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				from.SetLinger(0)
				from.Close()
				return
			}
		}
		if err == io.EOF || err != nil && g.gentle {
			to.CloseWrite()
			return
		}
		if err != nil {
			to.SetLinger(0)
			to.Close()
			return
		}
	}
}

// hold keeps back what goes in direction, until it is released; or lost, with all connections that there are, be it that the gate
// has yet to read from them.
func (g *gate) hold(direction int) (release, lose func()) {
	held := make(chan struct{})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held[direction] = held
	end := func(lose bool) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.held[direction] == held {
			g.held[direction] = nil
			if lose {
				g.lost++
			}
			close(held)
		}
	}
	return func() { end(false) }, func() { end(true) }
}

// The program's first bytes reach the target before the edge has said a word: what comes back first is the answer.
func TestFirstByteInOneRoundTrip(t *testing.T) {
	t.Parallel()
	heard := make(chan string, 1)
	target := tunneltest.Serve(t, func(c *net.TCPConn) {
		b := make([]byte, 5)
		io.ReadFull(c, b)
		heard <- string(b)
		io.WriteString(c, "answer")
	})
	g := newGate(t, newEdge(t, ws(), target).address)
	address, l := startClient(t, &Tunnel{Remote: g.address, Dialer: new(tunnel.Dialer), Transport: ws(), Pool: 2})
	full(t, l)

	release, _ := g.hold(fromEdge)
	defer release()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "hello")

	select {
	case text := <-heard:
		if text != "hello" {
			t.Errorf("the target heard %q", text)
		}
	case <-time.After(patience):
		t.Fatal("the target hears nothing before the edge has answered")
	}
	release()
	c.SetReadDeadline(time.Now().Add(patience))
	answer := make([]byte, 6)
	if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "answer" {
		t.Errorf("got %q, %v", answer, err)
	}
}

// An edge that waits dials its target when somebody comes, and servers that speak first are heard.
func TestPoolDialsNoTargetBeforeItIsWanted(t *testing.T) {
	t.Parallel()
	var dialed atomic.Int64
	target := tunneltest.Serve(t, func(c *net.TCPConn) {
		dialed.Add(1)
		io.WriteString(c, "220 hello\r\n")
	})
	address, l := startClient(t, &Tunnel{Remote: newEdge(t, ws(), target).address, Dialer: new(tunnel.Dialer), Transport: ws(), Pool: 3})
	full(t, l)
	if n := dialed.Load(); n != 0 {
		t.Fatalf("the target was dialed %d times for nobody", n)
	}

	answer, err := exchange(t, address, "")

	if err != nil || answer != "220 hello\r\n" || dialed.Load() != 1 {
		t.Errorf("got %q, %v, after %d dials", answer, err, dialed.Load())
	}
	full(t, l)
}

// Towards an edge that does not wait, what a server says before anybody is there to hear it is not lost, and a server
// that hangs up meanwhile costs nobody a connection.
func TestPoolOfDialedTargets(t *testing.T) {
	for name, greeting := range map[string]string{"short greeting": "220 hello\r\n", "long greeting": strings.Repeat("220-hello\r\n", 1000)} {
		t.Run(name, func(t *testing.T) {
			testPoolOfDialedTargets(t, greeting)
		})
	}
}

func testPoolOfDialedTargets(t *testing.T, greeting string) {
	t.Parallel()
	var all sync.Map
	target := tunneltest.Serve(t, func(c *net.TCPConn) {
		all.Store(c, true)
		io.WriteString(c, greeting)
		io.Copy(c, c)
	})
	address, l := startClient(t, &Tunnel{Remote: newEdge(t, nil, target).address, Dialer: new(tunnel.Dialer), Pool: 2})
	full(t, l)
	if answer, err := exchange(t, address, "text"); err != nil || answer != greeting+"text" {
		t.Errorf("got %.30q, %v", answer, err)
	}
	full(t, l)
	eventually(t, "the target has heard of them all", func() bool {
		count := 0
		all.Range(func(any, any) bool { count++; return true })
		return count >= 3 // one was used
	})

	all.Range(func(c, _ any) bool { c.(*net.TCPConn).Close(); return true })
	closed := time.Now()

	eventually(t, "the pool gives up what it had", func() bool {
		l.pool.mu.Lock()
		defer l.pool.mu.Unlock()
		return !slices.ContainsFunc(l.pool.idle, func(r *ready) bool { return r.born.Before(closed) })
	})
	for range 3 {
		if answer, err := exchange(t, address, "text"); err != nil || answer != greeting+"text" {
			t.Errorf("after the server has hung up: got %.30q, %v", answer, err)
		}
	}
}

// A target that hangs up at once is not asked for connections without a pause.
func TestPoolOfTargetThatHangsUp(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	target := tunneltest.Serve(t, func(*net.TCPConn) { asked.Add(1) })
	begin := time.Now()
	startClient(t, &Tunnel{Remote: newEdge(t, nil, target).address, Dialer: new(tunnel.Dialer), Pool: 1})
	eventually(t, "it is asked four times", func() bool { return asked.Load() >= 4 })
	if least := 7 * firstPause / 2; time.Since(begin) < least {
		t.Errorf("asked for %d connections within %v, want pauses of %v together", asked.Load(), time.Since(begin), least)
	}
}

// An edge that dies between any two steps costs another try, not an error, and every byte arrives once.
func TestEdgeRestartsBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	text := make([]byte, 20<<10)
	rand.Read(text)
	for name, die := range map[string]func(*testing.T, *edge, *gate) (then func()){
		"while nobody is there": func(_ *testing.T, e *edge, _ *gate) func() {
			e.restart()
			return func() {}
		},
		"before it hears": func(_ *testing.T, e *edge, g *gate) func() {
			_, lose := g.hold(toEdge)
			return func() { e.stop(); lose(); e.start() }
		},
		"before it is heard": func(_ *testing.T, e *edge, g *gate) func() {
			_, lose := g.hold(fromEdge)
			return func() { e.stop(); lose(); e.start() }
		},
		"for a while": func(_ *testing.T, e *edge, _ *gate) func() {
			e.stop()
			return func() { time.Sleep(time.Second); e.start() } // longer than a few pauses between attempts
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEdge(t, ws(), tunneltest.Echo(t))
			g := newGate(t, e.address)
			address, l := startClient(t, &Tunnel{Remote: g.address, Dialer: new(tunnel.Dialer), Transport: ws(), Pool: 2, Wait: patience})
			full(t, l)

			then := die(t, e, g)
			type result struct {
				answer string
				err    error
			}
			got := make(chan result, 1)
			go func() {
				answer, err := exchange(t, address, string(text))
				got <- result{answer, err}
			}()
			eventually(t, "the program's connection is there", func() bool { return l.stats.total.Load() > 0 })
			then()

			r := <-got
			if r.err != nil || !bytes.Equal([]byte(r.answer), text) {
				t.Errorf("got %d bytes, %v", len(r.answer), r.err)
			}
		})
	}
}
