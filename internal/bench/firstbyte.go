package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/cryptobyte"
)

var (
	appFirst    = measure{"first byte, application speaks first", "round trips"}
	serverFirst = measure{"first byte, server speaks first", "round trips"}
	// handshakeBytes are what the server sent until the first byte, on the first connection and on a later one.
	handshakeBytes = measure{"bytes from the server, first connection", "bytes"}
	resumedBytes   = measure{"bytes from the server, later connection", "bytes"}
	// What the server has chosen in its first handshake, as numbers of TLS.
	tlsSuite = measure{"cipher suite", ""}
	tlsGroup = measure{"key exchange", ""}
)

// firstByte puts a delay between client and server and counts the round trips until the first byte
// arrives: as an answer from an application that waits for a request, and from one that speaks by itself.
func firstByte(ctx context.Context, l *lab, s subject) (values, error) {
	all := values{}
	for _, greets := range []bool{false, true} {
		if err := firstByteOf(ctx, l, s, greets, all); err != nil {
			return all, err
		}
	}
	return all, nil
}

func firstByteOf(ctx context.Context, l *lab, s subject, greets bool, all values) error {
	d := &delay{oneWay: l.oneWay}
	target, m := l.bulk, appFirst
	if greets {
		target, m = l.greeter, serverFirst
	}
	t, err := l.startTunnel(ctx, s, target, func(server string) (string, error) { return d.listen(server) })
	if err != nil {
		return err
	}
	defer d.close()
	defer t.stop()
	// The first connection does not count: later there are session tickets, and pools are filled. Of the
	// others the quickest does: whatever else happens on the machine only adds to the time.
	const connections = 4
	for i := range connections {
		before := d.fromServer.Load()
		took, err := timeToFirstByte(t.address, greets)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, errors.Join(err, t.ended()))
		}
		roundTrips := float64(took) / float64(2*l.oneWay)
		if i == 1 || i > 1 && roundTrips < all[m] {
			all[m] = roundTrips
		}
		if s.secure() && !greets && !s.pools { // what comes for a pool is no one connection's
			sent := float64(d.fromServer.Load() - before)
			if i == 0 {
				all[handshakeBytes] = sent
				if suite, group, ok := d.chosen(); ok {
					all[tlsSuite], all[tlsGroup] = float64(suite), float64(group)
				}
			}
			all[resumedBytes] = sent
		}
		pause(ctx, 4*l.oneWay) // tickets may come after the answer
	}
	return nil
}

const firstByteTimeout = 5 * time.Second

func timeToFirstByte(address string, greets bool) (time.Duration, error) {
	begin := time.Now()
	c, err := net.DialTimeout("tcp", address, firstByteTimeout)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	c.SetDeadline(begin.Add(firstByteTimeout))
	if !greets {
		if _, err := c.Write([]byte{echo, 'x'}); err != nil {
			return 0, err
		}
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return 0, err
	}
	return time.Since(begin), nil
}

// delay is a line on which everything takes oneWay. The handshake of TCP happens between the kernels and
// cannot be held up here, so its time is added where it would have been lost: the server hears of
// a connection after three one-way times (SYN, SYN-ACK, ACK), and what the client says before it could
// know of the second arrives as if it had waited for it.
type delay struct {
	oneWay     time.Duration
	fromServer atomic.Int64 // bytes
	first      atomic.Value // []byte: what the server said first
	listener   net.Listener
	running    sync.WaitGroup
}

// listen returns the address of the near end; server is the far one.
func (d *delay) listen(server string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	d.listener = l
	d.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.running.Go(func() { d.carry(c, server) })
		}
	})
	return l.Addr().String(), nil
}

// close ends the line; the programs at both ends have to be gone.
func (d *delay) close() {
	if d.listener != nil {
		d.listener.Close()
	}
	d.running.Wait()
}

func (d *delay) carry(client net.Conn, server string) {
	defer client.Close()
	established := time.Now().Add(2 * d.oneWay) // as the client would see it
	up := d.hear(client, established, nil)
	time.Sleep(time.Until(established.Add(d.oneWay)))
	c, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer c.Close()
	var both sync.WaitGroup
	both.Go(func() { deliver(c, up) })
	both.Go(func() {
		deliver(client, d.hear(c, time.Time{}, func(b []byte) {
			d.fromServer.Add(int64(len(b)))
			d.first.CompareAndSwap(nil, b)
		}))
	})
	both.Wait()
}

// parcel is data on its way.
type parcel struct {
	data []byte
	due  time.Time
}

// chosen reads the ServerHello of the first connection (RFC 8446, section 4.1.3); of TLS 1.2 the group stays 0.
func (d *delay) chosen() (suite, group uint16, ok bool) {
	b, _ := d.first.Load().([]byte)
	const record, handshake, versionAndRandom = 5, 4, 34
	hello := cryptobyte.String(b)
	var session, extensions cryptobyte.String
	if !hello.Skip(record+handshake+versionAndRandom) || !hello.ReadUint8LengthPrefixed(&session) || !hello.ReadUint16(&suite) || !hello.Skip(1) {
		return 0, 0, false
	}
	hello.ReadUint16LengthPrefixed(&extensions)
	for !extensions.Empty() {
		var kind uint16
		var body cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&body) {
			return 0, 0, false
		}
		const keyShare = 51
		if kind == keyShare {
			body.ReadUint16(&group)
		}
	}
	return suite, group, true
}

// hear takes what from says, which is due oneWay after it was said; nothing counts as said before earliest. Note, if there is one, is told of it.
func (d *delay) hear(from net.Conn, earliest time.Time, note func([]byte)) <-chan parcel {
	line := make(chan parcel, 1000)
	d.running.Go(func() {
		defer close(line)
		for {
			b := make([]byte, 16<<10)
			n, err := from.Read(b)
			said := time.Now()
			if said.Before(earliest) {
				said = earliest
			}
			if note != nil && n > 0 {
				note(b[:n])
			}
			line <- parcel{b[:n], said.Add(d.oneWay)}
			if err != nil {
				return
			}
		}
	})
	return line
}

// deliver writes to the end, also when nobody takes it any more.
func deliver(to net.Conn, line <-chan parcel) {
	for p := range line {
		time.Sleep(time.Until(p.due))
		to.Write(p.data)
	}
	to.(*net.TCPConn).CloseWrite()
}
