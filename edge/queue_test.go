package edge

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// Whoever waits longest is the next, who has gone is passed over, and no more wait than there are places.
func TestPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p places
		for range 3 {
			if turn, err := p.enter(3, true); turn != nil || err != nil {
				t.Fatalf("%v, %v, want a place", turn, err)
			}
		}
		ctx, leave := context.WithCancelCause(t.Context())
		var mu sync.Mutex
		var came []int
		for n := range 3 {
			turn, err := p.enter(3, true)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				waiting := t.Context()
				if n == 1 {
					waiting = ctx
				}
				placed, err := p.await(waiting, turn)
				if n == 1 && err != io.ErrClosedPipe || n != 1 && !placed {
					t.Errorf("visitor %d: %v, %v", n, placed, err)
				}
				if placed {
					mu.Lock()
					came = append(came, n)
					mu.Unlock()
				}
			}()
		}
		if _, err := p.enter(3, true); err != ErrRouteFull {
			t.Errorf("a fourth that waits: %v", err)
		}
		leave(io.ErrClosedPipe)
		synctest.Wait()
		for range 2 {
			p.give()
			synctest.Wait()
		}
		if !slices.Equal(came, []int{0, 2}) || p.taken != 3 || len(p.turns) != 0 {
			t.Errorf("came were %v, taken are %d places, %d wait", came, p.taken, len(p.turns))
		}
		if _, err := p.enter(3, false); err != ErrRouteFull {
			t.Errorf("one who does not wait: %v", err)
		}
		last, err := p.enter(3, true)
		if err != nil {
			t.Fatal(err)
		}
		p.give() // to one that has not looked yet
		p.leave(last)
		if p.taken != 2 {
			t.Errorf("taken are %d places, want 2", p.taken)
		}
		turn, err := p.enter(1, true)
		if err != nil {
			t.Fatal(err)
		}
		p.look()
		if placed, err := p.await(t.Context(), turn); placed || err != nil {
			t.Errorf("after a change: %v, %v, want another question", placed, err)
		}
	})
}

// queueing is an edge with one route for a single tunnel, and a second visitor who may wait for it.
type queueing struct {
	*running
	way    string // ws, wss or raw
	config *Config
	open   func() (tunnel.Conn, error)
}

// eachWay tests a route with HTTP, with and without TLS, and one without HTTP.
func eachWay(t *testing.T, timeout time.Duration, test func(t *testing.T, q *queueing)) {
	ca := tunneltest.NewCA(t)
	for _, way := range []string{"ws", "wss", "raw"} {
		t.Run(way, func(t *testing.T) {
			site := testSite(t, ca, "edge.test")
			route := &Route{Path: "/tunnel", Target: tunneltest.Echo(t), Limit: 1, Queue: true}
			if site.Routes = []*Route{route}; way == "raw" {
				site.Raw = route
			}
			c := &Config{Listeners: []Listener{{Address: "127.0.0.1:0", Plain: way == "ws"}}, Sites: []*Site{site}, Timeout: timeout}
			q := &queueing{running: run(t, c), way: way, config: c}
			layers := tunnel.Transport{clientTLS(ca, "edge.test"), &tunnel.WebSocket{Host: "edge.test", Path: "/tunnel"}}
			switch way {
			case "ws":
				layers = layers[1:]
			case "raw":
				layers = layers[:1]
			}
			q.open = func() (tunnel.Conn, error) {
				bare, err := connectFrom("127.0.0.1", q.address)
				if err != nil {
					return nil, err
				}
				t.Cleanup(func() { bare.Close() })
				bare.SetDeadline(time.Now().Add(patience))
				c, err := layers.Client(t.Context(), bare)
				if err == nil {
					err = isEcho(c)
				}
				return c, err
			}
			test(t, q)
		})
	}
}

// first opens the one tunnel that there may be.
func (q *queueing) first(t *testing.T) tunnel.Conn {
	t.Helper()
	c, err := q.open()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// second is a visitor who waits.
func (q *queueing) second(t *testing.T) <-chan error {
	t.Helper()
	ended := make(chan error, 1)
	go func() {
		c, err := q.open()
		if err == nil {
			c.Close()
		}
		ended <- err
	}()
	q.waiting(t, 1)
	return ended
}

// waiting polls until so many wait.
func (q *queueing) waiting(t *testing.T, want int) {
	t.Helper()
	within(t, patience, fmt.Sprintf("%d wait", want), func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		n := 0
		for _, p := range q.counts {
			p.mu.Lock()
			n += len(p.turns)
			p.mu.Unlock()
		}
		return n == want
	})
}

// refusals polls until so many visitors are counted who found the route full.
func (q *queueing) refusals(t *testing.T, want float64) {
	t.Helper()
	within(t, patience, fmt.Sprintf("%v refusals are counted", want), func() bool { return q.refused(t) == want })
}

func (q *queueing) refused(t *testing.T) float64 {
	t.Helper()
	families, err := q.Metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "raimon_refusals_total" && m.GetLabel()[0].GetValue() == "route" {
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatal("there is no such metric")
	return 0
}

// One waits, who comes after it is refused, and it is the next.
func TestRouteQueue(t *testing.T) {
	tunneltest.NoLeaks(t)
	eachWay(t, time.Minute, func(t *testing.T, q *queueing) {
		first := q.first(t)
		second := q.second(t)
		if _, err := q.open(); err == nil {
			t.Error("a third was served")
		}
		q.refusals(t, 1)
		first.Close()
		if err := <-second; err != nil {
			t.Errorf("the second, when there is a place: %v", err)
		}
		q.refusals(t, 1)
	})
}

// Whoever has waited for the time of a handshake is refused.
func TestRouteQueueEndsInTime(t *testing.T) {
	tunneltest.NoLeaks(t)
	eachWay(t, 300*time.Millisecond, func(t *testing.T, q *queueing) {
		first := q.first(t)
		begin := time.Now()
		err := <-q.second(t)
		var refused *tunnel.UpgradeError
		if err == nil || q.way != "raw" && (!errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable) {
			t.Errorf("the second: %v, want 503 or the end", err)
		}
		if took := time.Since(begin); took < 300*time.Millisecond || took > 5*time.Second {
			t.Errorf("it has waited for %v", took)
		}
		q.refusals(t, 1)
		if err := isEcho(first); err != nil {
			t.Errorf("the first: %v", err)
		}
	})
}

// The time that a visitor has waited is not taken from the dial.
func TestRouteQueueLeavesTimeForTheDial(t *testing.T) {
	tunneltest.NoLeaks(t)
	eachWay(t, time.Second, func(t *testing.T, q *queueing) {
		var dials atomic.Int32
		slow := *q.config
		slow.Dial = func(ctx context.Context, address string) (tunnel.Conn, error) {
			if dials.Add(1) == 2 {
				select {
				case <-time.After(600 * time.Millisecond):
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			return new(tunnel.Dialer).Dial(ctx, address)
		}
		if err := q.Apply(t.Context(), &slow); err != nil {
			t.Fatal(err)
		}
		first := q.first(t)
		second := q.second(t)
		time.AfterFunc(600*time.Millisecond, func() { first.Close() })
		if err := <-second; err != nil {
			t.Errorf("the second: %v", err)
		}
	})
}

// A visitor who leaves gives its turn up, and is not counted as refused.
func TestRouteQueueIsLeft(t *testing.T) {
	tunneltest.NoLeaks(t)
	target := tunneltest.Echo(t)
	c := &Config{
		Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}}, Timeout: time.Minute,
		Sites: []*Site{{Routes: []*Route{{Path: "/tunnel", Target: target, Limit: 1, Queue: true}}}},
	}
	for name, reset := range map[string]bool{"an end": false, "a reset": true} {
		t.Run(name, func(t *testing.T) {
			q := &queueing{running: run(t, c), config: c}
			w := &tunnel.WebSocket{Host: "edge.test", Path: "/tunnel"}
			first, err := w.Client(t.Context(), dialFrom(t, "127.0.0.1", q.address))
			if err != nil {
				t.Fatal(err)
			}
			second := dialFrom(t, "127.0.0.1", q.address)
			go w.Client(t.Context(), second)
			q.waiting(t, 1)
			if reset {
				second.SetLinger(0)
			}
			second.Close()
			q.waiting(t, 0)
			q.refusals(t, 0)
			first.Close()
			within(t, patience, "there is a place again", func() bool {
				c, err := w.Client(t.Context(), dialFrom(t, "127.0.0.1", q.address))
				return err == nil && isEcho(c) == nil
			})
		})
	}
}

// A connection without HTTP that is reset while it waits keeps nothing when its turn has come.
func TestRawQueueIsLeft(t *testing.T) {
	tunneltest.NoLeaks(t)
	c := &Config{
		Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}}, Timeout: time.Minute,
		Sites: []*Site{{Raw: &Route{Target: tunneltest.Echo(t), Limit: 1, Queue: true}}},
	}
	q := &queueing{running: run(t, c), config: c}
	first, second := dialFrom(t, "127.0.0.1", q.address), dialFrom(t, "127.0.0.1", q.address)
	q.waiting(t, 1)
	for _, c := range []*net.TCPConn{second, first} {
		c.SetLinger(0)
		c.Close()
	}
	within(t, patience, "there is a place again", func() bool {
		_, err := echoFrom(t, "127.0.0.1", q.address)
		return err == nil
	})
}

// Those who wait go by the config as it is: a larger limit lets them in, and who may no longer enter is turned away.
func TestRouteQueueAcrossReloads(t *testing.T) {
	tunneltest.NoLeaks(t)
	for name, test := range map[string]struct {
		change       func(*Site, *Route)
		ends         bool // the first tunnel, then
		ws, wss, raw string
	}{
		"nothing":        {func(*Site, *Route) {}, true, "tunnel", "tunnel", "tunnel"},
		"a larger limit": {func(_ *Site, r *Route) { r.Limit = 2 }, false, "tunnel", "tunnel", "tunnel"},
		"no limit":       {func(_ *Site, r *Route) { r.Limit = 0 }, false, "tunnel", "tunnel", "tunnel"},
		"no queue":       {func(_ *Site, r *Route) { r.Queue = false }, false, "503", "503", "end"},
		"no access":      {func(_ *Site, r *Route) { r.Access.From = []netip.Prefix{} }, false, "404", "404", "end"},
		"another path":   {func(_ *Site, r *Route) { r.Path = "/other" }, false, "404", "404", "tunnel"}, // raw has none
		"another kind":   {func(s *Site, _ *Route) { s.Raw, s.Routes, s.Pass = nil, nil, "127.0.0.1:1" }, false, "404", "421", "end"},
	} {
		t.Run(name, func(t *testing.T) {
			eachWay(t, time.Minute, func(t *testing.T, q *queueing) {
				first := q.first(t)
				second := q.second(t)
				next, site, route := *q.config, *q.config.Sites[0], *q.config.Sites[0].Routes[0]
				site.Routes = []*Route{&route}
				if site.Raw != nil {
					site.Raw = &route
				}
				test.change(&site, &route)
				next.Sites = []*Site{&site}
				if err := q.Apply(t.Context(), &next); err != nil {
					t.Fatal(err)
				}
				if test.ends {
					q.waiting(t, 1)
					first.Close()
				}
				got, want := "tunnel", map[string]string{"ws": test.ws, "wss": test.wss, "raw": test.raw}[q.way]
				err := <-second
				var refused *tunnel.UpgradeError
				switch {
				case errors.As(err, &refused):
					got = strconv.Itoa(refused.Status)
				case err != nil:
					got = "end"
				}
				if got != want {
					t.Errorf("the second: %s (%v), want %s", got, err, want)
				}
			})
		})
	}
}

// The end of the edge is the end of waiting.
func TestRouteQueueEndsWithServer(t *testing.T) {
	tunneltest.NoLeaks(t)
	eachWay(t, time.Hour, func(t *testing.T, q *queueing) {
		q.first(t)
		second := q.second(t)
		q.stop()
		if err := <-second; err == nil {
			t.Error("the second was served at the end")
		}
		if n := q.refused(t); n != 0 {
			t.Errorf("%v refusals are counted", n)
		}
	})
}

// Who may not use a route learns nothing of how full it is: no wait, and the answer of the website.
func TestRouteQueueIsNotSeen(t *testing.T) {
	tokens, _ := newTokens(t, "alice "+HashToken("hers"))
	if err := tokens.Load(); err != nil {
		t.Fatal(err)
	}
	c := &Config{
		Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}}, Timeout: time.Minute,
		Sites: []*Site{{Routes: []*Route{{Path: "/tunnel", Target: tunneltest.Echo(t), Limit: 1, Queue: true, Access: Access{Tokens: tokens}}}}},
	}
	q := &queueing{running: run(t, c), config: c}
	w := &tunnel.WebSocket{Host: "edge.test", Path: "/tunnel", Token: func(context.Context) (string, error) { return "hers", nil }}
	q.open = func() (tunnel.Conn, error) { return w.Client(t.Context(), dialFrom(t, "127.0.0.1", q.address)) }
	answer := func(authorization string) string {
		t.Helper()
		c := dialFrom(t, "127.0.0.1", q.address)
		fmt.Fprintf(c, "GET /tunnel HTTP/1.1\r\nHost: edge.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n%s\r\n", authorization)
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		answer.Header.Del("Date")
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(answer.Status, answer.Header, string(body))
	}
	empty := answer("Authorization: Bearer his\r\n")
	if !strings.HasPrefix(empty, "404") {
		t.Fatalf("without a good token: %s", empty)
	}
	first := q.first(t)
	defer first.Close()
	second := q.second(t)
	for _, authorization := range []string{"", "Authorization: Bearer his\r\n"} {
		if full := answer(authorization); full != empty {
			t.Errorf("%q, with a queue: %s, want %s", authorization, full, empty)
		}
	}
	if got := answer("Authorization: Bearer hers\r\n"); !strings.HasPrefix(got, "503") { // as many wait as may
		t.Errorf("with a good token: %s, want 503", got)
	}
	q.waiting(t, 1)
	q.refusals(t, 1)
	first.Close()
	if err := <-second; err != nil {
		t.Error(err)
	}
}
