//go:build !windows

package tunnel

import (
	"errors"
	"syscall"
)

// IsReset tells whether err is a connection reset by the peer.
func IsReset(err error) bool {
	// Who ends a direction of a connection that has been reset is told that there is no connection.
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ENOTCONN)
}
