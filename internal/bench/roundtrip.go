package main

import (
	"context"
	"fmt"
	"net"
	"time"
)

const pingSize = 64 // bytes

var (
	rttP50    = measure{"round trip p50", "µs"}
	rttP99    = measure{"round trip p99", "µs"}
	loadedP50 = measure{"loaded round trip p50", "µs"}
	loadedP99 = measure{"loaded round trip p99", "µs"}
)

// roundTrips starts all tunnels and goes through them block by block: what disturbs the machine for a
// moment then hits one block of several, not one subject. Each value is the median of the blocks'.
func roundTrips(ctx context.Context, l *lab, subjects []subject, report report) {
	type open struct {
		*tunnel
		*pinger
		p50, p99 []float64
	}
	var all []*open
	for _, s := range subjects {
		t, err := l.startTunnel(ctx, s, l.bulk, nil)
		if err != nil {
			report(s, nil, err)
			continue
		}
		defer t.stop()
		p, err := newPinger(t.address)
		if err != nil {
			report(s, nil, err)
			continue
		}
		defer p.close()
		all = append(all, &open{tunnel: t, pinger: p})
	}
	failed := map[*open]error{}
	for range l.blocks {
		for _, o := range all {
			if failed[o] != nil {
				continue
			}
			times, err := o.block(l.pings)
			if err != nil {
				failed[o] = err
				continue
			}
			o.p50, o.p99 = append(o.p50, quantile(times, 0.5)), append(o.p99, quantile(times, 0.99))
		}
	}
	for _, o := range all {
		if err := failed[o]; err != nil {
			report(o.subject, nil, err)
			continue
		}
		report(o.subject, values{rttP50: quantile(o.p50, 0.5), rttP99: quantile(o.p99, 0.5)}, o.ended())
	}
}

// loadedRoundTrips pings while two other connections carry bulk, one up and one down.
func loadedRoundTrips(ctx context.Context, l *lab, t *tunnel) (values, error) {
	for _, direction := range directions {
		b, err := startBulk(t.address, 1, direction, l.warmUp+l.window+stallTimeout)
		if err != nil {
			return nil, err
		}
		defer b.stop()
	}
	p, err := newPinger(t.address)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if _, err := p.during(l.warmUp); err != nil {
		return nil, err
	}
	times, err := p.during(2 * l.window)
	if err != nil {
		return nil, err
	}
	return values{loadedP50: quantile(times, 0.5), loadedP99: quantile(times, 0.99)}, nil
}

// pinger sends a little and waits until it is back.
type pinger struct {
	conn net.Conn
	data []byte
}

func newPinger(address string) (*pinger, error) {
	c, err := open(address, echo, stallTimeout)
	if err != nil {
		return nil, err
	}
	return &pinger{c, make([]byte, pingSize)}, nil
}

func (p *pinger) close() { p.conn.Close() }

// block returns the times of n round trips, in µs, after some that do not count.
func (p *pinger) block(n int) ([]float64, error) {
	p.conn.SetDeadline(time.Now().Add(stallTimeout))
	for range n / 10 {
		if err := exchange(p.conn, p.data); err != nil {
			return nil, err
		}
	}
	times := make([]float64, n)
	for i := range times {
		begin := time.Now()
		if err := exchange(p.conn, p.data); err != nil {
			return nil, err
		}
		times[i] = microseconds(time.Since(begin))
	}
	return times, nil
}

// during returns the times of all round trips of a while, in µs.
func (p *pinger) during(d time.Duration) ([]float64, error) {
	p.conn.SetDeadline(time.Now().Add(d + stallTimeout))
	var times []float64
	for end := time.Now().Add(d); ; {
		begin := time.Now()
		if err := exchange(p.conn, p.data); err != nil {
			return nil, fmt.Errorf("after %d round trips: %w", len(times), err)
		}
		now := time.Now()
		times = append(times, microseconds(now.Sub(begin)))
		if now.After(end) {
			return times, nil
		}
	}
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
