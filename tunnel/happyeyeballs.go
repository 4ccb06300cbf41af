package tunnel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The pace of a race (RFC 8305, sections 3, 5 and 8).
const (
	// attemptDelay is how long an attempt stays alone before the next address is tried beside it.
	attemptDelay = 250 * time.Millisecond
	// resolutionDelay is how long the addresses of one IP version wait for those of the preferred one.
	resolutionDelay = 50 * time.Millisecond
	// lookupHeadStart is how long a lookup may take before addresses that worked earlier are tried.
	lookupHeadStart = 300 * time.Millisecond

	maxAttempts  = 4  // at a time
	maxAddresses = 32 // of each version; no edge has more, and a hostile answer could
	// attemptTime is how long an attempt may keep others waiting where ctx has no deadline: enough
	// for a SYN that is lost once.
	attemptTime = 2 * time.Second
	// fastOpenTrust is how long a connection that was really made vouches for those over fast open.
	fastOpenTrust = 10 * time.Second
)

// ipVersion is an index, of what RFC 8305 prefers first.
type ipVersion int

const (
	ipv6 ipVersion = iota
	ipv4
)

func versionOf(a netip.Addr) ipVersion {
	if a.Is4() {
		return ipv4
	}
	return ipv6
}

func (v ipVersion) other() ipVersion { return 1 - v }

// network is how package net calls a lookup of this version only.
func (v ipVersion) network() string { return [...]string{"ip6", "ip4"}[v] }

// race is one dial of a name: whichever of its addresses is connected first wins.
type race struct {
	d       *Dialer
	address string // host:port
	port    uint16

	known      rememberedName
	remembered []netip.Addr // these worked earlier, the latest first
	current    bool         // they go first: the network is the same
	vouched    bool         // the first of them did so a moment ago

	lookups  chan found
	missing  int             // lookups without an answer
	answered [2]bool         // by version
	reasons  [2]error        // why there are no addresses, by version
	exists   bool            // a lookup has found an address
	found    [2][]netip.Addr // by version; those that were tried may still be in it
	trusted  []netip.Addr    // to be tried before all others
	turn     ipVersion       // whose address is next

	held     bool        // the next attempt waits for pace
	slow     bool        // lookups are
	late     bool        // doubted addresses need not wait until all others have failed
	patience *time.Timer // with them
	pace     *time.Timer
	attempts chan attempt
	running  []netip.Addr
	tried    map[netip.Addr]bool
	failures []attempt

	all sync.WaitGroup
}

type found struct {
	version   ipVersion
	addresses []netip.Addr
	err       error
}

type attempt struct {
	address netip.Addr
	c       Conn
	proven  bool // there was a handshake, not only fast open's promise of one
	err     error
}

// race connects to a name (RFC 8305). When it returns, its attempts and lookups have ended.
func (d *Dialer) race(ctx context.Context, host string, port uint16) (Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &race{
		d:        d,
		address:  net.JoinHostPort(host, strconv.Itoa(int(port))),
		port:     port,
		lookups:  make(chan found),
		attempts: make(chan attempt),
		pace:     time.NewTimer(time.Hour),
		patience: time.NewTimer(time.Hour),
		tried:    make(map[netip.Addr]bool),
	}
	defer r.all.Wait()
	defer cancel()
	defer r.pace.Stop()
	defer r.patience.Stop()
	r.known = d.memory.of(r.address)
	r.remembered = r.known.addresses
	r.current, r.vouched = r.known.current && len(r.remembered) > 0, time.Since(r.known.proven) < fastOpenTrust
	r.lookUp(ctx, host, ipv6)
	r.lookUp(ctx, host, ipv4)
	return r.run(ctx)
}

func (r *race) run(ctx context.Context) (Conn, error) {
	headStart := time.NewTimer(lookupHeadStart)
	defer headStart.Stop()
	for {
		for !r.held && len(r.running) < maxAttempts {
			address, ok := r.next()
			if !ok {
				break
			}
			r.start(ctx, address)
		}
		if r.missing == 0 && len(r.running) == 0 && r.waiting() == 0 {
			return nil, r.failure()
		}
		select {
		case f := <-r.lookups:
			r.take(f)
		case a := <-r.attempts:
			switch {
			case a.err == nil:
				r.d.memory.worked(r.address, a.address, a.proven, r.living())
				return a.c, nil
			case isOver(ctx): // which is not the fault of a
				return nil, r.interrupted(context.Cause(ctx))
			}
			r.fail(a)
		case <-r.pace.C:
			r.held = false
		case <-headStart.C:
			r.slow = true
			r.trustUnanswered()
		case <-r.patience.C:
			r.late = true
		case <-ctx.Done():
			return nil, r.interrupted(context.Cause(ctx))
		}
	}
}

// isOver tells whether ctx has ended. Sockets know of its deadline a little earlier than it does.
func isOver(ctx context.Context) bool {
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		<-ctx.Done()
	}
	return ctx.Err() != nil
}

func (r *race) lookUp(ctx context.Context, host string, v ipVersion) {
	r.missing++
	r.all.Go(func() {
		addresses, err := r.d.lookups.do(ctx, r.d.resolver(), v.network(), host)
		select {
		case r.lookups <- found{v, addresses, err}:
		case <-ctx.Done():
		}
	})
}

// take notes what a lookup has found.
func (r *race) take(f found) {
	r.missing--
	r.answered[f.version], r.reasons[f.version] = true, f.err
	r.exists = r.exists || len(f.addresses) > 0
	for _, a := range f.addresses[:min(len(f.addresses), maxAddresses)] {
		r.found[f.version] = append(r.found[f.version], a.Unmap())
	}
	nothing := r.missing == 0 && !r.exists
	failed := f.err != nil && !isNotFound(f.err)
	if nothing || failed {
		r.tellDistrust(f.err)
	}
	for _, a := range r.remembered {
		if nothing || failed && versionOf(a) == f.version || r.current && slices.Contains(r.found[f.version], a) {
			r.trust(a)
		}
	}
	if len(r.tried) > 0 {
		return
	}
	if preferred := r.preferred(); r.answered[preferred] {
		r.held = false
	} else if len(r.trusted) == 0 {
		r.hold(resolutionDelay)
	}
}

// preferred is the IP version that worked last time, or IPv6.
func (r *race) preferred() ipVersion {
	if r.current {
		return versionOf(r.remembered[0])
	}
	return ipv6
}

// trustUnanswered goes on with what worked earlier, as far as the lookups hang: a resolver may be
// gone while the edge is not. That it is the edge who answers there is for TLS to find out.
func (r *race) trustUnanswered() {
	if r.missing > 0 {
		r.tellDistrust(errors.New("no answer yet"))
	}
	for _, a := range r.remembered {
		if !r.answered[versionOf(a)] {
			r.trust(a)
		}
	}
}

func (r *race) trust(a netip.Addr) {
	if !r.tried[a] && !slices.Contains(r.trusted, a) {
		r.trusted = append(r.trusted, a)
		r.held = false
	}
}

func (r *race) tellDistrust(err error) {
	if r.d.Log != nil && len(r.remembered) > 0 {
		r.d.Log.Debug("lookup without success, addresses that worked earlier are tried", "address", r.address, "error", err)
	}
}

func (r *race) hold(d time.Duration) {
	r.held = true
	r.pace.Reset(d)
}

// next tells the address to try now: a trusted one, or one of the versions in turn, and one that is doubted when there
// is no other.
func (r *race) next() (a netip.Addr, ok bool) {
	mayDoubt := r.late || len(r.running) == 0 && (r.missing == 0 || r.slow)
	for _, queue := range [][]netip.Addr{r.trusted, r.found[r.turn], r.found[r.turn.other()]} {
		for _, b := range queue {
			switch {
			case r.tried[b]:
			case !r.known.isDoubted(b):
				r.turn = versionOf(b).other()
				return b, true
			case mayDoubt && !ok:
				a, ok = b, true
			}
		}
	}
	return a, ok
}

// waiting is how many addresses are known and not tried.
func (r *race) waiting() int { return len(r.untried()) }

// untried are the addresses that are known and not tried.
func (r *race) untried() map[netip.Addr]bool {
	known := make(map[netip.Addr]bool)
	for _, queue := range [][]netip.Addr{r.trusted, r.found[ipv6], r.found[ipv4]} {
		for _, a := range queue {
			if !r.tried[a] {
				known[a] = true
			}
		}
	}
	return known
}

// living are the addresses that have not failed.
func (r *race) living() []netip.Addr {
	return append(slices.Collect(maps.Keys(r.untried())), r.running...)
}

func (r *race) start(ctx context.Context, a netip.Addr) {
	r.tried[a] = true
	r.running = append(r.running, a)
	limit, delay := r.share(ctx)
	r.hold(delay)
	r.patience.Reset(2 * delay)
	fastOpen := r.d.FastOpen && r.mayBeAlone(a)
	r.all.Go(func() {
		limited, cancel := ctx, context.CancelFunc(func() {})
		if limit > 0 {
			limited, cancel = context.WithTimeout(ctx, limit)
		}
		defer cancel()
		c, err := r.d.connect(limited, "tcp", netip.AddrPortFrom(a, r.port).String(), fastOpen)
		select {
		case r.attempts <- attempt{a, c, !fastOpen, err}:
		case <-ctx.Done():
			if err == nil {
				c.Close()
			}
		}
	})
}

// share divides the time that is left, so that each address that waits is tried too: limit is how
// long the attempt that starts now may take, zero means no limit; delay is how long it stays alone.
func (r *race) share(ctx context.Context) (limit, delay time.Duration) {
	waiting := r.waiting()
	rounds := (waiting + maxAttempts) / maxAttempts // this attempt and those that wait, rounded up
	deadline, ok := ctx.Deadline()
	if !ok {
		if rounds > 1 {
			limit = attemptTime
		}
		return limit, attemptDelay
	}
	left := max(time.Until(deadline), time.Millisecond)
	if rounds > 1 {
		limit = left / time.Duration(rounds)
	}
	return limit, min(attemptDelay, left/time.Duration(waiting+1))
}

// mayBeAlone tells whether a may be dialed with fast open. To an address whose cookie the kernel has,
// such a connection "is there" at once, before a packet was sent, and so would win against all others.
// That is right where there are no others, and where a has just shown that it lives.
func (r *race) mayBeAlone(a netip.Addr) bool {
	if r.vouched && r.remembered[0] == a {
		return true
	}
	return r.missing == 0 && r.waiting() == 0 && len(r.tried) == 1
}

func (r *race) fail(a attempt) {
	r.running = slices.DeleteFunc(r.running, func(b netip.Addr) bool { return a.address == b })
	r.failures = append(r.failures, a)
	r.d.memory.failed(r.address, a.address)
	r.held = false
}

// failure is what package net would say where it is about one thing, and a raceError otherwise.
func (r *race) failure() error {
	err := r.lookupError()
	switch {
	case len(r.failures) == 0:
		return &net.OpError{Op: "dial", Net: "tcp", Err: err}
	case len(r.failures) == 1 && err == nil:
		return r.failures[0].err
	}
	return &raceError{address: r.address, lookup: err, failures: r.failures}
}

// lookupError is nil if one version was looked up with success, else the error that says more.
func (r *race) lookupError() error {
	v6, v4 := r.reasons[ipv6], r.reasons[ipv4]
	switch {
	case v6 == nil || v4 == nil:
		if len(r.failures) > 0 {
			return nil
		}
		// Only a resolver of another make answers with neither an address nor an error.
		host, _, _ := net.SplitHostPort(r.address)
		return &net.DNSError{Err: "no addresses", Name: host, IsNotFound: true}
	case isNotFound(v4):
		return v6
	default:
		return v4
	}
}

func (r *race) interrupted(cause error) error {
	e := &raceError{address: r.address, cause: cause, failures: r.failures}
	for _, a := range r.running {
		e.failures = append(e.failures, attempt{address: a, err: errNoAnswerYet})
	}
	if len(e.failures) == 0 {
		host, _, _ := net.SplitHostPort(r.address)
		e.lookup = &net.DNSError{Err: errNoAnswerYet.Error(), Name: host, IsTimeout: true}
	}
	return e
}

var errNoAnswerYet = errors.New("no answer")

func isNotFound(err error) bool {
	var dns *net.DNSError
	var address *net.AddrError // /etc/hosts has the name, with other addresses
	return errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &address)
}

// raceError tells what became of each address.
type raceError struct {
	address  string
	cause    error // why ctx ended; nil if it did not
	lookup   error // nil if it succeeded
	failures []attempt
}

// Error names addresses with the same trouble together.
func (e *raceError) Error() string {
	var parts []string
	if e.lookup != nil {
		parts = append(parts, e.lookup.Error())
	}
	var troubles []string
	addresses := make(map[string][]string)
	for _, f := range e.failures {
		trouble := bareText(f.err)
		if addresses[trouble] == nil {
			troubles = append(troubles, trouble)
		}
		addresses[trouble] = append(addresses[trouble], f.address.String())
	}
	for _, trouble := range troubles {
		parts = append(parts, strings.Join(addresses[trouble], ", ")+": "+trouble)
	}
	text := strings.Join(parts, "; ")
	if e.cause != nil {
		text = fmt.Sprintf("%v (%s)", e.cause, text)
	}
	return "dial " + e.address + ": " + text
}

func (e *raceError) Unwrap() []error {
	var all []error
	for _, err := range []error{e.cause, e.lookup} {
		if err != nil {
			all = append(all, err)
		}
	}
	for _, f := range e.failures {
		all = append(all, f.err)
	}
	return all
}

// bareText leaves out what package net says of the operation and the address.
func bareText(err error) string {
	var op *net.OpError
	if !errors.As(err, &op) {
		return err.Error()
	}
	var system *os.SyscallError
	switch {
	case op.Timeout():
		return errNoAnswerYet.Error()
	case errors.As(op.Err, &system) && system.Syscall == "connect":
		return system.Err.Error()
	}
	return op.Err.Error()
}
