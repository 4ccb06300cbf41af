// Package netwatch notices that the machine has another network than before (addresses, the way out),
// and that it has slept.
//
// Linux tells through netlink at once, macOS and FreeBSD through their route socket; where the system
// does not tell, two looks are three seconds apart. Nothing is ever sent into the network.
package netwatch

import (
	"context"
	"os"
	"runtime"
	"sync"
	"time"
)

// settleTime is how long a change may take before it is looked at. What belongs together, such as the
// address and the route that DHCP sets, comes within milliseconds.
const settleTime = 200 * time.Millisecond

// Change is what is no longer as it was when Watch began or last told of a change. At least one field
// is set.
type Change struct {
	// Addresses: the machine has got an address or lost one. Loopback and link-local ones do not count.
	Addresses bool

	// Routes: packets for the internet leave another way, over IPv4 or IPv6: through another interface or
	// gateway, through an interface that has lost its link or has it back, or there is no way any more, or
	// one again. Where only the source address of packets can be learnt, it stands for all of that.
	Routes bool

	// Slept is how long the machine, or this process alone, has stood still, if that was longer than some
	// seconds; else 0. It is up to 3 seconds too short. Suspend, SIGSTOP and a frozen container look the
	// same. Where no clock counts on while the machine sleeps (FreeBSD), a clock that has been set
	// forward looks the same too.
	Slept time.Duration
}

// Watch calls changed for each change until ctx ends; it blocks. All calls come from the goroutine of
// Watch, so what happens while changed runs is told after it, as one change.
//
// A change is told when it is a quarter of a second old, and if it is still one: a link that was away for less
// is not worth a word. On a system that does not tell of changes it can take 3 seconds more.
func Watch(ctx context.Context, changed func(Change)) {
	watcher{open: openEvents, look: bestLook(), pause: beatPause}.watch(ctx, changed)
}

// watcher is what differs from one system to another.
type watcher struct {
	open  func() (*os.File, error) // a source of events; an error: there is none
	look  func() (snapshot, error)
	pause time.Duration // between two beats
}

func (w watcher) watch(ctx context.Context, changed func(Change)) {
	var all sync.WaitGroup
	defer all.Wait()
	ticks := make(chan time.Duration, 1)
	all.Go(func() { tick(ctx, w.pause, ticks) })
	var events chan struct{} // none comes from nil
	if f, err := w.open(); err == nil {
		events = make(chan struct{}, 1)
		all.Go(func() { forward(ctx, f, events) })
	}

	// Linux loses no event silently, so nobody has to look between two. Android may hold them back.
	trusted := events != nil && runtime.GOOS == "linux"
	before, err := w.look()
	for {
		var slept time.Duration
		select {
		case <-ctx.Done():
			return
		case _, ok := <-events:
			if !ok {
				events, trusted = nil, false
				continue
			}
		case slept = <-ticks:
			if slept > 0 {
				break
			}
			if trusted && err == nil {
				continue
			}
			var now snapshot
			if now, err = w.look(); err != nil || now.since(before) == (Change{}) {
				continue
			}
		}
		more, ok := settle(ctx, events, ticks)
		if !ok {
			return
		}
		change := Change{}
		var now snapshot
		if now, err = w.look(); err == nil { // else the next tick looks again
			change = now.since(before)
			before = now.or(before)
		}
		change.Slept = slept + more
		if change != (Change{}) {
			changed(change)
		}
	}
}

// settle lets a change come to its end and takes what else has been noticed by then. It is not ok if ctx
// has ended.
func settle(ctx context.Context, events <-chan struct{}, ticks <-chan time.Duration) (slept time.Duration, ok bool) {
	select {
	case <-ctx.Done():
		return 0, false
	case <-time.After(settleTime):
	}
	select {
	case <-events:
	default:
	}
	select {
	case slept = <-ticks:
	default:
	}
	return slept, true
}

// forward sends something for each burst of what comes out of f, and closes f and events in the end:
// when ctx ends or f fails.
func forward(ctx context.Context, f *os.File, events chan<- struct{}) {
	defer close(events)
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })()
	b := make([]byte, 4096) // a message may be cut off: it is not the message that counts
	for ctx.Err() == nil {
		n, err := f.Read(b)
		if err != nil && !eventsLost(err) {
			return
		}
		if err == nil && !worthALook(b[:n]) {
			continue
		}
		select {
		case events <- struct{}{}:
		default: // the last one has not been looked after yet
		}
	}
}
