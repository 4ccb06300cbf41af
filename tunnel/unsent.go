package tunnel

import (
	"context"
	"time"
)

// awaitSent waits until the peers' kernels have acknowledged all that was written to conns, as long
// as that goes on: it gives up after patience without progress (0 or less: never), or when ctx ends.
func awaitSent(ctx context.Context, patience time.Duration, conns ...Conn) {
	last, since := -1, time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		left := unsent(conns...)
		if left == 0 || patience > 0 && left == last && time.Since(since) > patience {
			return
		}
		if left != last {
			last, since = left, time.Now()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// unsent is how many bytes the peers' kernels have not acknowledged.
func unsent(conns ...Conn) int {
	n := 0
	for _, c := range conns {
		if s, ok := bottomSocket(c); ok {
			n += s.unsent()
		}
	}
	return n
}

// bottomSocket is the socket below all layers of c.
func bottomSocket(c Conn) (*socket, bool) {
	for {
		if s, ok := c.(*socket); ok {
			return s, true
		}
		l, ok := c.(lower)
		if !ok {
			return nil, false
		}
		c = l.below()
	}
}
