package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raimon/internal/netwatch"
	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// again is ws whose connections serve one tunnel after the other.
func again() tunnel.Transport {
	return tunnel.Transport{&tunnel.WebSocket{Host: "edge.test", Path: "/ws", Reuse: true, Targets: true}}
}

// counter counts the connections that come by on their way to an edge.
type counter struct {
	address   string
	come, now atomic.Int64
}

func newCounter(t testing.TB, edge string) *counter {
	n := new(counter)
	n.address = tunneltest.Serve(t, func(c *net.TCPConn) {
		n.come.Add(1)
		n.now.Add(1)
		defer n.now.Add(-1)
		d, err := net.Dial("tcp", edge)
		if err != nil {
			c.SetLinger(0)
			return
		}
		defer d.Close()
		tunnel.Relay(context.Background(), c, d.(tunnel.Conn), 0)
	})
	return n
}

// keeps polls until so many connections are kept.
func keeps(t testing.TB, l *link, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d connections are kept, at last %d", want, l.pool.size()), func() bool { return l.pool.size() == want })
}

// says is exchange with an echo.
func says(t testing.TB, address, text string) {
	t.Helper()
	if got, err := exchange(t, address, text); err != nil || got != text {
		t.Fatalf("%d bytes are said: got %d, %v", len(text), len(got), err)
	}
}

// hold makes connections of programs that stay, and returns a function that ends them.
func hold(t testing.TB, address string, count int) (end func()) {
	t.Helper()
	var all []net.Conn
	for range count {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "x")
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return func() {
		t.Helper()
		for _, c := range all {
			c.(*net.TCPConn).CloseWrite()
			if _, err := io.Copy(io.Discard, c); err != nil {
				t.Error(err)
			}
			c.Close()
		}
	}
}

// Programs that come one after the other have one connection, also where others are ready from the start.
func TestProgramsShareConnection(t *testing.T) {
	ca := tunneltest.NewCA(t)
	for _, secure := range []bool{false, true} {
		for _, pool := range []int{0, 2} {
			t.Run(fmt.Sprintf("tls=%v pool=%d", secure, pool), func(t *testing.T) {
				tunneltest.NoLeaks(t)
				transport := again()
				if secure {
					transport = append(secured(t, ca), transport...)
				}
				n := newCounter(t, newEdge(t, transport, tunneltest.Echo(t)).address)
				address, l := startClient(t, &Tunnel{Remote: n.address, Dialer: new(tunnel.Dialer), Transport: transport, Pool: pool, Reuse: time.Minute})
				keeps(t, l, pool)
				for i := range 50 {
					says(t, address, strings.Repeat("x", i*1000))
					eventually(t, "the connection is kept", func() bool { return l.pool.size() > 0 })
				}
				if come := n.come.Load(); pool == 0 && come != 1 || pool > 0 && come > int64(pool)+2 {
					t.Errorf("there were %d connections", come)
				}
				if s := l.client.Status()[0]; s.Total != 50 || s.LastError != "" {
					t.Errorf("the status is %+v", s)
				}
				eventually(t, "the status has all bytes", func() bool {
					s := l.client.Status()[0]
					return s.Open == 0 && s.Sent == 49*50*500 && s.Received == s.Sent
				})
			})
		}
	}
}

// secured is TLS for both sides.
func secured(t testing.TB, ca *tunneltest.CA) tunnel.Transport {
	for _, all := range tunneltest.Transports(t, ca) {
		if all.Name == "tls" {
			return all.Client
		}
	}
	t.Fatal("there is no tls")
	return nil
}

// Of many that end together some are kept, and these end by themselves.
func TestKeptConnectionsAreFewAndEnd(t *testing.T) {
	for _, pool := range []int{0, 3} {
		t.Run(fmt.Sprint("pool=", pool), func(t *testing.T) {
			tunneltest.NoLeaks(t)
			n := newCounter(t, newEdge(t, again(), tunneltest.Echo(t)).address)
			address, l := startClient(t, &Tunnel{Remote: n.address, Dialer: new(tunnel.Dialer), Transport: again(), Pool: pool, Reuse: 1500 * time.Millisecond})
			keeps(t, l, pool)
			end := hold(t, address, 3*maxKept)
			keeps(t, l, pool)
			most := 0
			enough := make(chan struct{})
			var looking sync.WaitGroup
			looking.Go(func() {
				for {
					most = max(most, l.pool.size())
					select {
					case <-enough:
						return
					case <-time.After(100 * time.Microsecond):
					}
				}
			})
			begin := time.Now()
			end()
			eventually(t, "they are kept, and end", func() bool {
				return l.client.Status()[0].Open == 0 && l.pool.size() == pool && n.now.Load() == int64(pool)
			})
			if took := time.Since(begin); took < 1500*time.Millisecond || took > 10*time.Second {
				t.Errorf("they end after %v", took)
			}
			close(enough)
			looking.Wait()
			if most < maxKept || most > maxKept+pool {
				t.Errorf("%d are kept, want %d", most, maxKept)
			}
			says(t, address, "hello")
		})
	}
}

// Who wants none kept has none.
func TestNothingIsKept(t *testing.T) {
	tunneltest.NoLeaks(t)
	n := newCounter(t, newEdge(t, again(), tunneltest.Echo(t)).address)
	address, l := startClient(t, &Tunnel{Remote: n.address, Dialer: new(tunnel.Dialer), Transport: ws()})
	for i := range 5 {
		says(t, address, "hello")
		if size := l.pool.size(); size > 0 || n.come.Load() != int64(i+1) {
			t.Fatalf("%d are kept, after %d connections", size, n.come.Load())
		}
	}
	eventually(t, "all have ended", func() bool { return n.now.Load() == 0 })
}

// A connection that a program has cut, or that has carried nothing to the end, is none for the next.
func TestCutConnectionsAreNotKept(t *testing.T) {
	tunneltest.NoLeaks(t)
	target := tunneltest.Serve(t, func(c *net.TCPConn) {
		b := make([]byte, 1)
		if io.ReadFull(c, b); b[0] == '!' {
			c.SetLinger(0)
			return
		}
		c.Write(b)
		io.Copy(io.Discard, c)
	})
	n := newCounter(t, newEdge(t, again(), target).address)
	address, l := startClient(t, &Tunnel{Remote: n.address, Dialer: new(tunnel.Dialer), Transport: again(), Reuse: time.Minute})
	for i, first := range []string{"!", "x"} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, first)
		if _, err = c.Read(make([]byte, 1)); first == "x" && err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		eventually(t, "the tunnel is over", func() bool { return l.client.Status()[0].Open == 0 && n.now.Load() == 0 })
		if size := l.pool.size(); size > 0 || n.come.Load() != int64(i+1) {
			t.Errorf("%q: %d are kept, after %d connections", first, size, n.come.Load())
		}
	}
}

// chooses is what programs speak that name their target in a line.
type chooses struct{ chooser }

func (chooses) Server(_ context.Context, c tunnel.Conn, info *tunnel.Info) (tunnel.Conn, error) {
	var line []byte
	for b := make([]byte, 1); ; line = append(line, b[0]) {
		if _, err := c.Read(b); err != nil {
			return nil, err
		}
		if b[0] == '\n' {
			break
		}
	}
	info.Target = string(line)
	return c, nil
}

// Each program gets to its own target, whoever had the connection before.
func TestKeptConnectionsHaveTheirOwnTargets(t *testing.T) {
	named := func(name string) string {
		return tunneltest.Serve(t, func(c *net.TCPConn) {
			got, err := io.ReadAll(c)
			if err != nil {
				t.Errorf("target %s: %v", name, err)
			}
			fmt.Fprintf(c, "%s got %s", name, got)
		})
	}
	targets := map[string]string{"a": named("a"), "b": named("b"), "c": named("c")}
	for _, pool := range []int{0, 1} {
		t.Run(fmt.Sprint("pool=", pool), func(t *testing.T) {
			tunneltest.NoLeaks(t)
			e := newEdge(t, again(), "127.0.0.1:1")
			e.stop()
			e.forwarder.Dial = func(ctx context.Context, info *tunnel.Info) (tunnel.Conn, error) {
				if info.Target == "" {
					t.Error("the edge's own target is dialed")
				}
				return new(tunnel.Dialer).Dial(ctx, info.Target)
			}
			e.start()
			n := newCounter(t, e.address)
			address, l := startClient(t, &Tunnel{Remote: n.address, Dialer: new(tunnel.Dialer), Transport: again(),
				Accept: tunnel.Transport{chooses{}}, Chooses: true, Pool: pool, Reuse: time.Minute})
			keeps(t, l, pool)
			for i := range 30 {
				name := string(rune('a' + i*i%3))
				text := fmt.Sprint("text ", i)
				got, err := exchange(t, address, targets[name]+"\n"+text)
				if err != nil || got != name+" got "+text {
					t.Fatalf("program %d: %q, %v", i, got, err)
				}
				eventually(t, "the connection is kept", func() bool { return l.pool.size() > 0 })
			}
			if come := n.come.Load(); come > int64(2*pool+1) {
				t.Errorf("there were %d connections", come)
			}

			// Many at once, which mix.
			var all sync.WaitGroup
			for i := range 40 {
				all.Go(func() {
					name := string(rune('a' + i%3))
					text := fmt.Sprint("text ", i)
					if got, err := exchange(t, address, targets[name]+"\n"+text); err != nil || got != name+" got "+text {
						t.Errorf("program %d: %q, %v", i, got, err)
					}
				})
			}
			all.Wait()

			// A target that is not there costs its program only.
			if got, err := exchange(t, address, "127.0.0.1:1\nhello"); err == nil {
				t.Errorf("from nobody: %q", got)
			}
			if got, err := exchange(t, address, targets["c"]+"\nhello"); err != nil || got != "c got hello" {
				t.Errorf("behind nobody: %q, %v", got, err)
			}
		})
	}
}

// deliveries is a target that notes what it gets on each connection.
type deliveries struct {
	mu  sync.Mutex
	all []string
}

func (d *deliveries) serve(c *net.TCPConn) {
	got, err := io.ReadAll(c)
	d.mu.Lock()
	d.all = append(d.all, string(got))
	d.mu.Unlock()
	if err == nil {
		c.Write(got)
	}
}

// of counts the connections on which text has come.
func (d *deliveries) of(text string) (count int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, got := range d.all {
		if got == text {
			count++
		}
	}
	return count
}

// An edge that dies, or ends, between two programs, or at any step of the second, costs that another try, and every byte arrives once.
func TestEdgeRestartsBetweenTwoPrograms(t *testing.T) {
	t.Parallel()
	noise := make([]byte, 20<<10)
	rand.Read(noise)
	nothing := func() {}
	for name, die := range map[string]func(*testing.T, *edge, *gate) (then func()){
		"while nobody is there": func(_ *testing.T, e *edge, _ *gate) func() {
			e.restart()
			return nothing
		},
		"hangs up unheard": func(_ *testing.T, e *edge, g *gate) func() { // its Close and the dial pass each other
			release, _ := g.hold(fromEdge)
			e.restart()
			return release
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
		for pool, size := range []int{len(noise), 100, len(noise)} { // the short one goes along with the word that takes the connection
			t.Run(fmt.Sprintf("%s, pool=%d, %d bytes", name, pool, size), func(t *testing.T) {
				t.Parallel()
				text := string(noise[:size])
				got := new(deliveries)
				e := newEdge(t, again(), tunneltest.Serve(t, got.serve))
				g := newGate(t, e.address)
				address, l := startClient(t, &Tunnel{Remote: g.address, Dialer: new(tunnel.Dialer), Transport: again(), Pool: pool, Wait: patience, Reuse: time.Minute})
				says(t, address, "first")
				eventually(t, "a connection is kept", func() bool {
					l.pool.mu.Lock()
					defer l.pool.mu.Unlock()
					return slices.ContainsFunc(l.pool.idle, func(r *ready) bool { return r.born.IsZero() })
				})

				then := die(t, e, g)
				answer := make(chan string, 1)
				go func() {
					got, err := exchange(t, address, text)
					answer <- got + errorText(err)
				}()
				eventually(t, "the second program is there", func() bool { return l.stats.total.Load() > 1 })
				then()

				if got := <-answer; got != text {
					t.Errorf("got %d bytes: %.100q", len(got), got)
				}
				// Where the edge's word is lost, it may have delivered already: to rule that out would cost a round trip each time.
				if n := got.of(text); n != 1 && !(name == "before it is heard" && n == 2) {
					t.Errorf("the target has got it %d times", n)
				}
				says(t, address, "third")
			})
		}
	}
}

// What an edge says in place of "open" on a kept connection, that is: Close, or nothing any more, leaves the program where it would
// be without; it hears of a target that is not there.
func TestEdgeEndsWhenItIsTakenAgain(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		first error // of the dial for the second tunnel
		want  string
	}{
		"hangs up":     {tunnel.ErrNotTaken, "hello"},
		"shuts down":   {tunnel.ErrDrained, "hello"},
		"no target":    {&tunnel.TargetError{Reason: tunnel.ReasonRefused, Err: errors.New("nobody there")}, "a reset"},
		"no place":     {&tunnel.TargetError{Reason: tunnel.ReasonBusy, Err: errors.New("full")}, "a reset"},
		"says nothing": {nil, "hello"}, // is cut
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			echo := tunneltest.Echo(t)
			e := newEdge(t, again(), echo)
			e.stop()
			var dials atomic.Int64
			e.forwarder.Dial = func(ctx context.Context, info *tunnel.Info) (tunnel.Conn, error) {
				if dials.Add(1) == 2 {
					if test.first != nil {
						return nil, test.first
					}
					<-ctx.Done()
					return nil, context.Cause(ctx)
				}
				return new(tunnel.Dialer).Dial(ctx, echo)
			}
			e.start()
			g := newGate(t, e.address)
			address, l := startClient(t, &Tunnel{Remote: g.address, Dialer: new(tunnel.Dialer), Transport: again(), Wait: patience, Reuse: time.Minute})
			says(t, address, "first")
			keeps(t, l, 1)
			answer := make(chan string, 1)
			go func() {
				got, err := exchange(t, address, "hello")
				if err != nil {
					got = "a reset"
				}
				answer <- got
			}()
			if test.first == nil {
				eventually(t, "the edge dials", func() bool { return dials.Load() == 2 })
				_, lose := g.hold(toEdge)
				_, lose2 := g.hold(fromEdge)
				c := make(chan struct{})
				go func() { defer close(c); e.stop() }()
				lose()
				lose2()
				<-c
				e.start()
			}
			if got := <-answer; got != test.want {
				t.Errorf("the second program gets %q, want %q", got, test.want)
			}
			says(t, address, "third")
		})
	}
}

// Programs, many at a time, while the edge comes and goes and kept connections run out: each byte that is answered is answered once.
func TestKeptConnectionsInTurmoil(t *testing.T) {
	tunneltest.NoLeaks(t)
	e := newEdge(t, again(), tunneltest.Echo(t))
	address, l := startClient(t, &Tunnel{Remote: e.address, Dialer: new(tunnel.Dialer), Transport: again(), Wait: patience, Reuse: 30 * time.Millisecond})
	enough := make(chan struct{})
	var turmoil, programs sync.WaitGroup
	turmoil.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-enough:
				return
			case <-time.After(15 * time.Millisecond):
			}
			if n%3 == 0 {
				e.restart()
			} else {
				l.networkChanged(netwatch.Change{Routes: true})
			}
		}
	})
	var cut atomic.Int64
	for i := range 6 {
		programs.Go(func() {
			for n := range 40 {
				text := strings.Repeat(fmt.Sprintf("%d.%d ", i, n), 1+n*50)
				got, err := exchange(t, address, text)
				if err != nil { // a tunnel that was open
					cut.Add(1)
				} else if got != text {
					t.Errorf("%d bytes are said, %d come back", len(text), len(got))
				}
				time.Sleep(time.Duration(n%4) * 10 * time.Millisecond)
			}
		})
	}
	programs.Wait()
	close(enough)
	turmoil.Wait()
	t.Logf("%d of 240 tunnels were cut", cut.Load())
	says(t, address, "hello")
	keeps(t, l, 0)
}

// Another tunnel in its place, and another network, leave nothing of what is kept.
func TestKeptConnectionsAreDropped(t *testing.T) {
	for name, drop := range map[string]func(*testing.T, *link){
		"another key": func(t *testing.T, l *link) {
			next := *l.Tunnel
			next.Key = "another"
			if err := l.client.Apply(t.Context(), []*Tunnel{&next}); err != nil {
				t.Fatal(err)
			}
		},
		"no tunnel": func(t *testing.T, l *link) {
			if err := l.client.Apply(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
		},
		"another route": func(t *testing.T, l *link) { l.client.networkChanged(netwatch.Change{Routes: true}) },
		"sleep":         func(t *testing.T, l *link) { l.client.networkChanged(netwatch.Change{Slept: time.Hour}) },
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			n := newCounter(t, newEdge(t, again(), tunneltest.Echo(t)).address)
			address, l := startClient(t, &Tunnel{Remote: n.address, Dialer: new(tunnel.Dialer), Transport: again(), Reuse: time.Minute})
			end := hold(t, address, 4)
			still := hold(t, address, 1)
			end()
			keeps(t, l, 4)

			drop(t, l)

			keeps(t, l, 0)
			eventually(t, "they are closed", func() bool { return n.now.Load() == 1 })
			still() // what goes on is kept only where the tunnel is still there
			if name == "another key" || name == "no tunnel" {
				eventually(t, "the last is closed", func() bool { return n.now.Load() == 0 })
			} else {
				keeps(t, l, 1)
			}
			if size := l.pool.size(); name == "no tunnel" && size != 0 {
				t.Errorf("%d are kept", size)
			}
			if name != "no tunnel" {
				says(t, address, "hello")
			}
		})
	}
}

// Addresses that come and go elsewhere are no reason to give up what is kept.
func TestKeptConnectionsOfAnotherAddressStay(t *testing.T) {
	e := newEdge(t, again(), tunneltest.Echo(t))
	address, l := startClient(t, &Tunnel{Remote: e.address, Dialer: new(tunnel.Dialer), Transport: again(), Reuse: time.Minute})
	says(t, address, "hello")
	keeps(t, l, 1)
	before := l.pool.idle[0].bare
	l.client.networkChanged(netwatch.Change{Addresses: true})
	says(t, address, "hello")
	keeps(t, l, 1)
	if after := l.pool.idle[0].bare; after != before {
		t.Errorf("kept was the connection from %v, and then that from %v", before.LocalAddr(), after.LocalAddr())
	}
}

// A kept connection that has been found dead is none for the next program.
func TestKeptConnectionsAreGuarded(t *testing.T) {
	n := newCounter(t, newEdge(t, again(), tunneltest.Echo(t)).address)
	address, l := startClient(t, &Tunnel{Remote: n.address, Dialer: new(tunnel.Dialer), Transport: again(), Reuse: time.Minute})
	guard := &l.client.guard
	only := func() *watched {
		guard.mu.Lock()
		defer guard.mu.Unlock()
		if len(guard.all) != 1 {
			t.Fatalf("%d connections are watched", len(guard.all))
		}
		for w := range guard.all {
			return w
		}
		return nil
	}
	says(t, address, "hello")
	keeps(t, l, 1)
	w := only()
	guard.mu.Lock()
	if w.session != nil || !w.spare {
		t.Error("it is watched as if it were used")
	}
	guard.end(w, ErrForgotten)
	guard.mu.Unlock()
	keeps(t, l, 0)

	// One that is found dead while a program waits for it costs that no more than another connection.
	says(t, address, "hello")
	keeps(t, l, 1)
	w = only()
	r := l.pool.take()
	l.pool.mu.Lock()
	l.pool.idle = append(l.pool.idle, r)
	l.pool.mu.Unlock()
	guard.mu.Lock()
	w.dead = ErrForgotten // by now
	r.declareDead(ErrForgotten)
	guard.mu.Unlock()
	says(t, address, "hello")
	if s := l.client.Status()[0]; s.LastError != "" || n.come.Load() != 3 {
		t.Errorf("the status says %q, after %d connections", s.LastError, n.come.Load())
	}
}

// The end of a client is not held up by what is kept, nor by an edge that says nothing any more.
func TestClientEndsWithKeptConnections(t *testing.T) {
	for _, isSilent := range []bool{false, true} {
		t.Run(fmt.Sprint("silent=", isSilent), func(t *testing.T) {
			tunneltest.NoLeaks(t)
			g := newGate(t, newEdge(t, again(), tunneltest.Echo(t)).address)
			c := &Client{Alone: true}
			if err := c.Apply(t.Context(), []*Tunnel{{Listen: []string{"127.0.0.1:0"}, Remote: g.address, Dialer: new(tunnel.Dialer), Transport: again(), Reuse: time.Hour, Drain: time.Minute}}); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- c.Run(ctx) }()
			address, l := c.doors["127.0.0.1:0"].Addr().String(), c.links[0]
			hold(t, address, 10)()
			keeps(t, l, 10)
			if isSilent {
				release, _ := g.hold(fromEdge)
				defer release()
			}
			begin := time.Now()
			stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took > 3*time.Second || l.pool.size() > 0 {
				t.Errorf("it ends after %v, and %d are kept", took, l.pool.size())
			}
			if len(c.guard.all) > 0 {
				t.Errorf("%d connections are still watched", len(c.guard.all))
			}
		})
	}
}

// A client for one program alone keeps nothing.
func TestHandleKeepsNothing(t *testing.T) {
	tunneltest.NoLeaks(t)
	n := newCounter(t, newEdge(t, again(), tunneltest.Echo(t)).address)
	c := &Client{Alone: true}
	if err := c.Apply(t.Context(), []*Tunnel{{Remote: n.address, Dialer: new(tunnel.Dialer), Transport: again(), Reuse: time.Hour}}); err != nil {
		t.Fatal(err)
	}
	local, accepted := tunneltest.Pair(t)
	ended := make(chan error, 1)
	go func() { ended <- c.Handle(t.Context(), accepted) }()
	local.SetDeadline(time.Now().Add(patience))
	io.WriteString(local, "hello")
	local.CloseWrite()
	if got, err := io.ReadAll(local); err != nil || !bytes.Equal(got, []byte("hello")) {
		t.Errorf("got %q, %v", got, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	eventually(t, "the connection is closed", func() bool { return n.now.Load() == 0 })
}

// An edge that knows nothing of it, or wants none of it, is used as ever.
func TestEdgeThatDoesNotWaitAgain(t *testing.T) {
	ca := tunneltest.NewCA(t)
	for name, transport := range map[string]tunnel.Transport{"tcp": nil, "tls": secured(t, ca)} {
		t.Run(name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			n := newCounter(t, newEdge(t, transport, tunneltest.Echo(t)).address)
			address, l := startClient(t, &Tunnel{Remote: n.address, Dialer: new(tunnel.Dialer), Transport: transport, Reuse: time.Minute})
			for range 3 {
				says(t, address, "hello")
			}
			eventually(t, "all have ended", func() bool { return n.now.Load() == 0 })
			if l.pool.size() != 0 || n.come.Load() != 3 {
				t.Errorf("%d are kept, after %d connections", l.pool.size(), n.come.Load())
			}
		})
	}
}
