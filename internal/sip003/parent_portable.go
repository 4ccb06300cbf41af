//go:build !windows

package sip003

import (
	"context"
	"os"
	"time"
)

// WatchParent returns nil when the process parent, which started this one, has ended, and ctx's error when ctx ends
// first. Take parent from os.Getppid before anything else is done: an orphan has another one.
//
// Shadowsocks that is killed with SIGKILL cannot tell its plugin, so the plugin looks once a second whether it has
// another parent. PR_SET_PDEATHSIG would not do: it follows the thread that started us, not the process.
//
// A parent that ended before os.Getppid was asked is not noticed: a plugin whose parent is process 1 may be an orphan as
// well as the child of a shadowsocks that is process 1 of its container.
func WatchParent(ctx context.Context, parent int) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
			if os.Getppid() != parent {
				return nil
			}
		}
	}
}
