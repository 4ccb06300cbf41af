package netwatch

import (
	"context"
	"time"
)

const (
	// beatPause is between two beats: short enough to notice a nap, long enough to cost nothing.
	beatPause = 3 * time.Second

	// tolerated is how late a beat may be on a machine that is awake and very busy.
	tolerated = 2 * time.Second
)

// tick sends, at each beat until ctx ends, how long the machine has slept since the last one that was
// received: mostly 0. ticks has room for one.
func tick(ctx context.Context, pause time.Duration, ticks chan time.Duration) {
	last := sinceBoot()
	beat(ctx, pause, func() {
		now := sinceBoot()
		slept := late(now-last, pause)
		last = now
		select {
		case unseen := <-ticks:
			slept += unseen
		default:
		}
		ticks <- slept
	})
}

// late is the part of the time between two beats that cannot be but sleep.
func late(passed, pause time.Duration) time.Duration {
	if passed <= pause+tolerated {
		return 0
	}
	return passed - pause
}

// beatOfRuntime calls do after each pause until ctx ends.
func beatOfRuntime(ctx context.Context, pause time.Duration, do func()) {
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			do()
		}
	}
}
