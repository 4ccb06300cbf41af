//go:build !linux

package memory

import "time"

func sleep(d time.Duration) { time.Sleep(d) }
