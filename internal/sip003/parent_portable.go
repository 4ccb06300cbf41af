//go:build !windows

package sip003

import (
	"context"
	"os"
	"time"
)

// WatchParent returns nil when the parent process has ended, and ctx's error when ctx ends first.
//
// Shadowsocks that is killed with SIGKILL cannot tell its plugin, so the plugin looks once a second whether it has
// another parent. PR_SET_PDEATHSIG would not do: it follows the thread that started us, not the process.
//
// Call it early: a parent that ended before the call is not noticed, as a plugin whose parent is process 1 may be an
// orphan as well as the child of a shadowsocks that is process 1 of its container.
func WatchParent(ctx context.Context) error {
	parent := os.Getppid()
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
