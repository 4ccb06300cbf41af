package client

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// Programs come one after the other and at once, end in every order, and some in the middle. None of them gets a byte too much or too few, or any of another one's.
func TestNothingIsMixedUp(t *testing.T) {
	ca := tunneltest.NewCA(t)
	for _, tr := range tunneltest.Transports(t, ca) {
		last := len(tr.Client) - 1
		if last < 0 {
			continue
		}
		w, ok := tr.Client[last].(*tunnel.WebSocket)
		if !ok {
			continue
		}
		t.Run(tr.Name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			target := tunneltest.Serve(t, digest)
			again := *w
			again.Reuse, again.Ping = true, 400*time.Millisecond
			server := append(tunnel.Transport{}, tr.Server...)
			quick := *server[last].(*tunnel.WebSocket)
			quick.Ping = 400 * time.Millisecond
			server[last] = &quick
			e := newEdge(t, server, target)
			address, l := startClient(t, &Tunnel{Remote: e.address, Dialer: new(tunnel.Dialer), Reuse: 30 * time.Second, Wait: patience,
				Transport: append(append(tunnel.Transport{}, tr.Client[:last]...), &again)})
			var programs sync.WaitGroup
			var kept atomic.Int64
			for n := range 6 {
				programs.Go(func() {
					dice := rand.New(rand.NewPCG(uint64(n), 7))
					for range 30 {
						if err := program(address, dice); err != nil {
							t.Error(err)
							return
						}
						kept.Add(int64(l.pool.size()))
					}
				})
			}
			programs.Wait()
			if kept.Load() == 0 {
				t.Error("no connection was ever kept")
			}
		})
	}
}

// digest is a target: it takes 16 bytes, which say how many follow, how many are to come back, and which direction ends first; it answers
// with as many bytes that the first eight make, and the hash of what has come.
func digest(c *net.TCPConn) {
	var head [16]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return
	}
	size, back := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
	seed := [32]byte(append(head[:8:8], make([]byte, 24)...))
	sum := sha256.New()
	if head[0]&1 == 1 { // answers first
		io.CopyN(c, rand.NewChaCha8(seed), int64(back))
		c.CloseWrite()
	}
	n, err := io.Copy(sum, c)
	if n != int64(size) || err != nil {
		c.SetLinger(0)
		return
	}
	if head[0]&1 == 0 {
		io.CopyN(c, rand.NewChaCha8(seed), int64(back))
		c.Write(sum.Sum(nil))
	}
}

func program(address string, dice *rand.Rand) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	c := conn.(*net.TCPConn)
	c.SetDeadline(time.Now().Add(patience))
	var head [16]byte
	binary.BigEndian.PutUint64(head[:], dice.Uint64())
	size, back := dice.IntN(1<<(1+dice.IntN(20))), dice.IntN(1<<(1+dice.IntN(20)))
	binary.BigEndian.PutUint32(head[8:], uint32(size))
	binary.BigEndian.PutUint32(head[12:], uint32(back))
	seed := [32]byte(append(head[:8:8], make([]byte, 24)...))
	sum := sha256.New()
	leaves := dice.IntN(8) == 0
	said := make(chan error, 1)
	go func() {
		_, err := c.Write(head[:])
		if err == nil {
			_, err = io.CopyN(io.MultiWriter(c, sum), rand.NewChaCha8([32]byte{head[3]}), int64(size))
		}
		if err == nil && !leaves {
			err = c.CloseWrite()
		}
		said <- err
	}()
	want := make([]byte, back)
	rand.NewChaCha8(seed).Read(want)
	if leaves {
		err := <-said
		c.SetLinger(0)
		return err
	}
	got, err := io.ReadAll(c)
	if failed := <-said; failed != nil || err != nil {
		return fmt.Errorf("size %d, back %d: %v, %v", size, back, failed, err)
	}
	if head[0]&1 == 0 {
		want = sum.Sum(want)
	}
	if string(got) != string(want) {
		return fmt.Errorf("size %d, back %d, first %d: got %d bytes, want %d", size, back, head[0]&1, len(got), len(want))
	}
	return nil
}
