package netwatch

import (
	"time"

	"golang.org/x/sys/unix"
)

// sinceBoot counts on in sleep, which the runtime's clock does not, and does not know what time of day it
// is (clock_gettime(3)).
func sinceBoot() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return time.Duration(time.Now().UnixNano())
	}
	return time.Duration(now.Nano())
}
