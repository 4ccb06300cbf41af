package localproxy

import "golang.org/x/sys/windows"

// What winsock returns; the syscall package's own numbers of these names never come from the system.
const (
	errNetworkUnreachable = windows.WSAENETUNREACH
	errHostUnreachable    = windows.WSAEHOSTUNREACH
)
