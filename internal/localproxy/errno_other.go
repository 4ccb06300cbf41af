//go:build !windows

package localproxy

import "syscall"

const (
	errNetworkUnreachable = syscall.ENETUNREACH
	errHostUnreachable    = syscall.EHOSTUNREACH
)
