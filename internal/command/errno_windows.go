package command

import "golang.org/x/sys/windows"

// What winsock returns; the syscall package's own numbers of these names never come from the system.
const (
	errAddressMissing = windows.WSAEADDRNOTAVAIL
	errRefused        = windows.WSAECONNREFUSED
	errReset          = windows.WSAECONNRESET
)
