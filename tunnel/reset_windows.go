package tunnel

import (
	"errors"

	"golang.org/x/sys/windows"
)

// IsReset tells whether err is a connection reset by the peer.
func IsReset(err error) bool {
	for _, e := range []error{windows.WSAECONNRESET, windows.WSAECONNABORTED, windows.WSAENOTCONN, windows.WSAESHUTDOWN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
