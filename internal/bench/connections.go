package main

import (
	"context"
	"sync"
	"sync/atomic"
)

var connectionRate = measure{"new connections", "1/s"}

// connectionCPU is the processor time that one end takes for a connection.
func connectionCPU(end string) measure { return measure{"cpu of a new connection, " + end, "µs"} }

// newConnections counts how often a tunnel can be opened, a byte sent to the target and back, and all
// closed, by several workers at once.
func newConnections(ctx context.Context, l *lab, t *tunnel) (values, error) {
	working, stop := context.WithCancel(ctx)
	var done atomic.Int64
	failed := make(chan error, l.workers)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer stop()
	for range l.workers {
		workers.Go(func() {
			for working.Err() == nil {
				if err := connectOnce(t.address); err != nil {
					failed <- err
					return
				}
				done.Add(1)
			}
		})
	}
	before, after, err := l.span(ctx, t, &done, int64(l.workers), func() error {
		select {
		case err := <-failed:
			return err
		default:
			return nil
		}
	})
	if err != nil {
		return nil, err
	}
	count := float64(after.done - before.done)
	all := values{connectionRate: count / after.time.Sub(before.time).Seconds()}
	if !t.bare() {
		all[connectionCPU("client")] = microseconds(after.client-before.client) / count
		all[connectionCPU("server")] = microseconds(after.server-before.server) / count
	}
	return all, nil
}

// connectOnce lets a byte travel to the target and back on a connection of its own.
func connectOnce(address string) error {
	c, err := open(address, echo, stallTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	return exchange(c, []byte{'x'})
}
