//go:build !windows

package tunnel

import "syscall"

const (
	errAddressInUse    = syscall.EADDRINUSE
	errAddressMissing  = syscall.EADDRNOTAVAIL
	errAddressFamily   = syscall.EAFNOSUPPORT
	errRefused         = syscall.ECONNREFUSED
	errHostUnreachable = syscall.EHOSTUNREACH
	errNetUnreachable  = syscall.ENETUNREACH
	errTimedOut        = syscall.ETIMEDOUT
)
