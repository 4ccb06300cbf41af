package edge

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
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

// tunnelCount counts what is open.
type tunnelCount struct{ n atomic.Int64 }

// take counts one more unless limit is reached; zero is no limit.
func (c *tunnelCount) take(limit int) bool {
	if n := c.n.Add(1); limit > 0 && n > int64(limit) {
		c.n.Add(-1)
		return false
	}
	return true
}

func (c *tunnelCount) give() { c.n.Add(-1) }

// room counts connections, and lets those who accept wait while there are too many.
type room struct {
	mu      sync.Mutex
	open    int
	changed chan struct{} // closed when there may be room; nil: nobody waits
}

// enter counts one more connection, as soon as there is room. Otherwise the error is ErrFull, or the cause of ctx. Limits
// is asked each time that something has changed.
func (r *room) enter(ctx context.Context, limits func() Limits) error {
	for {
		changed, err := r.try(limits)
		if changed == nil {
			return err
		}
		select {
		case <-changed:
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
	case l.Refuse:
		return nil, ErrFull
	}
	if r.changed == nil {
		r.changed = make(chan struct{})
	}
	return r.changed, nil
}

// leave gives a place back.
func (r *room) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open--
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
