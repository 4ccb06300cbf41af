package tunnel

import (
	"context"
	"sync"
)

// leash cuts tunnels when their context ends. One hook on the context does for all of them: one for each would be a
// good part of what an idle tunnel costs.
type leash struct {
	ctx context.Context

	mu     sync.Mutex
	relays map[*relay]struct{}
	unhook func() bool // takes the hook off; nil: there is none
}

// leashFor is that of all relays with ctx.
func (f *Forwarder) leashFor(ctx context.Context) *leash {
	l := f.leash.Load()
	if l == nil || l.ctx != ctx {
		l = &leash{ctx: ctx, relays: make(map[*relay]struct{})}
		f.leash.Store(l)
	}
	return l
}

// hold cuts r when the context ends, until it is let go.
func (l *leash) hold(r *relay) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.relays[r] = struct{}{}
	if l.unhook == nil {
		l.unhook = context.AfterFunc(l.ctx, l.pull)
	} else if l.ctx.Err() != nil {
		go r.abort(context.Cause(l.ctx), byNobody) // pull may not have seen it
	}
}

func (l *leash) letGo(r *relay) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.relays, r)
	if len(l.relays) == 0 {
		l.unhook()
		l.unhook = nil
	}
}

func (l *leash) pull() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := range l.relays {
		r.abort(context.Cause(l.ctx), byNobody)
	}
}
