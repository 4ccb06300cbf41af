//go:build !linux && !darwin && !freebsd

package handover

import (
	"context"
	"errors"
	"log/slog"
	"net"
)

var errSystem = &Error{Text: "listeners cannot be handed over on this system", Err: errors.ErrUnsupported, Fix: "stop the old process, then start the new one"}

// Serve cannot be had on this system: the error matches errors.ErrUnsupported.
func Serve(context.Context, string, func() map[string]net.Listener, *slog.Logger) error {
	return errSystem
}

// Take cannot be had on this system: the error matches errors.ErrUnsupported.
func Take(context.Context, string) (map[string]net.Listener, func(error) error, error) {
	return nil, nil, errSystem
}
