package client

import (
	"math/rand/v2"
	"time"
)

// backoff is a pause between attempts, which grows while they fail. Its zero value is none.
type backoff struct {
	pause time.Duration
	until time.Time // when it is over
}

// grow begins a pause of at most twice the last one, from first on up to longest. Failures in the midst of a pause are of attempts
// that began before it, and change nothing.
func (b *backoff) grow(first, longest time.Duration) {
	now := time.Now()
	if b.lasts(now) {
		return
	}
	b.pause = min(max(2*b.pause, first), longest)
	b.until = now.Add(b.pause/2 + rand.N(b.pause/2)) // not all clients of an edge at once
}

// lasts tells whether it is too early for an attempt.
func (b *backoff) lasts(now time.Time) bool { return now.Before(b.until) }
