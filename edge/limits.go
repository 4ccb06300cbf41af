package edge

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Limits bound what strangers can make us do. Zero means no limit.
type Limits struct {
	// Connections is how many may be open at a time. Beyond it they wait in the kernel's queue, or,
	// with Refuse, are reset.
	Connections int
	Refuse      bool
	// PerAddress is how many may be open at a time from one IPv4 address, or one /64 of IPv6. More are reset.
	PerAddress int
	// Rate is how many may come in a second from one such address, and twice as many at once. More are reset.
	Rate int
}

// Reasons for which a connection is refused.
var (
	ErrFull       = errors.New("too many connections")
	ErrPerAddress = errors.New("too many connections from one address")
	ErrRate       = errors.New("connections from one address come too fast")
	ErrRouteFull  = errors.New("too many tunnels on one route")
)

// places counts the tunnels of a route, and lets visitors wait for one: first come, first served.
type places struct {
	mu    sync.Mutex
	taken int
	turns []*turn // of those who wait
}

// turn is what somebody waits for.
type turn struct {
	limit  int           // of the route
	placed bool          // it has come; guarded by mu until came is closed
	came   chan struct{} // closed when it has come, or the limit may be another
}

// enter takes one of limit places; zero is no limit. If there is none the visitor gets a turn, where it may queue and no
// more wait than there are places; otherwise the error is ErrRouteFull.
func (p *places) enter(limit int, queue bool) (*turn, error) {
	if p == nil { // nobody counts
		return nil, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case limit <= 0 || p.taken < limit:
		p.taken++
		return nil, nil
	case !queue || len(p.turns) >= limit:
		return nil, ErrRouteFull
	}
	t := &turn{limit: limit, came: make(chan struct{})}
	p.turns = append(p.turns, t)
	return t, nil
}

// await tells whether the place is the visitor's now, or whether it has to ask again. At the end of ctx it no longer waits.
func (p *places) await(ctx context.Context, t *turn) (placed bool, err error) {
	select {
	case <-t.came:
		return t.placed, nil
	case <-ctx.Done():
		p.leave(t)
		return false, context.Cause(ctx)
	}
}

// leave gives a turn up, and the place if it has just come.
func (p *places) leave(t *turn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := slices.Index(p.turns, t); n >= 0 {
		p.turns = slices.Delete(p.turns, n, n+1)
	} else if t.placed {
		p.free()
	}
}

// give gives a place back.
func (p *places) give() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free()
}

// free hands a place on to whoever waits longest. The caller holds mu.
func (p *places) free() {
	p.taken--
	if len(p.turns) == 0 || p.taken >= p.turns[0].limit {
		return
	}
	p.taken++
	p.turns[0].placed = true
	close(p.turns[0].came)
	p.turns = slices.Delete(p.turns, 0, 1)
}

// look lets those who wait see whether the config has changed.
func (p *places) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.turns {
		close(t.came)
	}
	p.turns = nil
}

// room counts connections, and lets those who accept wait while there are too many.
type room struct {
	mu      sync.Mutex
	open    int
	changed chan struct{} // closed when there may be room; nil: nobody waits
	idle    list.List     // of *idler, the oldest first
	leaving time.Time     // until then somebody is expected to leave who was told to, or may not yet
}

// idler is a connection that waits for another tunnel, and gives its room to who comes.
type idler struct {
	leaver
	since time.Time
	place *list.Element
	given bool // its room is; guarded by room.mu
}

// enter counts one more connection, as soon as there is room. Otherwise the error is ErrFull, or the cause of ctx. Limits
// is asked each time that something has changed.
func (r *room) enter(ctx context.Context, limits func() Limits) error {
	for {
		changed, err := r.try(limits)
		if changed == nil {
			return err
		}
		var late <-chan time.Time
		if left := r.expected(); left > 0 {
			late = time.After(left)
		}
		select {
		case <-changed:
		case <-late:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// try counts one more connection or says why not; or else returns what to wait for.
func (r *room) try(limits func() Limits) (changed chan struct{}, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := limits()
	switch {
	case l.Connections <= 0 || r.open < l.Connections:
		r.open++
		return nil, nil
	case !r.giveWay() && l.Refuse:
		return nil, ErrFull
	}
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.changed, nil
}

// tailGrace is how long a client has to acknowledge the last of its tunnel: until then those at the door wait for it, and look each tailPause.
const (
	tailGrace = time.Second
	tailPause = 20 * time.Millisecond
)

// giveWay has the idler leave that is one for longest and may, unless somebody is about to leave. It tells whether anybody is. The caller
// holds mu.
func (r *room) giveWay() bool {
	now := time.Now()
	if now.Before(r.leaving) {
		return true
	}
	for range patientLooks {
		first := r.idle.Front()
		if first == nil {
			return false
		}
		i := first.Value.(*idler)
		switch {
		case i.MayLeave():
			r.idle.Remove(first)
			i.given = true
			i.StopWaiting()
			r.leaving = now.Add(handshakeGrace)
			return true
		case now.Sub(i.since) < tailGrace:
			r.leaving = now.Add(tailPause)
			return true
		}
		r.idle.MoveToBack(first)
	}
	return false
}

// expected is when to look again for who may leave; 0 or less: nobody is there who might.
func (r *room) expected() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if left := time.Until(r.leaving); left > 0 || r.idle.Len() == 0 {
		return left
	}
	return tailGrace
}

// isAwaited tells whether somebody waits for room.
func (r *room) isAwaited() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed != nil
}

// rest notes that a connection waits for another tunnel, until rise: l leaves where somebody else gets its room.
func (r *room) rest(l leaver) *idler {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := &idler{leaver: l, since: time.Now()}
	i.place = r.idle.PushBack(i)
	r.wake() // who has come meanwhile
	return i
}

// rise notes that i is idle no longer; nil never was. It tells whether it has its room.
func (r *room) rise(i *idler) bool {
	if i == nil {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !i.given {
		r.idle.Remove(i.place)
	}
	return !i.given
}

// leave gives a place back.
func (r *room) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open--
	r.leaving = time.Time{}
	r.wake()
}

func (r *room) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open
}

// look lets those who wait see whether the limits have changed.
func (r *room) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wake()
}

func (r *room) wake() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}
