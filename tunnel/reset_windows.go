package tunnel

import (
	"errors"
	"syscall"
)

// isReset tells whether err is a connection reset by the peer.
func isReset(err error) bool {
	return errors.Is(err, syscall.WSAECONNRESET) || errors.Is(err, syscall.WSAECONNABORTED) || errors.Is(err, syscall.ENOTCONN)
}
