package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// reusing are ws and wss with every mask, over which the edge waits for the next tunnel when one has ended.
func reusing(t testing.TB) (all []tunneltest.Transport) {
	t.Helper()
	for _, tr := range tunneltest.Transports(t, tunneltest.NewCA(t)) {
		if last := len(tr.Client) - 1; strings.HasPrefix(tr.Name, "ws") {
			w := *tr.Client[last].(*tunnel.WebSocket)
			w.Reuse = true
			tr.Client = append(slices.Clone(tr.Client[:last]), &w)
			all = append(all, tr)
		}
	}
	return all
}

// bothKinds are one ws and one wss of them.
func bothKinds(t testing.TB) []tunneltest.Transport {
	t.Helper()
	return slices.DeleteFunc(reusing(t), func(tr tunneltest.Transport) bool { return !strings.HasSuffix(tr.Name, "-skip") })
}

// countedEdge is an edge that says what becomes of its connections.
type countedEdge struct {
	address                string
	accepted, opened, ends atomic.Int32
	ended                  chan error // of each connection
	drain                  context.CancelFunc
	cut                    context.CancelCauseFunc
}

// countEdge serves f until the test ends.
func countEdge(t testing.TB, f *tunnel.Forwarder) *countedEdge {
	t.Helper()
	l := tunneltest.Listen(t)
	draining, drain := context.WithCancel(context.Background())
	ctx, cut := context.WithCancelCause(context.Background())
	e := &countedEdge{address: l.Addr().String(), ended: make(chan error, 100), drain: drain, cut: cut}
	opened := f.Opened
	f.Opened = func(s *tunnel.Session) {
		e.opened.Add(1)
		if opened != nil {
			opened(s)
		}
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e.accepted.Add(1)
			all.Add(1)
			f.Start(ctx, draining, c.(*net.TCPConn), func(_ *tunnel.Session, err error) {
				e.ends.Add(1)
				e.ended <- err
				all.Done()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		drain()
		cut(nil)
		all.Wait()
		if n := e.ends.Load(); n != e.accepted.Load() {
			t.Errorf("%d connections have ended %d times", e.accepted.Load(), n)
		}
	})
	return e
}

// mustEnd waits for the end of one connection.
func (e *countedEdge) mustEnd(t testing.TB) error {
	t.Helper()
	select {
	case err := <-e.ended:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("the edge's session goes on")
		return nil
	}
}

// row is a client that uses its connection to the edge for one tunnel after the other.
type row struct {
	connect tunnel.Transport
	edge    string
	take    func(c tunnel.Conn) error // has the edge dial

	tunnel.Forwarder
	dials atomic.Int32
	kept  chan tunnel.Conn // the bare one, and that upon it
}

func newRow(tr tunnel.Transport, edge string) *row {
	r := &row{connect: tr, edge: edge, kept: make(chan tunnel.Conn, 2)}
	r.take = func(c tunnel.Conn) error { return tunnel.Take(c, "") }
	r.Open, r.Keep = r.open, r.keep
	return r
}

func (r *row) keep(_ *tunnel.Session, bare, c tunnel.Conn) bool {
	r.kept <- bare
	r.kept <- c
	return true
}

func (r *row) open(ctx context.Context, _ tunnel.Conn, _ *tunnel.Info) (bare, c tunnel.Conn, err error) {
	select {
	case bare = <-r.kept:
		c = <-r.kept
	default:
		r.dials.Add(1)
		if bare, err = dialTCP(r.edge)(ctx, nil); err != nil {
			return nil, nil, err
		}
		if c, err = r.connect.Client(ctx, bare); err != nil {
			return bare, nil, err
		}
	}
	if tunnel.Waiting(c) {
		err = r.take(c)
	}
	return bare, c, errors.Join(err, tunnel.AwaitOpen(c))
}

// carry has a program play its part, and returns when the connection to the edge is free again, or has ended.
func (r *row) carry(t testing.TB, program func(c tunnel.Conn) error) error {
	app, accepted := tunneltest.Pair(t)
	app.SetDeadline(time.Now().Add(60 * time.Second))
	ended := make(chan error, 1)
	go func() { ended <- r.Handle(context.Background(), accepted) }()
	err := program(app)
	app.Close()
	return errors.Join(err, <-ended)
}

// close ends a connection that has been kept.
func (r *row) close(t testing.TB) {
	t.Helper()
	select {
	case <-r.kept:
		(<-r.kept).Close()
	default:
		t.Error("no connection has been kept")
	}
}

// partInRow makes some tunnels empty, and others so large that the kernel moves what they carry.
func partInRow(number uint64) part {
	p := partOf(number)
	large := 2<<20 + rand.New(rand.NewPCG(number, 2)).IntN(6<<20)
	switch number % 10 {
	case 3, 6:
		p.request, p.reply = 0, 0
	case 4:
		p.request = large
	case 8:
		p.reply = large
	case 9:
		p.request, p.reply, p.style = large, large, together
	}
	return p
}

// traffic is what a tunnel has carried.
type traffic struct{ sent, received int64 }

func TestOneTunnelAfterTheOther(t *testing.T) {
	many := uint64(60)
	if tunnel.RaceEnabled || testing.Short() {
		many = 20
	}
	for _, tr := range reusing(t) {
		t.Run(tr.Name, func(t *testing.T) {
			tunneltest.Pair(t) // so that the poller's own descriptors exist before they are counted
			tunneltest.NoLeaks(t)
			if err := carryInRow(t, tr, 0, many); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestManyConnectionsInUseAgain(t *testing.T) {
	rows, many := uint64(16), uint64(20)
	if tunnel.RaceEnabled || testing.Short() {
		rows, many = 6, 10
	}
	for _, tr := range bothKinds(t) {
		t.Run(tr.Name, func(t *testing.T) {
			tunneltest.Pair(t)
			tunneltest.NoLeaks(t)
			var all sync.WaitGroup
			for number := range rows {
				all.Go(func() {
					if err := carryInRow(t, tr, 1000*number, many); err != nil {
						t.Errorf("connection %d: %v", number, err)
					}
				})
			}
			all.Wait()
		})
	}
}

// carryInRow carries parts from first on, one after the other, over one connection.
func carryInRow(t *testing.T, tr tunneltest.Transport, first, many uint64) error {
	parts, played := make(chan part, 1), make(chan error, 1)
	target := tunneltest.Serve(t, func(c *net.TCPConn) {
		c.SetDeadline(time.Now().Add(60 * time.Second))
		played <- (<-parts).target(c)
	})
	carried := make(chan traffic, 1)
	edge := countEdge(t, &tunnel.Forwarder{Accept: tr.Server, Dial: dialTCP(target), Timeout: -1,
		Again: func(ended, next *tunnel.Session) bool {
			carried <- traffic{ended.Sent(), ended.Received()}
			if info := next.Info(); info.Client != ended.Info().Client || info.Path != "/ws" || info.Target != "" {
				t.Errorf("the next tunnel begins with %+v", info)
			}
			return true
		}})
	r := newRow(tr.Client, edge.address)
	for number := first; number < first+many; number++ {
		p := partInRow(number)
		parts <- p
		if err := errors.Join(r.carry(t, p.app), <-played); err != nil {
			return fmt.Errorf("%d, %+v: %w", number, p, err)
		}
		if got, want := <-carried, (traffic{int64(p.request), int64(p.reply)}); got != want {
			return fmt.Errorf("%d: the edge has counted %v, want %v", number, got, want)
		}
	}
	if n := len(edge.ended); n > 0 {
		return fmt.Errorf("the edge's session has ended %d times while the connection was in use", n)
	}
	r.close(t)
	if err := edge.mustEnd(t); !errors.Is(err, tunnel.ErrNotTaken) {
		return fmt.Errorf("ends with %w", err)
	}
	if n := edge.accepted.Load(); n != 1 || r.dials.Load() != 1 {
		return fmt.Errorf("%d connections for %d tunnels", n, many)
	}
	if n := edge.opened.Load(); uint64(n) != many {
		return fmt.Errorf("opened is told of %d tunnels of %d", n, many)
	}
	return nil
}

// A connection whose edge waited at first, and one whose client has named a target at first, are used again as any other.
func TestAnyTargetAfterTheOther(t *testing.T) {
	tunneltest.NoLeaks(t)
	for _, wait := range []bool{false, true} {
		for _, tr := range reusing(t) {
			t.Run(fmt.Sprintf("%s-%v", tr.Name, wait), func(t *testing.T) {
				last := len(tr.Client) - 1
				client, server := *tr.Client[last].(*tunnel.WebSocket), *tr.Server[last].(*tunnel.WebSocket)
				client.Wait, client.Target, server.Targets = wait, "first:1", true
				tr.Client, tr.Server = append(slices.Clone(tr.Client[:last]), &client), append(slices.Clone(tr.Server[:last]), &server)
				dials := make(chan string, 1)
				echo := dialTCP(tunneltest.Echo(t))
				edge := countEdge(t, &tunnel.Forwarder{Accept: tr.Server, Dial: func(ctx context.Context, info *tunnel.Info) (tunnel.Conn, error) {
					dials <- info.Target
					if info.Target == tunnel.TargetEcho {
						return tunnel.NewEcho(), nil
					}
					return echo(ctx, info)
				}})
				r := newRow(tr.Client, edge.address)
				for i, tt := range []struct {
					take func(tunnel.Conn) error
					want string
				}{
					{func(c tunnel.Conn) error { return tunnel.Take(c, "") }, "first:1"},
					{func(c tunnel.Conn) error { return tunnel.Take(c, "[2001:db8::1]:22") }, "[2001:db8::1]:22"},
					{func(c tunnel.Conn) error { return tunnel.Take(c, "") }, ""}, // the edge's own
					{tunnel.Echo, tunnel.TargetEcho},
					{func(c tunnel.Conn) error { return tunnel.Take(c, "first:1") }, "first:1"},
				} {
					r.take = tt.take
					if err := r.carry(t, echoes(100_000)); err != nil {
						t.Fatalf("%d: %v", i, err)
					}
					if got := <-dials; got != tt.want {
						t.Errorf("%d: dials %q, want %q", i, got, tt.want)
					}
				}
				r.close(t)
				// It may be gone before the edge waits for it.
				if err := edge.mustEnd(t); err != nil && !errors.Is(err, tunnel.ErrNotTaken) || edge.accepted.Load() != 1 {
					t.Errorf("ends with %v, after %d connections", err, edge.accepted.Load())
				}
			})
		}
	}
}

// echoes is a program whose target sends everything back.
func echoes(size int) func(c tunnel.Conn) error {
	return func(c tunnel.Conn) error {
		sent := make(chan error, 1)
		go func() { sent <- tunneltest.SendRandomly(c, size, 1) }()
		err := tunneltest.Receive(c, size, 1)
		return errors.Join(err, <-sent)
	}
}
