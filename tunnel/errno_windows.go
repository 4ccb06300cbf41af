package tunnel

import "golang.org/x/sys/windows"

// What winsock returns; the syscall package's own numbers of these names never come from the system.
const (
	errAddressInUse    = windows.WSAEADDRINUSE
	errAddressMissing  = windows.WSAEADDRNOTAVAIL
	errAddressFamily   = windows.WSAEAFNOSUPPORT
	errRefused         = windows.WSAECONNREFUSED
	errHostUnreachable = windows.WSAEHOSTUNREACH
	errNetUnreachable  = windows.WSAENETUNREACH
	errTimedOut        = windows.WSAETIMEDOUT
)
