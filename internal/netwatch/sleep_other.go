//go:build !linux

package netwatch

import (
	"context"
	"time"
)

func beat(ctx context.Context, pause time.Duration, do func()) { beatOfRuntime(ctx, pause, do) }
