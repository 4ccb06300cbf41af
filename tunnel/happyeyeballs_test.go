package tunnel

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// names is a resolver whose answers a test may change. An address of the family that was asked for is an
// answer; without one there is no such name.
type names struct {
	asked atomic.Int32

	mu        sync.Mutex
	addresses []netip.Addr
	err       error         // in place of answers
	hang      chan struct{} // not nil: no answer before it is closed
	hangs     string        // the network that hangs; empty: both
}

func namesOf(addresses ...string) *names {
	n := &names{}
	n.set(addresses...)
	return n
}

func (n *names) set(addresses ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addresses = nil
	for _, a := range addresses {
		n.addresses = append(n.addresses, netip.MustParseAddr(a))
	}
}

func (n *names) fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = err
}

// stall makes questions hang from now on, until release is called.
func (n *names) stall() (release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	hang := make(chan struct{})
	n.hang = hang
	return sync.OnceFunc(func() {
		n.mu.Lock()
		n.hang = nil
		n.mu.Unlock()
		close(hang)
	})
}

func (n *names) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	n.asked.Add(1)
	n.mu.Lock()
	hang := n.hang
	if n.hangs != "" && n.hangs != network {
		hang = nil
	}
	n.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return nil, n.err
	}
	var answer []netip.Addr
	for _, a := range n.addresses {
		if versionOf(a).network() == network {
			answer = append(answer, a)
		}
	}
	if answer == nil {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return answer, nil
}

// accepting returns the port of a listener at the IP address; what it accepts it keeps till the test ends.
func accepting(t testing.TB, ip, port string) string {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, port))
	if err != nil {
		t.Skip("needs this address: ", err)
	}
	greet(t, l, "")
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// dialedIP dials address and returns the IP address that it came to, and how long that took.
func dialedIP(t testing.TB, d *Dialer, address string) (ip string, took time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	begin := time.Now()
	c, err := d.Dial(ctx, address)
	took = time.Since(begin)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ip, _, _ = net.SplitHostPort(c.RemoteAddr().String())
	return ip, took
}

// A refused attempt is followed by the next at once, and what worked is tried first the next time.
func TestRaceRefused(t *testing.T) {
	leavesNothing(t)
	port := accepting(t, "127.0.0.1", "0")
	d := &Dialer{Resolver: namesOf("::1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.1")}

	ip, took := dialedIP(t, d, "edge.test:"+port)
	if ip != "127.0.0.1" || took > attemptDelay {
		t.Errorf("connected to %s after %v, want 127.0.0.1 at once", ip, took)
	}
	if addresses := d.memory.of("edge.test:" + port).addresses; len(addresses) != 1 || addresses[0] != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("remembers %v, want 127.0.0.1 alone", addresses)
	}
}

// Memory is by host and port, and what failed is forgotten.
func TestRaceFollowsWhatWorks(t *testing.T) {
	leavesNothing(t)
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skip("needs 127.0.0.2: ", err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	accepting(t, "127.0.0.3", port)
	resolver := namesOf("127.0.0.2", "127.0.0.3")
	d := &Dialer{Resolver: resolver}
	address := "edge.test:" + port

	if ip, _ := dialedIP(t, d, address); ip != "127.0.0.2" {
		t.Errorf("first: %s", ip)
	}
	l.Close()
	if ip, took := dialedIP(t, d, address); ip != "127.0.0.3" || took > attemptDelay {
		t.Errorf("the first is gone: %s after %v", ip, took)
	}
	if addresses := d.memory.of(address).addresses; len(addresses) != 1 {
		t.Errorf("remembers %v, want only what works", addresses)
	}
	accepting(t, "127.0.0.2", port)
	if ip, _ := dialedIP(t, d, address); ip != "127.0.0.3" {
		t.Errorf("the first is back: %s, want what worked last", ip)
	}
	if ip, _ := dialedIP(t, d, "other.test:"+port); ip != "127.0.0.2" {
		t.Errorf("another name: %s, want its first address", ip)
	}
	d.Forget()
	if ip, _ := dialedIP(t, d, address); ip != "127.0.0.2" {
		t.Errorf("the network has changed: %s, want the first", ip)
	}
	d.Forget()
	resolver.fail(&net.DNSError{Err: "server misbehaving", IsTemporary: true})
	if ip, _ := dialedIP(t, d, address); ip != "127.0.0.2" {
		t.Errorf("the network has changed and has no name server yet: %s, want what worked last", ip)
	}
}

// A name server that has no answer for one version does not keep the other waiting, and what worked last
// time does not lose because its lookup is a little slower.
func TestRaceWaitsForTheBetterAnswer(t *testing.T) {
	leavesNothing(t)
	needIPv6(t)
	port := accepting(t, "127.0.0.1", "0")
	address := "edge.test:" + port
	resolver := namesOf("::1", "127.0.0.1")
	resolver.hangs = "ip6"
	release := resolver.stall()
	d := &Dialer{Resolver: resolver}
	if ip, took := dialedIP(t, d, address); ip != "127.0.0.1" || took < resolutionDelay || took > attemptDelay {
		t.Errorf("no answer for IPv6: %s after %v, want 127.0.0.1 after %v", ip, took, resolutionDelay)
	}
	release()

	accepting(t, "::1", port)
	resolver.hangs = "ip4"
	release = resolver.stall()
	time.AfterFunc(resolutionDelay/5, release)
	if ip, took := dialedIP(t, d, address); ip != "127.0.0.1" || took > attemptDelay {
		t.Errorf("a slower answer for what worked: %s after %v, want 127.0.0.1", ip, took)
	}
	d.Forget()
	if ip, _ := dialedIP(t, d, address); ip != "::1" {
		t.Errorf("nothing is remembered: %s, want ::1", ip)
	}
}

// What worked goes first only while the name still has it.
func TestRaceLeavesAddressesThatAreGone(t *testing.T) {
	leavesNothing(t)
	port := accepting(t, "127.0.0.2", "0")
	accepting(t, "127.0.0.3", port)
	resolver := namesOf("127.0.0.2")
	d := &Dialer{Resolver: resolver}
	dialedIP(t, d, "edge.test:"+port)
	resolver.set("127.0.0.3")
	if ip, _ := dialedIP(t, d, "edge.test:"+port); ip != "127.0.0.3" {
		t.Errorf("connected to %s, which the name no longer has", ip)
	}
}

func TestRaceWithoutResolver(t *testing.T) {
	leavesNothing(t)
	port := accepting(t, "127.0.0.2", "0")
	resolver := namesOf("127.0.0.2")
	var log bytes.Buffer
	d := &Dialer{Resolver: resolver, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	address := "edge.test:" + port
	dialedIP(t, d, address)
	if log.Len() > 0 {
		t.Errorf("the log says %q", log.String())
	}

	for _, err := range []error{
		&net.DNSError{Err: "server misbehaving", Name: "edge.test", IsTemporary: true},
		&net.DNSError{Err: "no such host", Name: "edge.test", IsNotFound: true},
	} {
		resolver.fail(err)
		log.Reset()
		if ip, took := dialedIP(t, d, address); ip != "127.0.0.2" || took > attemptDelay {
			t.Errorf("%v: %s after %v", err, ip, took)
		}
		if !strings.Contains(log.String(), err.Error()) {
			t.Errorf("%v: the log says %q", err, log.String())
		}
	}

	resolver.fail(nil)
	release := resolver.stall()
	log.Reset()
	if ip, took := dialedIP(t, d, address); ip != "127.0.0.2" || took < lookupHeadStart || took > 2*lookupHeadStart {
		t.Errorf("the lookup hangs: %s after %v, want 127.0.0.2 after %v", ip, took, lookupHeadStart)
	}
	if !strings.Contains(log.String(), "no answer yet") {
		t.Errorf("the lookup hangs: the log says %q", log.String())
	}
	release()

	// Nothing was remembered of another name, and what is remembered may be dead.
	resolver.fail(&net.DNSError{Err: "server misbehaving", Name: "other.test", IsTemporary: true})
	if _, err := d.Dial(t.Context(), "other.test:"+port); err == nil || err.Error() != "dial tcp: lookup other.test: server misbehaving" {
		t.Errorf("another name: %v", err)
	}
	d.memory.worked("gone.test:1", netip.MustParseAddr("127.0.0.9"), true, nil)
	_, err := d.Dial(t.Context(), "gone.test:1")
	var dns *net.DNSError
	if !errors.Is(err, errRefused) || !errors.As(err, &dns) || !strings.Contains(err.Error(), "127.0.0.9") {
		t.Errorf("neither resolver nor edge: %v", err)
	}
}

func TestRaceErrors(t *testing.T) {
	leavesNothing(t)
	port := freePort()
	d := &Dialer{Resolver: namesOf("127.0.0.2", "127.0.0.3")}
	_, err := d.Dial(t.Context(), "edge.test:"+port)
	if want := "dial edge.test:" + port + ": 127.0.0.2, 127.0.0.3: "; !errors.Is(err, errRefused) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s...", err, want)
	}
	d = &Dialer{Resolver: namesOf()}
	_, err = d.Dial(t.Context(), "edge.test:"+port)
	if !isNotFound(err) {
		t.Errorf("got %v, want that there is no such host", err)
	}
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" {
		t.Errorf("got %T, want a *net.OpError of dial", err)
	}
}

// Hundreds of dials at once ask twice: for IPv4 and for IPv6.
func TestRaceSharesLookups(t *testing.T) {
	leavesNothing(t)
	port := accepting(t, "127.0.0.1", "0")
	resolver := namesOf("127.0.0.1")
	release := resolver.stall()
	d := &Dialer{Resolver: resolver}
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			c, err := d.Dial(t.Context(), "edge.test:"+port)
			if err != nil {
				t.Error(err)
				return
			}
			c.Close()
		})
	}
	waitFor(t, func() bool { return waitingFor(d) == 400 })
	release()
	all.Wait()
	if asked := resolver.asked.Load(); asked != 2 {
		t.Errorf("%d lookups, want 2", asked)
	}
	dialedIP(t, d, "edge.test:"+port)
	if asked := resolver.asked.Load(); asked != 4 {
		t.Errorf("%d lookups after one more dial, want 4: names are looked up anew", asked)
	}
}

// The end of ctx ends a dial in all its states; a lookup ends with the last dial that waits for it.
func TestRaceCancelled(t *testing.T) {
	leavesNothing(t)
	resolver := namesOf()
	defer resolver.stall()()
	d := &Dialer{Resolver: resolver}
	var dials []context.CancelCauseFunc
	ended := make(chan error)
	for range 2 {
		ctx, cancel := context.WithCancelCause(t.Context())
		dials = append(dials, cancel)
		go func() {
			_, err := d.Dial(ctx, "edge.test:443")
			ended <- err
		}()
	}
	waitFor(t, func() bool { return waitingFor(d) == 4 })
	reason := errors.New("the test's reason")
	dials[0](reason)
	if err := <-ended; !errors.Is(err, reason) || !strings.Contains(err.Error(), "lookup edge.test: no answer") {
		t.Errorf("got %v", err)
	}
	if n := waitingFor(d); n != 2 {
		t.Errorf("%d wait for lookups, want the 2 of the other dial", n)
	}
	dials[1](reason)
	<-ended
	if n := waitingFor(d); n != 0 || len(d.lookups.running) != 0 {
		t.Errorf("%d wait for lookups, want none", n)
	}
}

// Forget gives up on questions that hang, and asks again.
func TestForgetAsksAgain(t *testing.T) {
	leavesNothing(t)
	port := accepting(t, "127.0.0.1", "0")
	resolver := namesOf("127.0.0.1")
	resolver.stall()
	d := &Dialer{Resolver: resolver}
	ended := make(chan error)
	go func() {
		c, err := d.Dial(t.Context(), "edge.test:"+port)
		if err == nil {
			c.Close()
		}
		ended <- err
	}()
	waitFor(t, func() bool { return waitingFor(d) == 2 })
	resolver.mu.Lock()
	resolver.hang = nil
	resolver.mu.Unlock()
	d.Forget()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if asked := resolver.asked.Load(); asked != 4 {
		t.Errorf("asked %d times, want 4", asked)
	}
}

// An address on which nothing comes about comes after the others, and is still better than none.
func TestDoubt(t *testing.T) {
	leavesNothing(t)
	port := accepting(t, "127.0.0.1", "0")
	accepting(t, "127.0.0.2", port)
	address := "edge.test:" + port
	resolver := namesOf("127.0.0.1", "127.0.0.2")
	d := &Dialer{Resolver: resolver}
	hasOther := false
	doubted := func() (ip string) {
		t.Helper()
		c, err := d.Dial(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		hasOther = d.Doubt(address, c)
		ip, _, _ = net.SplitHostPort(c.RemoteAddr().String())
		return ip
	}

	if first := doubted(); first != "127.0.0.1" || !hasOther {
		t.Errorf("dialed %s; another: %v", first, hasOther)
	}
	if second := doubted(); second != "127.0.0.2" || hasOther {
		t.Errorf("dialed %s when the first was doubted; another: %v", second, hasOther)
	}
	resolver.fail(errors.New("no resolver"))
	if ip, took := dialedIP(t, d, address); took > time.Second {
		t.Errorf("both doubted: %s after %v, want one of them at once", ip, took)
	}
	resolver.fail(nil)

	d.Forget()
	doubted()
	for range 3 {
		if ip, _ := dialedIP(t, d, address); ip != "127.0.0.2" {
			t.Errorf("beside one that is doubted: %s", ip)
		}
	}
	d.memory.trust(address, netip.MustParseAddr("127.0.0.1"))
	d.memory.doubt(address, netip.MustParseAddr("127.0.0.2"))
	if ip, _ := dialedIP(t, d, address); ip != "127.0.0.1" {
		t.Errorf("trusted again, beside one that is doubted: %s", ip)
	}
	d.memory.doubt(address, netip.MustParseAddr("127.0.0.1"))
	resolver.set("127.0.0.1", "127.0.0.3") // nobody listens at the other one
	if ip, took := dialedIP(t, d, address); ip != "127.0.0.1" || took > time.Second {
		t.Errorf("beside one that refuses: %s after %v, want the doubted one at once", ip, took)
	}

	other := &Dialer{Resolver: resolver, Proxy: func(string) (*url.URL, error) { return url.Parse("http://127.0.0.1:1") }}
	c, err := d.Dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if other.Doubt(address, c); len(other.memory.names) != 0 {
		t.Errorf("behind a proxy: %v", other.memory.names)
	}
}

// A doubted address need not wait for ever until another one has failed.
func TestDoubtBesideBlackHole(t *testing.T) {
	leavesNothing(t)
	port := accepting(t, "127.0.0.1", "0")
	d := &Dialer{Resolver: namesOf("127.0.0.1", "192.0.2.1")}
	d.memory.doubt("edge.test:"+port, netip.MustParseAddr("127.0.0.1"))
	if ip, took := dialedIP(t, d, "edge.test:"+port); ip != "127.0.0.1" || took > time.Second {
		t.Errorf("%s after %v, want 127.0.0.1 after %v", ip, took, 2*attemptDelay)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	var m memory
	for i := range 3 * maxRememberedNames {
		for j := range 3 * maxRememberedAddresses {
			m.worked(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String(), netip.AddrFrom4([4]byte{10, 1, 0, byte(j)}), true, nil)
		}
		m.of("10.0.0.0") // is in use all the time
	}
	if len(m.names) != maxRememberedNames {
		t.Errorf("%d names, want %d", len(m.names), maxRememberedNames)
	}
	known := m.of("10.0.0.0")
	addresses, proven := known.addresses, known.proven
	if len(addresses) != maxRememberedAddresses || addresses[0] != netip.AddrFrom4([4]byte{10, 1, 0, 3*maxRememberedAddresses - 1}) || proven.IsZero() {
		t.Errorf("got %v, %v", addresses, proven)
	}
	m.failed("10.0.0.0", addresses[0])
	if rest := m.of("10.0.0.0"); len(rest.addresses) != maxRememberedAddresses-1 || !rest.proven.IsZero() {
		t.Errorf("after a failure: %v", rest)
	}
	if rest := m.of("unknown"); rest.addresses != nil {
		t.Errorf("unknown: %v", rest)
	}
}

func waitFor(t testing.TB, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited for too long")
		}
	}
}

// waitingFor is how many wait for lookups.
func waitingFor(d *Dialer) (n int) {
	d.lookups.mu.Lock()
	defer d.lookups.mu.Unlock()
	for _, l := range d.lookups.running {
		n += l.waiting
	}
	return n
}
