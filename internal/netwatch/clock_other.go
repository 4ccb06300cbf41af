//go:build !linux && !darwin && !windows

package netwatch

import "time"

// sinceBoot is the time of day: no other clock counts on in sleep for sure. Only differences matter.
func sinceBoot() time.Duration { return time.Duration(time.Now().UnixNano()) }
