package netwatch

import (
	"time"

	"golang.org/x/sys/windows"
)

// sinceBoot counts on in sleep and hibernation and does not know what time of day it is (GetTickCount64).
func sinceBoot() time.Duration { return windows.DurationSinceBoot() }
