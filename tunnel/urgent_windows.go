package tunnel

import (
	"os"
	"syscall"
)

// inlineUrgent has urgent data of TCP come like all other, as RFC 6093, section 5, wants it. Else a read passes it over. What a listener
// accepts inherits this from it.
func inlineUrgent(fd uintptr) error {
	const oobInline = 0x100 // SO_OOBINLINE of winsock2.h
	return os.NewSyscallError("setsockopt", syscall.SetsockoptInt(syscall.Handle(fd), syscall.SOL_SOCKET, oobInline, 1))
}
