package main

import (
	"math"
	"testing"
)

func TestFitting(t *testing.T) {
	for files, want := range map[uint64]int{
		0:              1,
		1:              1,
		64:             16,
		300:            75,
		1024:           416,
		20_000:         9_904,
		1 << 20:        524_192,
		2_000_192:      1_000_000,
		math.MaxInt64:  1_000_000, // unlimited, where limits are signed
		math.MaxUint64: 1_000_000, // unlimited
	} {
		if got := fitting(files); got != want {
			t.Errorf("with %d files: %d connections, want %d", files, got, want)
		}
	}
	if n := connectionsThatFit(); n < 1 || n > maxConnections {
		t.Errorf("here: %d connections", n)
	}
}
