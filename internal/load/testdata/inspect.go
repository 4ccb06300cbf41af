package main

import (
	"encoding/json"
	"net"
	"os"
	"runtime"
	"runtime/debug"
)

// The load tests build the programs with this file added. Whoever connects to the Unix socket that the environment
// names is told what the process holds, once all that is garbage has gone back to the system.
func init() {
	path := os.Getenv("RAIMON_INSPECT")
	if path == "" {
		return
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				panic(err)
			}
			inspect(c)
			c.Close()
		}
	}()
}

func inspect(c net.Conn) {
	runtime.GC() // a second one, in FreeOSMemory, empties the pools
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	json.NewEncoder(c).Encode(map[string]any{
		"descriptors": len(files), "goroutines": runtime.NumGoroutine(), "heap": m.HeapAlloc, "stacks": m.StackInuse,
	})
}
