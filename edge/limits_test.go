package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

func TestNetwork(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1:5":                   "192.0.2.1/32",
		"[::ffff:192.0.2.1]:5":          "192.0.2.1/32",
		"[2001:db8:1:2:3:4:5:6]:5":      "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff:4:5:6]:443": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:5":              "fe80::/64",
	} {
		a := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address))
		if got := network(a).String(); got != want {
			t.Errorf("%s counts as %s, want %s", address, got, want)
		}
	}
	for _, name := range []string{"", "/run/a", "@"} {
		if got := network(&net.UnixAddr{Name: name, Net: "unix"}); got != (netip.Prefix{}) {
			t.Errorf("a Unix socket counts as %v", got)
		}
	}
}

// prefix is the nth /64.
func prefix(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0xd, 0xb8, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), 64)
}

func TestRatePerAddress(t *testing.T) {
	var s addresses
	begin := time.Now()
	come := func(at time.Duration, rate int) error {
		g := &guest{network: prefix(1)}
		_, err := s.admit(g, Limits{Rate: rate}, begin.Add(at))
		s.leave(g)
		return err
	}
	for n := range 20 {
		if err := come(0, 10); err != nil {
			t.Fatalf("connection %d of the 20 at once: %v", n, err)
		}
	}
	for at, want := range []error{ErrRate, ErrRate, nil, ErrRate, nil} { // one more each 100 ms
		if err := come(time.Duration(at)*50*time.Millisecond, 10); err != want {
			t.Errorf("after %d ms: %v, want %v", at*50, err, want)
		}
	}
	if err := come(time.Second, 10); err != nil {
		t.Errorf("after a pause: %v", err)
	}
	if err := come(time.Second, 0); err != nil {
		t.Errorf("without a limit: %v", err)
	}
	if err := come(3*time.Second, 1); err != nil {
		t.Errorf("with another limit: %v", err)
	}
}

// What is remembered of a flood from many addresses is bounded, and forgotten.
func TestAddressesAreForgotten(t *testing.T) {
	const flood = 1_000_000
	var s addresses
	now := time.Now()
	l := Limits{PerAddress: 10, Rate: 1} // at 1 a second each of them is remembered for one
	heap := liveHeap()
	stays := &guest{network: prefix(flood + 1)}
	if _, err := s.admit(stays, l, now); err != nil {
		t.Fatal(err)
	}
	most := 0
	for n := range flood {
		now = now.Add(time.Microsecond)
		g := &guest{network: prefix(n)}
		if _, err := s.admit(g, l, now); err != nil {
			t.Fatalf("connection %d: %v", n, err)
		}
		s.leave(g)
		most = max(most, len(s.all))
	}
	if grown := int(liveHeap()) - int(heap); most > maxAbsent+1 || grown > 24<<20 {
		t.Errorf("%d addresses were remembered, in %d KiB; want at most %d, in 24 MiB", most, grown>>10, maxAbsent+1)
	}
	g := &guest{network: prefix(0)}
	if _, err := s.admit(g, l, now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if len(s.all) != 2 || s.absent != 0 {
		t.Errorf("a minute later %d addresses are remembered, %d of them absent; want the two that are here", len(s.all), s.absent)
	}
	if s.leave(stays); s.absent != 1 && len(s.all) != 1 {
		t.Errorf("%d addresses, %d absent", len(s.all), s.absent)
	}
}

func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Whoever came to hold a place only has to make room, after a moment.
func TestPlaceOfUndecided(t *testing.T) {
	var s addresses
	now := time.Now()
	l := Limits{PerAddress: 2}
	var cuts []int
	guests := make([]*guest, 5)
	for n := range guests {
		guests[n] = &guest{network: prefix(1), leaver: handshake(func() { cuts = append(cuts, n) })}
	}
	admit := func(n int, after time.Duration) error {
		leaving, err := s.admit(guests[n], l, now.Add(after))
		if leaving != nil {
			leaving.StopWaiting()
		}
		return err
	}
	for n, step := range []struct {
		err  error
		cuts []int
	}{
		{admit(0, 0), nil},
		{admit(1, 0), nil},
		{admit(2, handshakeGrace/2), nil},
		{admit(2, handshakeGrace), []int{0}},
	} {
		want := error(nil)
		if n == 2 {
			want = ErrPerAddress
		}
		if step.err != want {
			t.Fatalf("step %d: %v, want %v", n, step.err, want)
		}
	}
	if !slices.Equal(cuts, []int{0}) || s.settle(guests[0]) {
		t.Errorf("cut were %v, want the first, which is too late then", cuts)
	}
	for range 2 { // it is told of each request
		if !s.settle(guests[1]) {
			t.Error("the second has lost its place")
		}
	}
	if err := admit(3, 3*handshakeGrace); err != nil || !slices.Equal(cuts, []int{0, 2}) {
		t.Errorf("%v, cut were %v; want the one that has not asked for anything", err, cuts)
	}
	s.settle(guests[3])
	if err := admit(4, 9*handshakeGrace); err != ErrPerAddress {
		t.Errorf("with two that have decided: %v", err)
	}
	for _, g := range guests {
		s.leave(g)
		s.leave(g)
	}
	if len(s.all) != 0 || s.absent != 0 {
		t.Errorf("at the end %d addresses, %d absent", len(s.all), s.absent)
	}
}

// Limits that come and go do not disturb the count.
func TestAddressesAcrossReloads(t *testing.T) {
	var s addresses
	now := time.Now()
	before, within, after := &guest{network: prefix(1)}, &guest{network: prefix(1)}, &guest{network: prefix(1)}
	for _, step := range []struct {
		g    *guest
		l    Limits
		want error
	}{{before, Limits{}, nil}, {within, Limits{PerAddress: 2}, nil}, {after, Limits{PerAddress: 2}, ErrPerAddress}} {
		if _, err := s.admit(step.g, step.l, now); err != step.want {
			t.Fatalf("%v, want %v", err, step.want)
		}
	}
	s.leave(before)
	s.leave(after) // was never let in
	if _, err := s.admit(after, Limits{PerAddress: 2}, now); err != nil {
		t.Error(err)
	}
	if _, err := s.admit(before, Limits{PerAddress: 2}, now); err != ErrPerAddress {
		t.Error(err)
	}
	s.leave(within)
	s.leave(after)
	if len(s.all) != 0 {
		t.Errorf("%d addresses are left", len(s.all))
	}
}

// Many listeners let in as many as one, in either way of being full, and a larger limit is heard of at once.
func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r room
		var limits atomic.Pointer[Limits]
		limits.Store(&Limits{Connections: 3})
		now := func() Limits { return *limits.Load() }
		var inside atomic.Int64
		ctx, cancel := context.WithCancelCause(t.Context())
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if err := r.enter(ctx, now); err == nil {
					inside.Add(1)
				} else if err != io.ErrClosedPipe {
					t.Errorf("enter: %v", err)
				}
			})
		}
		expect := func(want int64, when string) {
			t.Helper()
			synctest.Wait()
			if n := inside.Load(); n != want || r.open != int(want) {
				t.Errorf("%s: %d are inside, %d counted; want %d", when, n, r.open, want)
			}
		}
		expect(3, "with a limit of 3")
		limits.Store(&Limits{Connections: 5})
		r.look()
		expect(5, "with a limit of 5")
		inside.Add(-2)
		r.leave()
		r.leave()
		expect(5, "when two have left")
		cancel(io.ErrClosedPipe)
		all.Wait()
		expect(5, "when the others have gone")

		limits.Store(&Limits{Connections: 5, Refuse: true})
		if err := r.enter(t.Context(), now); err != ErrFull {
			t.Errorf("enter: %v, want ErrFull", err)
		}
		limits.Store(&Limits{})
		if err := r.enter(t.Context(), now); err != nil {
			t.Errorf("without a limit: %v", err)
		}
	})
}

// plainEcho is a Config of two listeners without TLS, whose connections are echoed.
func plainEcho(t testing.TB, l Limits) *Config {
	return &Config{
		Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}, {Address: "127.0.0.2:0", Plain: true}},
		Sites:     []*Site{{Raw: &Route{Target: tunneltest.Echo(t)}}}, Limits: l,
	}
}

// echoFrom makes a connection from a loopback address, and has a few bytes echoed.
func echoFrom(t testing.TB, from, address string) (net.Conn, error) {
	c, err := connectFrom(from, address)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c, isEcho(c)
}

// isTurnedAway tells whether a connection is reset before it has said anything, which may be before the one who
// connects knows that it is there.
func isTurnedAway(t testing.TB, from, address string) bool {
	t.Helper()
	c, err := connectFrom(from, address)
	if err != nil {
		return true
	}
	defer c.Close()
	return wasReset(c)
}

// wasReset tells whether the peer of c has reset it.
func wasReset(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(patience))
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	return err != nil && err != io.EOF && !(errors.As(err, &timeout) && timeout.Timeout())
}

func TestConnectionsQueue(t *testing.T) {
	tunneltest.NoLeaks(t)
	c := plainEcho(t, Limits{Connections: 3})
	edge := run(t, c)
	other := edge.Listeners()["127.0.0.2:0"].Addr().String()
	var first []net.Conn
	for range 3 {
		c := dialFrom(t, "127.0.0.1", edge.address)
		if err := isEcho(c); err != nil {
			t.Fatal(err)
		}
		first = append(first, c)
	}
	waiting := make(chan error, 4)
	for n := range 4 {
		c := dialFrom(t, "127.0.0.1", []string{edge.address, other}[n%2])
		go func() { waiting <- isEcho(c) }()
	}
	select {
	case err := <-waiting:
		t.Fatalf("a fourth connection was served: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	first[0].Close()
	if err := <-waiting; err != nil {
		t.Errorf("when one has ended: %v", err)
	}
	more := *c
	more.Limits.Connections = 10
	if err := edge.Apply(t.Context(), &more); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := <-waiting; err != nil {
			t.Errorf("when more are allowed: %v", err)
		}
	}
}

// A full house drains as an empty one does: those who wait go away.
func TestQueueEndsWithServer(t *testing.T) {
	tunneltest.NoLeaks(t)
	edge := run(t, plainEcho(t, Limits{Connections: 1}))
	inside := dialFrom(t, "127.0.0.1", edge.address)
	if err := isEcho(inside); err != nil {
		t.Fatal(err)
	}
	waiting := dialFrom(t, "127.0.0.1", edge.address)
	edge.stop()
	if err := isEcho(waiting); err == nil {
		t.Error("a connection that waited was served at the end")
	}
}

func TestConnectionsRefuse(t *testing.T) {
	edge := run(t, plainEcho(t, Limits{Connections: 2, Refuse: true}))
	var first []net.Conn
	for range 2 {
		c := dialFrom(t, "127.0.0.1", edge.address)
		if err := isEcho(c); err != nil {
			t.Fatal(err)
		}
		first = append(first, c)
	}
	for range 3 {
		if !isTurnedAway(t, "127.0.0.1", edge.address) {
			t.Error("a third connection is not reset")
		}
	}
	if lines := edge.log.with("level=WARN", ErrFull.Error()); len(lines) != 1 {
		t.Errorf("of three refusals the log says %q", lines)
	}
	first[0].Close()
	within(t, patience, "there is a place again", func() bool {
		_, err := echoFrom(t, "127.0.0.1", edge.address)
		return err == nil
	})
}

func TestConnectionsPerAddress(t *testing.T) {
	tunneltest.NoLeaks(t)
	c := plainEcho(t, Limits{PerAddress: 2})
	edge := run(t, c)
	open := func(from string) (net.Conn, error) { return echoFrom(t, from, edge.address) }
	var first []net.Conn
	for range 2 {
		c, err := open("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		first = append(first, c)
	}
	if !isTurnedAway(t, "127.0.0.1", edge.address) {
		t.Error("a third connection is not reset")
	}
	if _, err := open("127.0.0.3"); err != nil {
		t.Errorf("from another address: %v", err)
	}
	first[1].Close()
	within(t, patience, "there is a place again", func() bool { _, err := open("127.0.0.1"); return err == nil })

	without := *c
	without.Limits = Limits{}
	if err := edge.Apply(t.Context(), &without); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := open("127.0.0.1"); err != nil {
			t.Errorf("without limits: %v", err)
		}
	}
	if err := edge.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := open("127.0.0.1"); err == nil {
		t.Error("with six open and a limit of two, a seventh was served")
	}
}

// Half of a handshake holds no place for long where others from the same address want it.
func TestHalfHandshakesMakeRoom(t *testing.T) {
	const limit = 5
	ca := tunneltest.NewCA(t)
	raw, ws := testSite(t, ca, "raw.test"), testSite(t, ca, "ws.test")
	raw.Raw = &Route{Target: tunneltest.Echo(t)}
	ws.Routes = []*Route{{Path: "/", Target: raw.Raw.Target}}
	edge := run(t, &Config{Sites: []*Site{raw, ws}, Limits: Limits{PerAddress: limit}, Timeout: time.Minute})
	var idle []net.Conn
	for n := range limit {
		c := dialFrom(t, "127.0.0.1", edge.address)
		if n == 0 { // shaken hands, and then nothing
			if err := tls.Client(c, clientTLS(ca, "ws.test").ClientConfig).Handshake(); err != nil {
				t.Fatal(err)
			}
		} else if _, err := io.WriteString(c, "\x16\x03\x01"); err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	for n := range limit {
		within(t, patience, fmt.Sprintf("tunnel %d takes a place", n), func() bool {
			c, err := connectFrom("127.0.0.1", edge.address)
			if err != nil {
				return false
			}
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(patience))
			stream, err := clientTLS(ca, "raw.test").Client(t.Context(), c)
			return err == nil && isEcho(stream) == nil
		})
	}
	for n, c := range idle {
		if !wasReset(c) {
			t.Errorf("half-open connection %d is not reset", n)
		}
	}
	if !isTurnedAway(t, "127.0.0.1", edge.address) {
		t.Error("one more than the limit is not reset")
	}
}

// The limit of an address goes by what the PROXY header tells.
func TestConnectionsPerAddressBehindProxy(t *testing.T) {
	c := plainEcho(t, Limits{PerAddress: 1})
	c.Listeners[0].ProxyFrom = loopback
	edge := run(t, c)
	open := func(client string) net.Conn {
		c := dialFrom(t, "127.0.0.1", edge.address)
		if _, err := fmt.Fprintf(c, "PROXY TCP6 %s ::1 1 1\r\n", client); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, client := range []string{"2001:db8::1", "2001:db8:0:1::1", "::ffff:192.0.2.1"} {
		if err := isEcho(open(client)); err != nil {
			t.Errorf("%s: %v", client, err)
		}
	}
	if !wasReset(open("2001:db8::2")) {
		t.Error("a second connection from one /64 is not reset")
	}
}

func TestRateOfConnections(t *testing.T) {
	edge := run(t, plainEcho(t, Limits{Rate: 3}))
	served := 0
	for range 20 {
		if c, err := echoFrom(t, "127.0.0.1", edge.address); err == nil {
			served++
			c.Close()
		}
	}
	if served < 6 || served > 12 { // six at once, and three a second that the test lasts
		t.Errorf("%d of 20 connections were served, want about six", served)
	}
	if err := isEcho(dialFrom(t, "127.0.0.3", edge.address)); err != nil {
		t.Errorf("from another address: %v", err)
	}
	within(t, patience, "the address is served again", func() bool {
		_, err := echoFrom(t, "127.0.0.1", edge.address)
		return err == nil
	})
}

func TestRouteLimit(t *testing.T) {
	target := tunneltest.Echo(t)
	site := &Site{Routes: []*Route{{Path: "/tunnel", Target: target, Limit: 2}}}
	c := &Config{Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}}, Sites: []*Site{site}}
	edge := run(t, c)
	open := func() (tunnel.Conn, error) {
		c := dialFrom(t, "127.0.0.1", edge.address)
		return (&tunnel.WebSocket{Host: "edge.test", Path: "/tunnel"}).Client(t.Context(), c)
	}
	first, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if err := edge.Apply(t.Context(), &Config{Listeners: c.Listeners, Sites: c.Sites, Drain: -1}); err != nil { // counts go on
		t.Fatal(err)
	}
	if _, err := open(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var refused *tunnel.UpgradeError
		if _, err := open(); !errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable {
			t.Errorf("a third tunnel: %v, want 503", err)
		}
	}
	first.Close()
	within(t, patience, "there is a place again", func() bool { _, err := open(); return err == nil })
}

// Whatever a visitor does, and wherever it stops, its places are free afterwards: run looks.
func TestNoPlaceIsLost(t *testing.T) {
	tunneltest.NoLeaks(t)
	ca := tunneltest.NewCA(t)
	echo := tunneltest.Echo(t)
	raw, ws, dead := testSite(t, ca, "raw.test"), testSite(t, ca, "ws.test"), testSite(t, ca, "dead.test")
	raw.Raw = &Route{Target: echo, Limit: 2, Queue: true}
	ws.Routes = []*Route{
		{Path: "/", Target: echo, Limit: 2, Queue: true},
		{Path: "/dead", Target: "dead", Limit: 10},
		{Path: "/never", Target: echo, Limit: 10, Access: Access{From: []netip.Prefix{}}},
	}
	dead.Raw = &Route{Target: "dead", Limit: 10}
	nobody := testSite(t, ca, "nobody.test")
	nobody.Raw = &Route{Target: echo, Access: Access{From: []netip.Prefix{}}}
	refused := testSite(t, ca, "refused.test")
	refused.Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("there is none") }
	c := &Config{
		Listeners: []Listener{{Address: "127.0.0.1:0"}},
		Sites:     []*Site{raw, ws, dead, nobody, refused, {Names: []string{"pass.test"}, Pass: "dead"}},
		Limits:    Limits{Connections: 50, Refuse: true, PerAddress: 40, Rate: 10_000},
		Timeout:   200 * time.Millisecond,
		Dial: func(ctx context.Context, address string) (tunnel.Conn, error) {
			if address == "dead" {
				return nil, errors.New("nobody there")
			}
			return new(tunnel.Dialer).Dial(ctx, address)
		},
	}
	edge := run(t, c)
	upgrade := func(path string) string {
		return "GET " + path + " HTTP/1.1\r\nHost: ws.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
	}
	says := func(name, text string) func(*net.TCPConn) {
		return func(c *net.TCPConn) {
			s := tls.Client(c, clientTLS(ca, name).ClientConfig)
			if s.Handshake() == nil {
				io.WriteString(s, text)
			}
			s.Read(make([]byte, 100))
		}
	}
	ways := []func(*net.TCPConn){
		func(*net.TCPConn) {},
		func(c *net.TCPConn) { c.SetLinger(0) },
		func(c *net.TCPConn) { io.WriteString(c, "\x16\x03\x01\x02"); c.CloseWrite() },
		func(c *net.TCPConn) { io.WriteString(c, "GET / HTTP/1.1\r\n\r\n"); c.Read(make([]byte, 9)) },
		func(c *net.TCPConn) { io.WriteString(c, "\x16\x03\x01\x02"); c.Read(make([]byte, 9)) }, // the time limit
		says("raw.test", "x"), says("dead.test", "x"), says("nobody.test", "x"), says("refused.test", "x"),
		says("pass.test", "x"), says("unknown.test", "x"), says("ws.test", "GET /"), // the time limit
		says("ws.test", upgrade("/")), says("ws.test", upgrade("/dead")), says("ws.test", upgrade("/never")),
		says("ws.test", strings.Repeat("GET /x HTTP/1.1\r\nHost: ws.test\r\n\r\n", 20)+upgrade("/")+upgrade("/")),
		says("ws.test", strings.ToLower(upgrade("/"))), says("ws.test", upgrade("/")[:60]),
	}
	enough := make(chan struct{})
	var reloads sync.WaitGroup
	reloads.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-enough:
				return
			case <-time.After(5 * time.Millisecond):
			}
			other := *c
			if n%2 == 0 {
				other.Limits = Limits{}
			}
			if err := edge.Apply(t.Context(), &other); err != nil {
				t.Error(err)
			}
		}
	})
	var visitors sync.WaitGroup
	for n := range 20 {
		visitors.Go(func() {
			for i := range 3 * len(ways) {
				c, err := connectFrom(fmt.Sprintf("127.0.1.%d", 1+n%4), edge.address)
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(patience))
				ways[(i+n)%len(ways)](c)
				c.Close()
			}
		})
	}
	visitors.Wait()
	close(enough)
	reloads.Wait()
	within(t, patience, "all have left", func() bool {
		edge.room.mu.Lock()
		defer edge.room.mu.Unlock()
		return edge.room.open == 0
	})
	edge.stop()
}
