//go:build !windows

package tunnel

import (
	"errors"
	"syscall"
)

// IsReset tells whether err is a connection reset by the peer.
func IsReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
