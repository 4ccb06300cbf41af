package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// effort is how much is measured.
type effort struct {
	repetitions    int
	warmUp, window time.Duration // of everything that is measured over a time
	blocks, pings  int           // of the round trips: so many blocks of so many
	workers        int           // that open connections, at the same time
	oneWay         time.Duration // delay between client and server for the round trips to the first byte
	idle           int           // tunnels
	quiet          time.Duration // before idle tunnels are looked at
	busy           int           // tunnels of the peak of memory
}

var (
	fullEffort = effort{repetitions: 5, warmUp: 250 * time.Millisecond, window: 750 * time.Millisecond,
		blocks: 12, pings: 500, workers: 16, oneWay: 20 * time.Millisecond, idle: 5000, quiet: 10 * time.Second, busy: 64}
	quickEffort = effort{repetitions: 1, warmUp: 150 * time.Millisecond, window: 300 * time.Millisecond,
		blocks: 6, pings: 500, workers: 16, oneWay: 20 * time.Millisecond, idle: 500, quiet: 2 * time.Second, busy: 64}
)

// group is a kind of measuring.
type group struct {
	name    string
	what    string // for -h
	once    bool   // not in every repetition: it takes long, and hardly varies
	bare    bool   // the loopback itself has it, too
	measure func(ctx context.Context, l *lab, subjects []subject, report report)
}

// report takes what a subject gave.
type report func(s subject, v values, err error)

var groups = []group{
	{name: "throughput", what: "throughput, and processor time per gigabyte", bare: true, measure: eachAlone(withTunnel(throughput))},
	{name: "roundtrip", what: "64-byte round trips", bare: true, measure: roundTrips},
	{name: "loaded", what: "64-byte round trips while bulk flows", bare: true, measure: eachAlone(withTunnel(loadedRoundTrips))},
	{name: "connections", what: "new connections per second", bare: true, measure: eachAlone(withTunnel(newConnections))},
	{name: "firstbyte", what: "round trips to the first byte", measure: eachAlone(firstByte)},
	{name: "peak", what: "peak of memory under load", measure: eachAlone(withTunnel(peakMemory))},
	{name: "idle", what: "memory and descriptors of idle tunnels, also after a burst", once: true, measure: idleTunnels},
}

// look measures one subject.
type look func(ctx context.Context, l *lab, s subject) (values, error)

// eachAlone looks at one subject after the other.
func eachAlone(look look) func(context.Context, *lab, []subject, report) {
	return func(ctx context.Context, l *lab, subjects []subject, report report) {
		for _, s := range subjects {
			v, err := look(ctx, l, s)
			report(s, v, err)
		}
	}
}

// sideBySide looks at up to n subjects at the same time.
func sideBySide(n int, look look) func(context.Context, *lab, []subject, report) {
	return func(ctx context.Context, l *lab, subjects []subject, report report) {
		var mu sync.Mutex
		for some := range slices.Chunk(subjects, n) {
			var all sync.WaitGroup
			for _, s := range some {
				all.Go(func() {
					v, err := look(ctx, l, s)
					mu.Lock()
					defer mu.Unlock()
					report(s, v, err)
				})
			}
			all.Wait()
		}
	}
}

// withTunnel looks at a tunnel that has just been started and ends afterwards. It has a target of its own: ports that connections of others have used
// up for a while, at the same address, would make its own ones slow.
func withTunnel(look func(ctx context.Context, l *lab, t *tunnel) (values, error)) look {
	return func(ctx context.Context, l *lab, s subject) (values, error) {
		address := freeAddress()
		target, err := launchTarget(ctx, address, freeAddress())
		if err != nil {
			return nil, err
		}
		defer target.stop()
		t, err := l.startTunnel(ctx, s, address, nil)
		if err != nil {
			return nil, err
		}
		defer t.stop()
		t.target = target
		v, err := look(ctx, l, t)
		if err != nil {
			return nil, errors.Join(err, t.ended())
		}
		return v, t.ended()
	}
}

// open connects through a tunnel to the target and tells it what to do. Everything on the connection
// fails after limit.
func open(address string, what byte, limit time.Duration) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: limit}
	c, err := d.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write([]byte{what}); err != nil {
		c.Close()
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// exchange sends b, which the target echoes, and reads it back.
func exchange(c net.Conn, b []byte) error {
	if _, err := c.Write(b); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, b); err != nil {
		return fmt.Errorf("echo of %d bytes: %w", len(b), err)
	}
	return nil
}
