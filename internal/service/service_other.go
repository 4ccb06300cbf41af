//go:build !linux

package service

import (
	"os"
	"time"
)

// There is no systemd. Whatever else speaks its protocol takes any clock that only grows.
func monotonic() (time.Duration, error) { return time.Duration(time.Now().UnixNano()), nil }

func inherited() []*os.File { return nil }

func checkListening(*os.File) error { return nil }
