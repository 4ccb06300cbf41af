//go:build !linux

package tunnel

import (
	"context"
	"errors"
	"fmt"
)

func acceptFastOpen(uintptr, int) {}

func connectFastOpen(uintptr) {}

const acceptKeepAlive = 0 // as package net does it

func keepAlive(uintptr) error { return nil }

func setFwmark(uintptr, uint32) error {
	return fmt.Errorf("fwmark needs Linux: %w", errors.ErrUnsupported)
}

func protect(context.Context, uintptr, string) error {
	return fmt.Errorf("protect needs Android: %w", errors.ErrUnsupported)
}
