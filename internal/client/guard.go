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
	// idleRest is how long nobody looks after a tunnel that sends nothing, or a connection that nobody uses.
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
	slow bool          // the next look is far away
}

// watched is a connection to an edge in use. There may be thousands, most of them idle: what only matters for one that
// is not well is kept apart.
type watched struct {
	link    *link
	conn    net.Conn                          // the bottom
	opening func(error)                       // cuts it before there is a tunnel
	session session                           // nil: there is no tunnel yet
	health  func(conn net.Conn) tunnel.Health // of conn
	spare   bool                              // nobody uses it yet

	known    int64  // what the tunnel had sent when it was last looked at
	until    int64  // when it is to be looked at again, even if it has sent nothing; Unix nanoseconds
	answers  uint64 // when it was last well
	dead     error  // why it was cut; nil: it was not
	*trouble        // never nil
}

// session is a tunnel.Session.
type session interface {
	Cut(error)
	Sent() int64
	Received() int64
}

// trouble is what is known of a connection that is not well.
type trouble struct {
	stalled time.Time // when it was first seen with something that is not answered since; zero: it is well
	proven  time.Time // when the network was found to work, while it is stalled; zero: it was not
	asked   uint32    // retransmissions when it was proven
	late    time.Time // when one more was seen since; zero: none yet
	hurried bool      // the kernel makes short pauses
	quick   time.Time // since when its keep-alives come fast; zero: they do not
	atQuick uint64    // answers by then
	moved   time.Time // when its address was first missed; zero: it is there
}

// none is the trouble of a connection that has none. It is never written to.
var none trouble

// own makes the trouble of w its own, to be written to.
func (w *watched) own() *trouble {
	if w.trouble == &none {
		w.trouble = new(trouble)
	}
	return w.trouble
}

// watch looks after c until leave. It calls cut when c is dead.
func (g *guard) watch(l *link, c tunnel.Conn, cut func(error)) *watched {
	w := &watched{link: l, conn: tunnel.Bottom(c), opening: cut, health: tunnel.HealthOf, trouble: &none}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all == nil {
		g.all = make(map[*watched]bool)
	}
	g.all[w] = true
	if g.slow {
		g.poke()
	}
	return w
}

// rest says that nobody uses w, until rouse.
func (g *guard) rest(w *watched) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w.spare = true
}

// retire says that the tunnel of w has ended and that nobody uses the connection until rouse. It calls cut when that is dead.
func (g *guard) retire(w *watched, cut func(error)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w.session, w.opening, w.spare = nil, cut, true
	if w.dead != nil {
		cut(w.dead)
	}
}

// rouse says that w is about to be used.
func (g *guard) rouse(w *watched) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w.spare = false
	if g.slow {
		g.poke()
	}
}

// entrust makes w the guard of a tunnel, which is cut at once if w has been found dead meanwhile.
func (g *guard) entrust(w *watched, s session) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w.session, w.opening = s, nil
	if w.dead != nil {
		s.Cut(w.dead)
	}
}

// cut ends w because of cause.
func (w *watched) cut(cause error) {
	if w.session != nil {
		w.session.Cut(cause)
	} else {
		w.opening(cause)
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

// traffic is what the open tunnels of l have carried, in bytes.
func (g *guard) traffic(l *link) (sent, received int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for w := range g.all {
		if w.link == l && w.session != nil {
			sent, received = sent+w.session.Sent(), received+w.session.Received()
		}
	}
	return sent, received
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
	for w := range g.all {
		next := restPause
		if w.spare {
			next = idleRest
		}
		if w.isIdle(now) {
			pause = sooner(pause, next)
			continue
		}
		isWell, wants := w.look(now)
		if !isWell || w.link.proof.due {
			next = guardPause
		}
		pause = sooner(pause, next)
		if (wants || w.link.proof.due) && w.link.proof.begin(now) {
			unproven = append(unproven, w.link)
		}
	}
	g.slow = pause == 0 || pause > restPause
	return unproven, pause
}

// sooner is the shorter one of two pauses; a is zero where there is none yet.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 {
		return b
	}
	return min(a, b)
}

// isIdle tells whether w was well when it was last looked at, and has sent nothing since. A Ping of ours is noticed a
// little later.
func (w *watched) isIdle(now time.Time) bool {
	if w.session == nil && !w.spare || w.link.proof.due || !w.stalled.IsZero() || !w.quick.IsZero() {
		return false
	}
	sent := int64(0)
	if w.session != nil {
		sent = w.session.Sent()
	}
	if sent != w.known || now.UnixNano() >= w.until {
		w.known, w.until = sent, now.Add(idleRest).UnixNano()
		return false
	}
	return true
}

// look tells whether nothing is missed of w, and whether it matters to w that the network is found to work.
func (w *watched) look(now time.Time) (isWell, wants bool) {
	h := w.health(w.conn)
	waits := h.InFlight > 0 || h.Probes > 0
	if !w.quick.IsZero() && (h.Answers >= w.atQuick+2 || !waits && now.Sub(w.quick) > quickFor) {
		w.own().quick = time.Time{}
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
		w.own().stalled = now
	}
	if w.proven.IsZero() {
		wants = h.Timeouts >= 2 || now.Sub(w.stalled) >= stallTime
		if wants && !w.hurried {
			w.own().hurried = true
			hurry(w.conn, true)
		}
		return false, wants
	}
	isAsked := h.Retransmitted > w.asked || !w.quick.IsZero() && now.Sub(w.quick) >= 2*quickPause && now.Sub(w.proven) >= 2*quickPause
	if w.late.IsZero() && (isAsked || now.Sub(w.proven) >= askTime) {
		w.own().late = now
	}
	return false, !w.late.IsZero() && now.Sub(w.late) >= max(answerTime, 3*h.RoundTrip)
}

// recover notes that w is well.
func (w *watched) recover(h tunnel.Health) {
	w.answers = h.Answers
	if w.trouble == &none {
		return
	}
	if w.hurried {
		hurry(w.conn, false)
	}
	w.stalled, w.proven, w.late, w.hurried = time.Time{}, time.Time{}, time.Time{}, false
	if w.quick.IsZero() && w.moved.IsZero() {
		w.trouble = &none
	}
}

func (w *watched) keepAlive(config net.KeepAliveConfig) {
	if c, ok := w.conn.(*net.TCPConn); ok {
		c.SetKeepAliveConfig(config) // best effort: a closed connection needs none
	}
}

// hasten has the peer asked for a sign of life every second.
func (w *watched) hasten() {
	count, h := quickCount, w.health(w.conn)
	if h.Known {
		count = 100 // it is for us to say when it is dead
	}
	w.own().quick, w.own().atQuick = time.Now(), h.Answers
	w.keepAlive(net.KeepAliveConfig{Enable: true, Idle: quickPause, Interval: quickPause, Count: count})
}

// proof is what is known of the network between here and the edge of a link; guarded by guard.mu.
type proof struct {
	due     bool      // the network has changed, and nothing is known since
	changed time.Time // when it last has
	busy    bool
	backoff backoff
}

// begin tells whether it is time to find out.
func (p *proof) begin(now time.Time) bool {
	if p.busy || p.backoff.lasts(now) {
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
		p.backoff.grow(firstProof, longestProof)
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
			p.backoff.until = time.Now().Add(guardPause)
		}
	}
	return hasCut
}

// judge is guard.judge for one connection: why it is dead, if it is, and whether its address is away, but not for long.
func (w *watched) judge(began time.Time, works, changed bool, own map[netip.Addr]bool) (cause error, isMoving bool) {
	switch {
	case !works:
		if w.trouble != &none {
			w.proven, w.late = time.Time{}, time.Time{}
		}
		return nil, false
	case own != nil && w.hasMoved(own):
		if w.moved.IsZero() {
			w.own().moved = time.Now()
		}
		if time.Since(w.moved) >= moveTime {
			return ErrMoved, false
		}
		return nil, true
	}
	if !w.moved.IsZero() {
		w.moved = time.Time{}
	}
	h := w.health(w.conn)
	switch {
	case w.stalled.IsZero() || h.Answers != w.answers:
	case w.proven.IsZero():
		w.own().proven, w.own().asked = time.Now(), h.Retransmitted
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
	byNetwork := errors.Is(err, ErrForgotten) || errors.Is(err, ErrMoved) || errors.As(err, new(straggler))
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
