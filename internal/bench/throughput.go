package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// parallel are the numbers of connections that bulk is carried by.
var parallel = []int{1, 2, 8}

var directions = []string{"up", "down"} // up is to the target

func rate(direction string, connections int) measure {
	return measure{fmt.Sprintf("%s %d", direction, connections), "Gbit/s"}
}

// cpuOf is the processor time of one end ("client", "server") for each gigabyte (1e9 bytes).
func cpuOf(direction string, connections int, end string) measure {
	return measure{fmt.Sprintf("cpu %s %d %s", direction, connections, end), "s/GB"}
}

// busy is how many processors were at work, the load included.
func busy(direction string, connections int) measure {
	return measure{fmt.Sprintf("busy %s %d", direction, connections), "cores"}
}

func throughput(ctx context.Context, l *lab, t *tunnel) (values, error) {
	all := values{}
	for _, n := range parallel {
		for _, direction := range directions {
			if err := oneThroughput(ctx, l, t, direction, n, all); err != nil {
				return nil, fmt.Errorf("%s over %d connections: %w", direction, n, err)
			}
		}
	}
	return all, nil
}

func oneThroughput(ctx context.Context, l *lab, t *tunnel, direction string, connections int, all values) error {
	b, err := startBulk(t.address, connections, direction, l.warmUp+l.window+2*stallTimeout)
	if err != nil {
		return err
	}
	defer b.stop()
	before, after, err := l.span(ctx, t, &b.moved, int64(connections)*chunk, b.failed)
	if err != nil {
		return err
	}
	moved := float64(after.done - before.done)
	seconds := after.time.Sub(before.time).Seconds()
	all[rate(direction, connections)] = moved * 8 / 1e9 / seconds
	all[busy(direction, connections)] = (after.cpu - before.cpu).Seconds() / seconds
	if !t.bare() {
		all[cpuOf(direction, connections, "client")] = (after.client - before.client).Seconds() / (moved / 1e9)
		all[cpuOf(direction, connections, "server")] = (after.server - before.server).Seconds() / (moved / 1e9)
	}
	return nil
}

// state is how far everything has come.
type state struct {
	time           time.Time
	done           int64 // bytes or connections, at our end
	client, server time.Duration
	cpu            time.Duration // of all processes, the load included
}

// span looks before and after the time window of a measure: after at least least has been done and the
// warm-up is over, and when at least as much has been done again.
func (l *lab) span(ctx context.Context, t *tunnel, done *atomic.Int64, least int64, failed func() error) (before, after state, err error) {
	if err = await(ctx, done, least, failed); err != nil {
		return
	}
	pause(ctx, l.warmUp)
	if before, err = l.look(t, done); err != nil {
		return
	}
	pause(ctx, l.window)
	if err = await(ctx, done, before.done+least, failed); err != nil {
		return
	}
	after, err = l.look(t, done)
	return
}

// await waits until n is reached.
func await(ctx context.Context, done *atomic.Int64, n int64, failed func() error) error {
	for end := time.Now().Add(stallTimeout); done.Load() < n; pause(ctx, time.Millisecond) {
		if err := errors.Join(ctx.Err(), failed()); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("stuck at %d of %d for %v", done.Load(), n, stallTimeout)
		}
	}
	return failed()
}

func (l *lab) look(t *tunnel, done *atomic.Int64) (state, error) {
	s := state{time: time.Now(), done: done.Load()}
	var own unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		return s, err
	}
	target, err := t.target.cpu()
	if err != nil {
		return s, err
	}
	s.cpu = time.Duration(own.Utime.Nano()+own.Stime.Nano()) + target
	if t.bare() {
		return s, nil
	}
	if s.client, err = t.client.cpu(); err != nil {
		return s, err
	}
	s.server, err = t.server.cpu()
	s.cpu += s.client + s.server
	return s, err
}

// stallTimeout is how long a measure may take beyond the time that is planned for it.
const stallTimeout = 20 * time.Second

// bulk is data that flows until it is stopped.
type bulk struct {
	moved   atomic.Int64 // bytes
	conns   []*net.TCPConn
	running sync.WaitGroup
	stopped atomic.Bool

	mu  sync.Mutex
	err error
}

// startBulk opens connections and sends on them ("up") or receives ("down").
func startBulk(address string, connections int, direction string, limit time.Duration) (*bulk, error) {
	b := &bulk{}
	what, do := byte(discard), produceAll
	if direction == "down" {
		what, do = produce, discardAll
	}
	for range connections {
		c, err := open(address, what, limit)
		if err != nil {
			b.stop()
			return nil, err
		}
		b.conns = append(b.conns, c)
	}
	for _, c := range b.conns {
		b.running.Go(func() {
			err := do(c, func(n int) { b.moved.Add(int64(n)) })
			if b.stopped.Load() {
				return
			}
			if err == nil {
				err = errors.New("the connection ended early")
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			b.err = errors.Join(b.err, err)
		})
	}
	return b, nil
}

// failed returns why a connection has come to its end too early.
func (b *bulk) failed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

func (b *bulk) stop() {
	b.stopped.Store(true)
	for _, c := range b.conns {
		c.SetDeadline(time.Now())
	}
	b.running.Wait()
	for _, c := range b.conns {
		c.Close()
	}
}

// pause waits, not longer than ctx.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
