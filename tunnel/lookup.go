package tunnel

import (
	"context"
	"net/netip"
	"sync"
)

// Resolver finds the addresses of a name, as *net.Resolver does; network is ip4 or ip6. A name without
// such addresses is a *net.DNSError with IsNotFound. When ctx ends, it returns at once.
//
// If it has a method Forget, [Dialer.Forget] calls that too.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// lookups lets all who ask the same thing at the same time wait for one answer. Nothing is kept:
// who comes later asks anew. Package net does so too, but a lookup with several who wait goes on there
// when all of them have left. The zero value is ready.
type lookups struct {
	mu      sync.Mutex
	running map[question]*lookup
}

type question struct{ network, host string }

type lookup struct {
	cancel    context.CancelFunc
	waiting   int  // who wants the answer; guarded by lookups.mu
	forgotten bool // the answer is not to be waited for; guarded by lookups.mu

	done      chan struct{} // closed once what follows is set
	addresses []netip.Addr
	err       error
}

// do looks q up, alone or with others. It ends when ctx does; the lookup ends with the last who waits.
func (l *lookups) do(ctx context.Context, r Resolver, network, host string) ([]netip.Addr, error) {
	q := question{network, host}
	for {
		shared := l.join(r, q)
		select {
		case <-shared.done:
		case <-ctx.Done():
		}
		again := l.leave(q, shared)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if !again {
			return shared.addresses, shared.err
		}
	}
}

func (l *lookups) join(r Resolver, q question) *lookup {
	l.mu.Lock()
	defer l.mu.Unlock()
	shared := l.running[q]
	if shared == nil {
		ctx, cancel := context.WithCancel(context.Background())
		shared = &lookup{cancel: cancel, done: make(chan struct{})}
		if l.running == nil {
			l.running = make(map[question]*lookup)
		}
		l.running[q] = shared
		go func() {
			defer close(shared.done)
			shared.addresses, shared.err = r.LookupNetIP(ctx, q.network, q.host)
		}()
	}
	shared.waiting++
	return shared
}

// leave ends a lookup that nobody waits for. It tells whether the caller has to ask again.
func (l *lookups) leave(q question, shared *lookup) (again bool) {
	l.mu.Lock()
	shared.waiting--
	last, again := shared.waiting == 0, shared.forgotten
	if l.running[q] == shared {
		// Answered, or about to end: whoever comes next must not join it.
		select {
		case <-shared.done:
			delete(l.running, q)
		default:
			if last {
				delete(l.running, q)
			}
		}
	}
	l.mu.Unlock()
	if last {
		shared.cancel()
		<-shared.done
	}
	return again
}

// forget makes all who wait ask again.
func (l *lookups) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, shared := range l.running {
		shared.forgotten = true
		shared.cancel()
	}
	clear(l.running)
}
