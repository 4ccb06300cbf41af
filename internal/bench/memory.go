package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Of each end, "client" or "server". Memory is what the process alone has in RAM (RssAnon in
// /proc/PID/status), without what the kernel keeps for sockets.
func idleMemory(end string) measure  { return measure{"memory of an idle tunnel, " + end, "KB"} }
func burstMemory(end string) measure { return measure{"memory after a burst, " + end, "KB"} }
func idleFiles(end string) measure {
	return measure{"descriptors of an idle tunnel, " + end, "descriptors"}
}

// peakOf is the most that the whole process has ever had in RAM (VmHWM).
func peakOf(end string) measure { return measure{"peak of memory, " + end, "MB"} }

const (
	burst   = 64 << 10 // bytes each way on each of the idle tunnels
	openers = 32       // idle tunnels are opened by so many workers
)

// peakMemory is taken while many tunnels carry bulk, half of them up, half of them down.
func peakMemory(ctx context.Context, l *lab, t *tunnel) (values, error) {
	var flows []*bulk
	for _, direction := range directions {
		b, err := startBulk(t.address, l.busy/2, direction, l.warmUp+l.window+stallTimeout)
		if err != nil {
			return nil, err
		}
		defer b.stop()
		flows = append(flows, b)
	}
	pause(ctx, l.warmUp+l.window)
	for _, b := range flows {
		if err := await(ctx, &b.moved, int64(l.busy)*scoop, b.failed); err != nil {
			return nil, err
		}
	}
	all := values{}
	for i, end := range ends {
		peak, err := t.ends()[i].memory("VmHWM")
		if err != nil {
			return nil, err
		}
		all[peakOf(end)] = peak / 1e6
	}
	return all, nil
}

// ends are in the order of tunnel.ends.
var ends = []string{"client", "server"}

// idleTunnels looks at a few subjects at a time: nearly all of it is waiting.
func idleTunnels(ctx context.Context, l *lab, subjects []subject, report report) {
	sideBySide(l.sideBySide(), withTunnel(idle))(ctx, l, subjects, report)
}

// idle opens many tunnels, lets a byte through each, waits, and looks; then again after a burst through all of them.
func idle(ctx context.Context, l *lab, t *tunnel) (values, error) {
	// A first connection, so that what is loaded once does not count.
	if err := connectOnce(t.address); err != nil {
		return nil, err
	}
	before, err := occupy(t)
	if err != nil {
		return nil, err
	}
	conns, err := openMany(ctx, t.address, l.idle)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if err != nil {
		return nil, fmt.Errorf("%d tunnels: %w", len(conns), err)
	}
	all := values{}
	pause(ctx, l.quiet)
	after, err := occupy(t)
	if err != nil {
		return nil, err
	}
	for i, end := range ends {
		all[idleMemory(end)] = (after[i].memory - before[i].memory) / float64(l.idle) / 1e3
		all[idleFiles(end)] = (after[i].files - before[i].files) / float64(l.idle)
	}
	if err := burstOn(conns); err != nil {
		return all, fmt.Errorf("burst: %w", err)
	}
	pause(ctx, l.quiet)
	if after, err = occupy(t); err != nil {
		return all, err
	}
	for i, end := range ends {
		all[burstMemory(end)] = (after[i].memory - before[i].memory) / float64(l.idle) / 1e3
	}
	return all, ctx.Err()
}

// occupied is what a process holds.
type occupied struct{ memory, files float64 }

func occupy(t *tunnel) ([]occupied, error) {
	var all []occupied
	for _, p := range t.ends() {
		memory, err := p.memory("RssAnon")
		if err != nil {
			return nil, err
		}
		files, err := p.files()
		if err != nil {
			return nil, err
		}
		all = append(all, occupied{memory, files})
	}
	return all, nil
}

// openMany returns connections that have carried a byte to the target and back, also if not all came about.
func openMany(ctx context.Context, address string, n int) ([]net.Conn, error) {
	var mu sync.Mutex
	var conns []net.Conn
	var failed error
	var workers sync.WaitGroup
	for i := range openers {
		workers.Go(func() {
			for range (n + i) / openers {
				c, err := open(address, echo, stallTimeout)
				if err == nil {
					err = exchange(c, []byte{'x'})
				}
				mu.Lock()
				if c != nil {
					conns = append(conns, c)
				}
				if err != nil && failed == nil {
					failed = err
				}
				giveUp := failed != nil || ctx.Err() != nil
				mu.Unlock()
				if giveUp {
					return
				}
			}
		})
	}
	workers.Wait()
	return conns, errors.Join(failed, ctx.Err())
}

// burstOn sends through all connections at the same time.
func burstOn(conns []net.Conn) error {
	data := make([]byte, burst)
	var mu sync.Mutex
	var failed error
	note := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if failed == nil {
			failed = err
		}
	}
	var all sync.WaitGroup
	for _, c := range conns {
		c.SetDeadline(time.Now().Add(2 * stallTimeout))
		all.Go(func() {
			_, err := c.Write(data)
			note(err)
		})
		all.Go(func() {
			_, err := io.CopyN(io.Discard, c, burst)
			note(err)
		})
	}
	all.Wait()
	return failed
}
