//go:build unix

package tunnel

import "golang.org/x/sys/unix"

// inlineUrgent has urgent data of TCP come like all other, as RFC 6093, section 5, wants it. Else a read passes it over. What a listener
// accepts inherits this from it. It is best effort.
func inlineUrgent(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) }
