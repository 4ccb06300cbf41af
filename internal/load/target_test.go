//go:build load && linux

package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raimon/internal/tunneltest"
)

// patience is how long a test waits for what has to happen. Ten thousand tunnels share two cores.
const patience = 2 * time.Minute

// target is where all tunnels lead to. It gives the far end of each to the one who opened it.
type target struct {
	address  string
	next     atomic.Uint64
	arrivals sync.Map // from the number of a tunnel to the channel that gets its far end
}

func newTarget(t testing.TB) *target {
	g := new(target)
	l := tunneltest.Listen(t)
	g.address = l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go g.arrive(c.(*net.TCPConn))
		}
	}()
	return g
}

// arrive reads the number that an app says first, and leaves the connection with whoever waits for it.
func (g *target) arrive(c *net.TCPConn) {
	var number [8]byte
	c.SetReadDeadline(time.Now().Add(patience))
	_, err := io.ReadFull(c, number[:])
	waiting, ok := g.arrivals.LoadAndDelete(binary.BigEndian.Uint64(number[:]))
	if err != nil || !ok {
		c.Close() // the app misses it
		return
	}
	c.SetReadDeadline(time.Time{})
	waiting.(chan *net.TCPConn) <- c
}

// line is a tunnel with both its ends in the hands of the test. Direction 0 leads from the app to the target, direction
// 1 back.
type line struct {
	number      uint64
	app, target *net.TCPConn
	sent        [2]int64 // bytes that send and receive are done with

	// What the soak looks at when a tunnel is over, by direction.
	reset [2]atomic.Bool // the one who sends was told of a reset
	early [2]error       // the end came too soon
}

func (l *line) close() {
	l.app.Close()
	l.target.Close()
}

// open makes a tunnel through the client at address.
func (g *target) open(address string) (*line, error) {
	l := &line{number: g.next.Add(1)}
	arrived := make(chan *net.TCPConn, 1)
	g.arrivals.Store(l.number, arrived)
	defer g.arrivals.Delete(l.number)
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, fmt.Errorf("tunnel %d: %w", l.number, err)
	}
	l.app = c.(*net.TCPConn)
	if err := l.arrive(arrived); err != nil {
		l.app.Close()
		return nil, fmt.Errorf("tunnel %d: %w", l.number, err)
	}
	return l, nil
}

// arrive says the number of l and waits for its far end, or until the app sees the tunnel break.
func (l *line) arrive(arrived chan *net.TCPConn) error {
	if _, err := l.app.Write(binary.BigEndian.AppendUint64(nil, l.number)); err != nil {
		return err
	}
	broken := make(chan error, 1)
	l.app.SetReadDeadline(time.Now().Add(patience))
	go func() {
		_, err := l.app.Read(make([]byte, 1))
		broken <- err
	}()
	select {
	case l.target = <-arrived:
		l.app.SetReadDeadline(time.Unix(1, 0))
		if err := <-broken; !errors.Is(err, os.ErrDeadlineExceeded) {
			l.target.Close()
			return fmt.Errorf("broken as soon as it is there: %w", err)
		}
		return l.app.SetReadDeadline(time.Time{})
	case err := <-broken:
		return fmt.Errorf("does not arrive: %w", err)
	}
}
