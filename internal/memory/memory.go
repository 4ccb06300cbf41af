// Package memory keeps a long-running program small: what a burst has left behind goes back to the
// system once it is over, and inside a container the heap stays below the container's limit.
//
// Left alone, Go's runtime collects an idle heap every two minutes only, and knows no container.
package memory

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// lookOften is the pause between two looks while the program works, and how long it has to be quiet.
	lookOften = 2 * time.Second
	// lookSeldom is the longest pause, while nothing happens.
	lookSeldom = 8 * time.Second

	// quiet is how much may be allocated between two looks in a program that counts as idle: Pings.
	quiet = 1 << 20
	// worthIt is what has to be allocated before a collection: it costs about a millisecond for each
	// 2 MB that live.
	worthIt = 1 << 20

	// share of the container's limit that is the heap's. The rest is for what the kernel counts as well,
	// about 5 KB for each tunnel (two sockets), and for the program's text.
	share = 0.7
)

// Manage runs until ctx ends, and up to lookSeldom longer. A limit that GOMEMLIMIT sets stays as it is (package runtime).
func Manage(ctx context.Context) {
	if limit := containerLimit(); limit > 0 && os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(share * float64(limit)))
	}
	before := look()
	collected := before // as the last collection here has left it
	for pause := lookOften; ; {
		sleep(pause)
		if ctx.Err() != nil {
			return
		}
		now := look()
		allocated := now.allocated - before.allocated
		before = now
		switch {
		case allocated > quiet:
			pause = lookOften
		case now.allocated-collected.allocated > max(worthIt, now.used/8), now.needsLess(collected):
			runtime.GC() // the first of two that empty a sync.Pool
			debug.FreeOSMemory()
			before = look()
			collected = before
		default:
			pause = min(2*pause, lookSeldom)
		}
	}
}

// usage is the state of Go's heap, in bytes.
type usage struct {
	allocated  uint64 // since the program began
	used       uint64 // by objects, dead ones included, and by stacks
	stacks     uint64 // which collections shrink
	goroutines uint64
}

// needsLess tells what allocations do not: stacks have grown, or many goroutines have ended.
func (u usage) needsLess(before usage) bool {
	return u.stacks > before.stacks+max(worthIt, before.used/8) || u.goroutines+max(100, before.goroutines/8) < before.goroutines
}

func look() usage {
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/stacks:bytes"},
		{Name: "/sched/goroutines:goroutines"},
	}
	metrics.Read(samples)
	value := func(i int) uint64 { return samples[i].Value.Uint64() }
	return usage{allocated: value(0), used: value(1) + value(2), stacks: value(2), goroutines: value(3)}
}
