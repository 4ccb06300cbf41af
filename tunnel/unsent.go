package tunnel

import (
	"context"
	"time"
)

// awaitSent waits until the peers' kernels have acknowledged all that was written to conns. It gives up
// when they have acknowledged nothing for patience (0 or less: never), or when ctx ends, and tells whether
// they are known to have everything, or to be gone: whoever has ended its own direction and then resets wants nothing more.
func awaitSent(ctx context.Context, patience time.Duration, conns ...Conn) bool {
	since := time.Now()
	for pause := time.Millisecond; ; pause = min(2*pause, 250*time.Millisecond) {
		left, isKnown := 0, true
		for _, c := range conns {
			s, ok := bottomSocket(c)
			if !ok {
				continue
			}
			n, known := s.outq()
			isKnown = isKnown && known
			if n == 0 {
				continue
			}
			left += n
			if ack := s.lastAck(); ack.After(since) {
				since = ack
			}
		}
		if left == 0 || patience > 0 && time.Since(since) > patience {
			return left == 0 && isKnown
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}

// unsent is outq, or 0 where that is not known.
func (s *socket) unsent() int {
	n, _ := s.outq()
	return n
}

// hasTakenAll tells whether the kernel of c's peer has acknowledged all that was written to c, as far as is known, or is gone.
func hasTakenAll(c Conn) bool {
	s, ok := bottomSocket(c)
	return !ok || s.unsent() == 0
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
