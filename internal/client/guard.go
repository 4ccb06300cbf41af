package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"raimon/internal/netwatch"
	"raimon/tunnel"
)

// ErrForgotten cuts a connection that the network between here and the edge no longer carries, while it carries new ones.
var ErrForgotten = errors.New("the network no longer carries this connection, while it carries new ones")

// ErrMoved cuts a connection from an address that this machine no longer has.
var ErrMoved = errors.New("this machine no longer has the address that the connection comes from")

const (
	// guardPause is between two looks while something is not answered, restPause while all is well.
	guardPause, restPause = 500 * time.Millisecond, 2 * time.Second
	// idleRest is how long nobody looks after a tunnel that sends nothing.
	idleRest = 15 * time.Second
	// stallTime is how long an answer may take before it is asked whether the network works.
	stallTime = time.Second
	// answerTime is how long the answer to a segment that was sent again may take.
	answerTime = 1500 * time.Millisecond
	// askTime is how long the kernel may take to send one again once the network is known to work.
	askTime = 8 * time.Second
	// moveTime is how long an address may be away: IPv6 ones are, for a second, each time a link comes back.
	moveTime = 2 * time.Second
	// proofTimeout limits an attempt to find out whether the network works.
	proofTimeout             = 5 * time.Second
	firstProof, longestProof = time.Second, 5 * time.Second // between two of them that fail
	// After a change of the network, idle connections are asked for a sign of life each quickPause. Where the system
	// knows no more than that, it ends those that miss quickCount of them.
	quickPause, quickCount, quickFor = time.Second, 5, 10 * time.Second
)

// guard finds connections that are dead though nobody has said so: the NAT that knew them has forgotten them, or this
// machine has moved. A silent edge alone proves nothing: the network may be down, and come back. What proves it is
// two new connections to the same edge, with one segment between them that the old connection has sent again, and
// that nobody has answered. An edge that takes nothing answers.
type guard struct {
	mu   sync.Mutex
	all  map[*watched]bool
	wake chan struct{} // nil: nobody looks
}

// watched is a connection to an edge in use.
type watched struct {
	link *link
	conn net.Conn // the bottom
	cut  func(error)

	health func() tunnel.Health // of conn

	sent  func() int64 // by the tunnel; nil: there is none yet
	known int64        // what it had sent when it was last looked at
	rest  time.Time    // until when nobody looks at it, unless it sends something

	answers uint64    // when it was last well
	stalled time.Time // when it was first seen with something that is not answered since; zero: it is well
	proven  time.Time // when the network was found to work, while it is stalled; zero: it was not
	asked   uint32    // retransmissions when it was proven
	late    time.Time // when one more was seen since; zero: none yet
	hurried bool      // the kernel makes short pauses
	quick   time.Time // since when its keep-alives come fast; zero: they do not
	atQuick uint64    // answers by then
	moved   time.Time // when its address was first missed; zero: it is there
	dead    error     // why it was cut; nil: it was not
}

// watch looks after c until leave. It calls cut when c is dead.
func (g *guard) watch(l *link, c tunnel.Conn, cut func(error)) *watched {
	w := &watched{link: l, conn: tunnel.Bottom(c), cut: cut, health: func() tunnel.Health { return tunnel.HealthOf(c) }}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all == nil {
		g.all = make(map[*watched]bool)
	}
	g.all[w] = true
	if len(g.all) == 1 {
		g.poke()
	}
	return w
}

// entrust makes w the guard of a tunnel that has sent so much: its cut is called at once if w has been found dead meanwhile.
func (g *guard) entrust(w *watched, cut func(error), sent func() int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w.cut, w.sent = cut, sent
	if w.dead != nil {
		cut(w.dead)
	}
}

// end cuts w. The caller holds mu.
func (g *guard) end(w *watched, cause error) {
	w.dead = cause
	w.cut(cause)
	delete(g.all, w)
}

// leave ends a watch; nil is none.
func (g *guard) leave(w *watched) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.all, w)
}

// poke has run look now. The caller holds mu.
func (g *guard) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// run looks after all connections until ctx ends.
func (g *guard) run(ctx context.Context) {
	var proofs sync.WaitGroup
	defer proofs.Wait()
	wake := make(chan struct{}, 1)
	g.mu.Lock()
	g.wake = wake
	g.mu.Unlock()
	for {
		unproven, pause := g.look(time.Now())
		for _, l := range unproven {
			proofs.Go(func() { g.prove(ctx, l) })
		}
		var next <-chan time.Time // never, where there is nothing to look after
		if pause > 0 {
			next = time.After(pause)
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-next:
		}
	}
}

// look returns the links of which is to be found out whether the network carries them, and when to look again; zero:
// not before poke.
func (g *guard) look(now time.Time) (unproven []*link, pause time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.all) > 0 {
		pause = restPause
	}
	for w := range g.all {
		if w.isIdle(now) {
			continue
		}
		isWell, wants := w.look(now)
		if !isWell || w.link.proof.due {
			pause = guardPause
		}
		if (wants || w.link.proof.due) && w.link.proof.begin(now) {
			unproven = append(unproven, w.link)
		}
	}
	return unproven, pause
}

// isIdle tells whether w was well when it was last looked at, and has sent nothing since. A Ping of ours is noticed a
// little later.
func (w *watched) isIdle(now time.Time) bool {
	if w.sent == nil || w.link.proof.due || !w.stalled.IsZero() || !w.quick.IsZero() {
		return false
	}
	if sent := w.sent(); sent != w.known || !now.Before(w.rest) {
		w.known, w.rest = sent, now.Add(idleRest)
		return false
	}
	return true
}

// look tells whether nothing is missed of w, and whether it matters to w that the network is found to work.
func (w *watched) look(now time.Time) (isWell, wants bool) {
	h := w.health()
	waits := h.InFlight > 0 || h.Probes > 0
	if !w.quick.IsZero() && (h.Answers >= w.atQuick+2 || !waits && now.Sub(w.quick) > quickFor) {
		w.quick = time.Time{}
		w.keepAlive(net.KeepAliveConfig{Enable: true})
	}
	// While keep-alives come fast, what the peer sends again and again makes the kernel take them for answered.
	if h.Answers != w.answers || !waits && (w.quick.IsZero() || w.stalled.IsZero()) {
		w.recover(h)
	}
	if !waits && w.stalled.IsZero() {
		return w.quick.IsZero(), false
	}
	if w.stalled.IsZero() {
		w.stalled = now
	}
	if w.proven.IsZero() {
		wants = h.Timeouts >= 2 || now.Sub(w.stalled) >= stallTime
		if wants && !w.hurried {
			w.hurried = true
			hurry(w.conn, true)
		}
		return false, wants
	}
	isAsked := h.Retransmitted > w.asked || !w.quick.IsZero() && now.Sub(w.quick) >= 2*quickPause && now.Sub(w.proven) >= 2*quickPause
	if w.late.IsZero() && (isAsked || now.Sub(w.proven) >= askTime) {
		w.late = now
	}
	return false, !w.late.IsZero() && now.Sub(w.late) >= max(answerTime, 3*h.RoundTrip)
}

// recover notes that w is well.
func (w *watched) recover(h tunnel.Health) {
	w.stalled, w.proven, w.late, w.answers = time.Time{}, time.Time{}, time.Time{}, h.Answers
	if w.hurried {
		w.hurried = false
		hurry(w.conn, false)
	}
}

func (w *watched) keepAlive(config net.KeepAliveConfig) {
	if c, ok := w.conn.(*net.TCPConn); ok {
		c.SetKeepAliveConfig(config) // best effort: a closed connection needs none
	}
}

// hasten has the peer asked for a sign of life every second.
func (w *watched) hasten() {
	count, h := quickCount, w.health()
	if h.Known {
		count = 100 // it is for us to say when it is dead
	}
	w.quick, w.atQuick = time.Now(), h.Answers
	w.keepAlive(net.KeepAliveConfig{Enable: true, Idle: quickPause, Interval: quickPause, Count: count})
}

// proof is what is known of the network between here and the edge of a link; guarded by guard.mu.
type proof struct {
	due     bool      // the network has changed, and nothing is known since
	changed time.Time // when it last has
	busy    bool
	pause   time.Duration
	next    time.Time
}

// begin tells whether it is time to find out.
func (p *proof) begin(now time.Time) bool {
	if p.busy || now.Before(p.next) {
		return false
	}
	p.busy = true
	return true
}

// prove makes a connection to the edge of l, to see whether one can be made, and cuts what is dead.
func (g *guard) prove(ctx context.Context, l *link) {
	began := time.Now()
	err := l.knock(ctx)
	if ctx.Err() != nil {
		return
	}
	own, addressErr := netwatch.Addresses()
	if addressErr != nil {
		own = nil
	}
	if g.judge(l, began, err, own) {
		l.pool.drop() // its connections go the same way
	}
}

// judge takes up whether a connection to the edge of l could be made that began then, and what are the machine's own
// addresses; nil: nobody knows. It tells whether something was cut.
func (g *guard) judge(l *link, began time.Time, err error, own map[netip.Addr]bool) (hasCut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	defer g.poke()
	p := &l.proof
	p.busy = false
	if began.Before(p.changed) {
		return false // over the old network
	}
	if err != nil {
		p.pause = min(max(2*p.pause, firstProof), longestProof)
		p.next = time.Now().Add(p.pause)
		l.log().Debug("the network does not carry a new connection", "remote", l.Remote, "error", err)
	} else {
		*p = proof{changed: p.changed, due: p.due}
	}
	moving := false
	for w := range g.all {
		if w.link != l {
			continue
		}
		switch cause, isMoving := w.judge(began, err == nil, p.due, own); {
		case cause != nil:
			g.end(w, cause)
			hasCut = true
		case isMoving:
			moving = true
		}
	}
	if err == nil {
		p.due = moving
		if moving {
			p.next = time.Now().Add(guardPause)
		}
	}
	return hasCut
}

// judge is guard.judge for one connection: why it is dead, if it is, and whether its address is away, but not for long.
func (w *watched) judge(began time.Time, works, changed bool, own map[netip.Addr]bool) (cause error, isMoving bool) {
	switch {
	case !works:
		w.proven, w.late = time.Time{}, time.Time{}
		return nil, false
	case own != nil && w.hasMoved(own):
		if w.moved.IsZero() {
			w.moved = time.Now()
		}
		if time.Since(w.moved) >= moveTime {
			return ErrMoved, false
		}
		return nil, true
	}
	w.moved = time.Time{}
	h := w.health()
	switch {
	case w.stalled.IsZero() || h.Answers != w.answers:
	case w.proven.IsZero():
		w.proven, w.asked = time.Now(), h.Retransmitted
	case !w.late.IsZero() && began.Sub(w.late) >= max(answerTime, 3*h.RoundTrip):
		return ErrForgotten, false
	}
	if (changed || h.Probes > 0) && w.quick.IsZero() {
		w.hasten()
	}
	return nil, false
}

// hasMoved tells whether w comes from an address that is not among own any more.
func (w *watched) hasMoved(own map[netip.Addr]bool) bool {
	local, ok := w.conn.LocalAddr().(*net.TCPAddr)
	if !ok {
		return false
	}
	ip := local.AddrPort().Addr().Unmap().WithZone("")
	return !ip.IsLoopback() && !own[ip]
}

// networkChanged has all connections looked at.
func (g *guard) networkChanged() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for w := range g.all {
		w.link.proof = proof{due: true, busy: w.link.proof.busy, changed: time.Now()}
	}
	g.poke()
}

// knock tells whether the edge, or the proxy before it, takes a connection.
func (l *link) knock(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	c, err := l.knocker.Dial(ctx, l.Remote)
	if err != nil {
		return err
	}
	return c.Close()
}

// silence keeps the log from repeating itself; its zero value is ready.
type silence struct {
	mu   sync.Mutex
	last time.Time
}

// silenceTime is how long after one connection that the network has ended the log is silent about others.
const silenceTime = time.Minute

// isTold tells whether the log has said already that the network is to blame for what has ended with err.
func (l *link) isTold(err error) bool {
	byNetwork := errors.Is(err, ErrForgotten) || errors.Is(err, ErrMoved)
	switch tunnel.EndReason(err) {
	case "timeout", "cut":
		byNetwork = true
	}
	if !byNetwork {
		return false
	}
	if since, _ := l.outage.state(); !since.IsZero() {
		return true
	}
	s := &l.silence
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.last.IsZero() && time.Since(s.last) < silenceTime {
		return true
	}
	s.last = time.Now()
	return false
}
