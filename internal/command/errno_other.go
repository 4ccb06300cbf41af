//go:build !windows

package command

import "syscall"

const (
	errAddressMissing = syscall.EADDRNOTAVAIL
	errRefused        = syscall.ECONNREFUSED
	errReset          = syscall.ECONNRESET
)
