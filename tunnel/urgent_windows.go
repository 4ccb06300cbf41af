package tunnel

import "syscall"

// inlineUrgent is what it is on Unix, with a number from winsock2.h.
func inlineUrgent(fd uintptr) {
	const oobInline = 0x100 // SO_OOBINLINE
	_ = syscall.SetsockoptInt(syscall.Handle(fd), syscall.SOL_SOCKET, oobInline, 1)
}
