package memory

import (
	"time"

	"golang.org/x/sys/unix"
)

// sleep is time.Sleep, on a thread of its own. While a timer of Go's is pending, each wait of the poller
// is one with a time limit, which makes a round trip through the program some microseconds longer.
func sleep(d time.Duration) {
	left := unix.NsecToTimespec(d.Nanoseconds())
	for unix.Nanosleep(&left, &left) == unix.EINTR {
	}
}
