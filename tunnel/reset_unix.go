//go:build !windows

package tunnel

import (
	"errors"
	"syscall"
)

// isReset tells whether err is a connection reset by the peer.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
