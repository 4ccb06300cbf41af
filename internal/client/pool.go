package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"raimon/internal/netwatch"
	"raimon/tunnel"
)

const (
	// waitLife is how long a connection is kept whose edge waits for us; raimons gives it five minutes, and the
	// NATs of homes and phones as much.
	waitLife = 4 * time.Minute
	// idleLife is how long a connection is kept whose target has been dialed already: servers hang up on those
	// who say nothing, many of them after a minute.
	idleLife = 50 * time.Second
	// renewal is how long before the end of a life the next connection is made.
	renewal = 10 * time.Second
	// atOnce is how many connections are made at a time.
	atOnce = 4
	// poolPause is how long an edge that cannot be reached is left alone at most, where nobody waits for it.
	poolPause = 30 * time.Second
	// maxKept is how many connections wait at most whose tunnels have ended. More come about only where as many programs were
	// served at once.
	maxKept = 16
	// youth is the age, of a connection that nobody has used, at which its end is no sign that the next will end at once.
	youth = 5 * time.Second
)

// pool keeps connections to the edge that are ready to be used.
type pool struct {
	link *link
	wake chan struct{}
	kept sync.WaitGroup // goroutines that watch connections

	mu    sync.Mutex
	runs  bool      // run looks after idle
	next  time.Time // when it looks again by itself
	idle  []*ready  // the oldest first
	away  backoff   // while the edge cannot be reached
	tired backoff   // after a connection that has died young
}

func (p *pool) init(l *link) {
	p.link, p.wake = l, make(chan struct{}, 1)
}

// take is a connection that is alive as far as can be known without asking; nil: there is none.
func (p *pool) take() *ready {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 {
		last := len(p.idle) - 1
		r := p.idle[last]
		p.idle = p.idle[:last]
		if p.link.Pool > 0 {
			p.poke()
		}
		if r.isAlive(0) {
			r.guard.rouse(r.watched)
			return r
		}
		p.bury(r)
	}
	return nil
}

// bury closes a connection that is dead or too old. The next ones wait a while if it has died young: its edge may have
// found no target, or its target may want no more of us, and would be asked again and again. The caller holds mu.
func (p *pool) bury(r *ready) {
	r.close()
	if time.Since(r.born) < youth {
		p.tired.grow(firstPause, poolPause)
	}
}

// keep takes the connection of a tunnel that has ended well, if its edge waits for the next one, and tells whether it has.
func (p *pool) keep(s *tunnel.Session, bare, conn tunnel.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.runs || len(p.idle) >= max(maxKept, p.link.Pool) {
		return false
	}
	r := &ready{bare: bare, conn: conn, waits: true, guard: &p.link.client.guard, watched: s.Info().Route.(*watched)}
	r.until = time.Now().Round(0).Add(p.link.Reuse)
	s.Info().Route = nil // the guard goes on
	r.guard.retire(r.watched, r.declareDead)
	r.keep(p)
	p.idle = append(p.idle, r)
	if r.until.Before(p.next) {
		p.poke()
	}
	return true
}

// size is how many connections are ready.
func (p *pool) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.idle)
}

// drop gives up all connections that are ready, and has others made at once.
func (p *pool) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.idle {
		r.close()
	}
	p.idle, p.away, p.tired = nil, backoff{}, backoff{}
	p.poke()
}

// dropMoved gives up the connections that are ready and would be made from another address now: theirs is gone, or there is another
// way to the edge, such as a VPN. It tells whether there were any. An edge that could not be reached is tried again.
func (p *pool) dropMoved() (found bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = slices.DeleteFunc(p.idle, func(r *ready) bool {
		if !r.hasMoved() {
			return false
		}
		found = true
		r.close()
		return true
	})
	p.away = backoff{}
	p.poke()
	return found
}

// poke lets run look again.
func (p *pool) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run keeps the pool full until ctx ends.
func (p *pool) run(ctx context.Context) {
	defer p.kept.Wait()
	defer p.drop()
	defer p.setRuns(false)
	for ctx.Err() == nil {
		since, changed := p.link.outage.watch()
		missing, next := p.look(since.IsZero())
		if missing > 0 {
			p.leaveAlone(!p.fill(ctx, missing, since.IsZero()))
			continue
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (p *pool) setRuns(runs bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.runs = runs
}

// leaveAlone sets the pause after an edge could not be reached, or could.
func (p *pool) leaveAlone(failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if failed {
		p.away.grow(time.Second, poolPause)
	} else {
		p.away = backoff{}
	}
}

// look closes what is dead, and says how many connections are to be made now, and when to look again.
func (p *pool) look(reached bool) (missing int, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { p.next = next }()
	p.idle = slices.DeleteFunc(p.idle, func(r *ready) bool {
		if r.isAlive(0) {
			return false
		}
		p.bury(r)
		return true
	})
	now := time.Now()
	missing, next = p.link.Pool, now.Add(waitLife)
	for _, r := range p.idle {
		if time.Since(r.born) >= youth {
			p.tired.pause = 0
		}
		if r.isAlive(renewal) {
			missing--
			next = earlier(next, r.until.Add(-renewal))
		} else {
			next = earlier(next, r.until)
		}
	}
	if !reached && p.away.lasts(now) {
		return 0, earlier(next, p.away.until)
	}
	if p.tired.lasts(now) {
		return 0, earlier(next, p.tired.until)
	}
	return missing, next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// fill makes some of the missing connections and tells whether that is worth another try.
func (p *pool) fill(ctx context.Context, missing int, reached bool) bool {
	if !reached {
		missing = 1
	}
	made := make(chan bool, atOnce)
	count := min(missing, atOnce)
	for range count {
		p.kept.Go(func() { made <- p.add(ctx) })
	}
	all := true
	for range count {
		all = <-made && all
	}
	return all
}

func (p *pool) add(ctx context.Context) bool {
	r, err := p.link.attempt(ctx, p.link.timeout(), true, "")
	if isStarved(err) {
		p.link.log().Debug("the pool is not filled", "error", err) // programs that fail of it say so louder
		p.mu.Lock()
		defer p.mu.Unlock()
		p.tired.grow(firstPause, poolPause)
		return false
	}
	if err != nil {
		return err == errNetworkChanged
	}
	r.guard.rest(r.watched)
	r.keep(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil {
		r.close()
		return false
	}
	p.idle = append(p.idle, r)
	return true
}

// ready is a connection to the edge that can be used.
type ready struct {
	bare    tunnel.Conn // below conn
	conn    tunnel.Conn
	waits   bool      // its edge dials the target only when told to
	born    time.Time // zero: it has been used before
	until   time.Time // by the wall clock, which goes on while the machine sleeps
	guard   *guard
	watched *watched // by guard

	done  chan struct{} // closed when the edge that waits has spoken, or it has died, or has said too much; nil: nobody watches
	heard []byte        // what came before it was claimed
	err   error

	mu   sync.Mutex
	over bool   // done is closed, or about to be
	wake func() // called before done is closed; nil: nobody asks

	dead    atomic.Pointer[error] // why nobody is to wait for it any more
	refused error                 // why the edge has not reached the target that was named in the handshake
}

// newReady is what can be used of a connection to the edge of l, and watched: another can take its place if it is dead.
func newReady(l *link, bare, conn tunnel.Conn) *ready {
	r := &ready{bare: bare, conn: conn, waits: tunnel.Waiting(conn), born: time.Now(), guard: &l.client.guard}
	r.watched = r.guard.watch(l, conn, r.declareDead)
	life := idleLife
	if r.waits {
		life = waitLife
	}
	r.until = time.Now().Round(0).Add(life - rand.N(life/5))
	return r
}

// keep watches r, for p, until it is claimed or dies.
func (r *ready) keep(p *pool) {
	r.done = make(chan struct{})
	p.kept.Go(func() {
		r.watch()
		if r.err != nil {
			p.poke()
		}
	})
}

// watch waits for what is said on r, or for its end, and wakes whoever has asked for that.
func (r *ready) watch() {
	if r.waits {
		r.err = tunnel.AwaitOpen(r.conn)
	} else {
		r.hear()
	}
	r.mu.Lock()
	r.over = true
	wake := r.wake
	r.mu.Unlock()
	if wake != nil {
		wake()
	}
	close(r.done)
}

// maxHeard is how much a server may say before anybody asks it, in bytes.
const maxHeard = 64 << 10

// errTalkative is of a server of which it cannot be known whether it has hung up, because more is to be read before.
var errTalkative = errors.New("the server says more than 64 KiB before it is asked")

// hear keeps what a server says before anybody asks it, which is a greeting, and goes on to hear whether it hangs up.
func (r *ready) hear() {
	b := make([]byte, 4<<10)
	for r.err == nil {
		var n int
		n, r.err = r.conn.Read(b)
		r.heard = append(r.heard, b[:n]...)
		if r.err == nil && len(r.heard) > maxHeard {
			r.err = errTalkative
		}
	}
}

// isAlive tells whether r can be used for some time to come.
func (r *ready) isAlive(ahead time.Duration) bool {
	if !time.Now().Round(0).Add(ahead).Before(r.until) {
		return false
	}
	select {
	case <-r.done:
		return false
	default:
		return true
	}
}

// hasMoved tells whether r would be made from another address now.
func (r *ready) hasMoved() bool {
	from, ok := r.watched.conn.LocalAddr().(*net.TCPAddr)
	to, ok2 := r.watched.conn.RemoteAddr().(*net.TCPAddr)
	if !ok || !ok2 {
		return false
	}
	source, err := netwatch.Source(to.AddrPort().Addr().Unmap())
	return err != nil || source != from.AddrPort().Addr().Unmap().WithZone("")
}

// close ends a connection on which nothing has been said.
func (r *ready) close() {
	r.guard.leave(r.watched)
	r.conn.Close()
}

// abandon closes a connection on which something may have been said: what has not arrived must not look complete.
func (r *ready) abandon() {
	r.guard.leave(r.watched)
	tunnel.ResetOnClose(r.bare)
	r.bare.Close()
	if r.done != nil {
		<-r.done
	}
	tunnel.Release(r.conn)
}

// declareDead wakes whoever waits for r, because of cause.
func (r *ready) declareDead(cause error) {
	r.dead.Store(&cause)
	r.conn.SetDeadline(past)
}

// opened waits until the edge says that the target is there. Meanwhile it does what reads from local, until a deadline wakes it.
func (r *ready) opened(local tunnel.Conn, meanwhile func()) error {
	if r.done == nil {
		r.done = make(chan struct{})
		go r.watch()
	}
	wake := func() { local.SetReadDeadline(past) }
	r.mu.Lock()
	if r.wake = wake; r.over {
		wake()
	}
	r.mu.Unlock()
	meanwhile()
	<-r.done
	local.SetReadDeadline(time.Time{})
	return r.err
}

// claim ends the watch over a connection whose edge says nothing before its target does.
func (r *ready) claim() error {
	if r.done == nil {
		return nil
	}
	r.conn.SetReadDeadline(past)
	<-r.done
	r.conn.SetReadDeadline(time.Time{})
	if cause := r.dead.Load(); cause != nil {
		return *cause
	}
	if r.err != nil && !errors.Is(r.err, os.ErrDeadlineExceeded) {
		return r.err
	}
	r.conn = tunnel.ReadAhead(r.conn, r.heard)
	return nil
}
