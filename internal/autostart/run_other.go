//go:build !windows

package autostart

import (
	"context"
	"io"
)

// Run runs a program: start, which returns when it runs, and run, which returns when ctx has ended and it has. A manager
// that has started this process watches it, and wants no answers.
func Run(ctx context.Context, _, _ string, _ func(io.Writer), start, run func(context.Context) error) error {
	if err := start(ctx); err != nil {
		return err
	}
	return run(ctx)
}
