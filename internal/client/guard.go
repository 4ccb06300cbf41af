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
	guardInterval = time.Second
	// resendGrace is how long a segment that was sent again may stay unacknowledged once the network is known to work.
	resendGrace = 1500 * time.Millisecond
	// proofTimeout limits an attempt to find out whether the network works.
	proofTimeout = 3 * time.Second
	longestProof = 10 * time.Second // between two of them
	// After a change of the network, idle connections are asked for a sign of life.
	quickIdle, quickCount, quickFor = time.Second, 5, 10 * time.Second
)

// guard finds connections that are dead though nobody has said so: the NAT that knew them has forgotten them, or this
// machine has moved. A silent edge alone proves nothing: the network may be down, and come back. What proves it is
// a new connection to the same edge that is made at once, while an old one is not acknowledged.
type guard struct {
	mu  sync.Mutex
	all map[*watched]bool
}

// watched is a connection to an edge in use.
type watched struct {
	link *link
	conn net.Conn // the bottom
	cut  func(error)

	stalled time.Time // when it was first seen with bytes that are not acknowledged since; zero: it is well
	proven  bool      // the network works, while it is stalled
	resent  uint32    // retransmissions when that was proven
	late    time.Time // when one more was seen since; zero: none yet
	quick   time.Time // until when its keep-alives come fast; zero: they do not
}

// watch looks after c until leave. It calls cut when c is dead.
func (g *guard) watch(l *link, c tunnel.Conn, cut func(error)) *watched {
	w := &watched{link: l, conn: tunnel.Bottom(c), cut: cut}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all == nil {
		g.all = make(map[*watched]bool)
	}
	g.all[w] = true
	return w
}

// leave ends a watch; nil is none.
func (g *guard) leave(w *watched) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.all, w)
}

// run looks after all connections until ctx ends.
func (g *guard) run(ctx context.Context) {
	var proofs sync.WaitGroup
	defer proofs.Wait()
	tick := time.NewTicker(guardInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, l := range g.look(now) {
				proofs.Go(func() { g.prove(ctx, l) })
			}
		}
	}
}

// look cuts what is dead and returns the links of which is to be found out whether the network carries them.
func (g *guard) look(now time.Time) (unproven []*link) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for w := range g.all {
		if w.look(now) {
			w.cut(ErrForgotten)
			delete(g.all, w)
			continue
		}
		isStalled := !w.stalled.IsZero() && now.Sub(w.stalled) >= guardInterval && !w.proven
		if (isStalled || w.link.proof.due) && w.link.proof.begin(now) {
			unproven = append(unproven, w.link)
		}
	}
	return unproven
}

// look tells whether w is dead.
func (w *watched) look(now time.Time) bool {
	if !w.quick.IsZero() && now.After(w.quick) {
		w.quick = time.Time{}
		w.keepAlive(net.KeepAliveConfig{Enable: true})
	}
	h := tunnel.HealthOf(w.conn)
	if h.Unacknowledged == 0 || h.LastAck.After(w.stalled) && !w.stalled.IsZero() {
		w.stalled, w.proven, w.late = time.Time{}, false, time.Time{}
		return false
	}
	if w.stalled.IsZero() {
		w.stalled = now
	}
	if w.proven && w.late.IsZero() && h.Retransmitted > w.resent {
		w.late = now
	}
	return !w.late.IsZero() && now.Sub(w.late) >= resendGrace
}

func (w *watched) keepAlive(config net.KeepAliveConfig) {
	if c, ok := w.conn.(*net.TCPConn); ok {
		c.SetKeepAliveConfig(config) // best effort: a closed connection needs none
	}
}

// proof is what is known of the network between here and the edge of a link; guarded by guard.mu.
type proof struct {
	due   bool // the network has changed
	busy  bool
	pause time.Duration
	next  time.Time
}

// begin tells whether it is time to find out.
func (p *proof) begin(now time.Time) bool {
	if p.busy || now.Before(p.next) {
		return false
	}
	p.busy = true
	return true
}

// prove makes a connection to the edge of l, to see whether one can be made.
func (g *guard) prove(ctx context.Context, l *link) {
	err := l.knock(ctx)
	own, addressErr := netwatch.Addresses()
	g.mu.Lock()
	defer g.mu.Unlock()
	l.proof.busy = false
	if err != nil {
		l.proof.pause = min(max(2*l.proof.pause, guardInterval), longestProof)
		l.proof.next = time.Now().Add(l.proof.pause)
		return
	}
	changed := l.proof.due
	l.proof = proof{}
	for w := range g.all {
		if w.link != l {
			continue
		}
		if addressErr == nil && w.hasMoved(own) {
			w.cut(ErrMoved)
			delete(g.all, w)
			continue
		}
		if !w.stalled.IsZero() && !w.proven {
			w.proven, w.resent = true, tunnel.HealthOf(w.conn).Retransmitted
		}
		if changed {
			w.quick = time.Now().Add(quickFor)
			w.keepAlive(net.KeepAliveConfig{Enable: true, Idle: quickIdle, Interval: quickIdle, Count: quickCount})
		}
	}
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
		w.link.proof = proof{due: true, busy: w.link.proof.busy}
	}
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
