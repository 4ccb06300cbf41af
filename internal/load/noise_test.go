//go:build load && linux

package load

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// pieceSize is how much is written or read at once.
const pieceSize = 64 << 10

const noiseSize = 1 << 20

// noise is random, and so long that a piece may begin anywhere in its first megabyte.
var noise = func() []byte {
	b := make([]byte, noiseSize+pieceSize)
	rand.NewChaCha8([32]byte{1}).Read(b[:noiseSize])
	copy(b[noiseSize:], b)
	return b
}()

// piece is what direction d of l carries from position at on: up to n bytes, others than in any other tunnel.
func (l *line) piece(d int, at, n int64) []byte {
	start := (int64(l.number)*2 + int64(d)) * 7919 % noiseSize // a prime
	start = (start + at) % noiseSize
	return noise[start : start+min(n, pieceSize)]
}

// ends are where direction d comes from and goes to.
func (l *line) ends(d int) (from, to *net.TCPConn) {
	if d == 0 {
		return l.app, l.target
	}
	return l.target, l.app
}

// send sends the next n bytes of direction d.
func (l *line) send(d int, n int64) error {
	from, _ := l.ends(d)
	for at := l.sent[d]; n > 0; {
		m, err := from.Write(l.piece(d, at, n))
		at += int64(m)
		n -= int64(m)
		if errors.Is(err, syscall.ECONNRESET) {
			l.reset[d].Store(true)
		}
		if err != nil {
			return fmt.Errorf("send with %d bytes to go: %w", n, err)
		}
	}
	return nil
}

// receive reads the next n bytes of direction d and compares them.
func (l *line) receive(d int, n int64) error {
	_, to := l.ends(d)
	b := make([]byte, min(n, pieceSize))
	for at := l.sent[d]; n > 0; {
		m, err := to.Read(b[:min(n, pieceSize)])
		if !bytes.Equal(b[:m], l.piece(d, at, int64(m))) {
			return fmt.Errorf("other bytes than were sent, with %d to go", n)
		}
		at += int64(m)
		n -= int64(m)
		if err != nil && n > 0 {
			return fmt.Errorf("receive with %d bytes to go: %w", n, err)
		}
	}
	return nil
}

// exchange carries n more bytes in each of the directions, at the same time.
func (l *line) exchange(n int64, directions ...int) error {
	deadline := time.Now().Add(patience)
	l.app.SetDeadline(deadline)
	l.target.SetDeadline(deadline)
	var all []func() error
	for _, d := range directions {
		all = append(all, func() error { return l.send(d, n) }, func() error { return l.receive(d, n) })
	}
	err := together(all...)
	for _, d := range directions {
		l.sent[d] += n
	}
	return err
}

// together runs all at the same time.
func together(all ...func() error) error {
	errs := make([]error, len(all))
	var running sync.WaitGroup
	for i, do := range all {
		running.Go(func() { errs[i] = do() })
	}
	running.Wait()
	return errors.Join(errs...)
}
