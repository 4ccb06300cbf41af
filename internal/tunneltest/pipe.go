package tunneltest

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// PipeBuffer is how many bytes one direction of a Pipe holds before its writer has to wait.
const PipeBuffer = 64 << 10

// Pipe returns the two ends of a connection in memory that behaves like TCP over loopback. Nothing
// in it waits in the kernel, so it can be used inside of testing/synctest.
func Pipe() (a, b *PipeConn) { return PipeSize(PipeBuffer) }

// PipeSize is Pipe with room for size bytes in each direction.
func PipeSize(size int) (a, b *PipeConn) {
	w := &wire{}
	w.changed.L = &w.mu
	a, b = &PipeConn{wire: w, size: size, name: "a"}, &PipeConn{wire: w, size: size, name: "b"}
	a.peer, b.peer = b, a
	return a, b
}

// wire is what both ends share.
type wire struct {
	mu      sync.Mutex
	changed sync.Cond
}

// PipeConn is one end of a Pipe. It ends as a TCP socket does:
//
// CloseWrite and Close are seen as io.EOF behind the last byte. Writing to an end that is closed
// gives EPIPE. SetLinger(0) before Close, and Close while bytes wait to be read, are a reset: the peer
// loses what it has not read yet, and its reads and writes give ECONNRESET.
type PipeConn struct {
	wire *wire
	peer *PipeConn
	name pipeAddr
	size int

	// All of this is guarded by wire.mu.
	in       bytes.Buffer // sent by the peer, not read yet
	finished bool         // CloseWrite was called
	closed   bool         // Close was called
	reset    bool         // by the peer
	abort    bool         // Close resets
	read     pipeDeadline
	write    pipeDeadline
}

type pipeDeadline struct {
	at    time.Time // zero: none
	timer *time.Timer
}

func (d *pipeDeadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// Read waits for bytes.
func (c *PipeConn) Read(p []byte) (int, error) {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, c.opError("read", net.ErrClosed)
		case c.read.passed():
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		case c.reset:
			return 0, c.opError("read", os.NewSyscallError("read", syscall.ECONNRESET))
		case len(p) == 0:
			return 0, nil
		case c.in.Len() > 0:
			c.wire.changed.Broadcast()
			return c.in.Read(p)
		case c.peer.finished:
			return 0, io.EOF
		}
		c.wire.changed.Wait()
	}
}

// Write waits until the pipe has taken all of p.
func (c *PipeConn) Write(p []byte) (n int, err error) {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	for {
		switch {
		case c.closed:
			return n, c.opError("write", net.ErrClosed)
		case c.write.passed():
			return n, c.opError("write", os.ErrDeadlineExceeded)
		case c.reset:
			return n, c.opError("write", os.NewSyscallError("write", syscall.ECONNRESET))
		case c.finished, c.peer.closed:
			return n, c.opError("write", os.NewSyscallError("write", syscall.EPIPE))
		}
		if room := min(c.size-c.peer.in.Len(), len(p)-n); room > 0 {
			c.peer.in.Write(p[n : n+room])
			n += room
			c.wire.changed.Broadcast()
		}
		if n == len(p) {
			return n, nil
		}
		c.wire.changed.Wait()
	}
}

// CloseWrite ends the direction towards the peer.
func (c *PipeConn) CloseWrite() error {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	defer c.wire.changed.Broadcast()
	switch {
	case c.closed:
		return c.opError("close", net.ErrClosed)
	case c.reset:
		return c.opError("close", os.NewSyscallError("shutdown", syscall.ENOTCONN))
	}
	c.finished = true
	return nil
}

// SetLinger with 0 makes Close a reset.
func (c *PipeConn) SetLinger(seconds int) error {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	c.abort = seconds == 0
	return nil
}

// Close closes this end.
func (c *PipeConn) Close() error {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	defer c.wire.changed.Broadcast()
	if c.closed {
		return c.opError("close", net.ErrClosed)
	}
	if c.abort || c.in.Len() > 0 {
		c.peer.reset = !c.peer.closed
		c.peer.in.Reset()
	}
	c.closed, c.finished = true, true
	c.in.Reset()
	c.setDeadline(&c.read, time.Time{})
	c.setDeadline(&c.write, time.Time{})
	return nil
}

// Buffered is how many bytes wait to be read.
func (c *PipeConn) Buffered() int {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	return c.in.Len()
}

func (c *PipeConn) SetDeadline(t time.Time) error      { return c.setDeadlines(t, &c.read, &c.write) }
func (c *PipeConn) SetReadDeadline(t time.Time) error  { return c.setDeadlines(t, &c.read) }
func (c *PipeConn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, &c.write) }

func (c *PipeConn) setDeadlines(t time.Time, deadlines ...*pipeDeadline) error {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	if c.closed {
		return c.opError("set", net.ErrClosed)
	}
	for _, d := range deadlines {
		c.setDeadline(d, t)
	}
	return nil
}

// setDeadline wakes those who wait: now, and when t has come.
func (c *PipeConn) setDeadline(d *pipeDeadline, t time.Time) {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if left := time.Until(t); !t.IsZero() && left > 0 {
		d.timer = time.AfterFunc(left, func() {
			c.wire.mu.Lock()
			defer c.wire.mu.Unlock()
			c.wire.changed.Broadcast()
		})
	}
	c.wire.changed.Broadcast()
}

func (c *PipeConn) LocalAddr() net.Addr  { return c.name }
func (c *PipeConn) RemoteAddr() net.Addr { return c.peer.name }

func (c *PipeConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "pipe", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

type pipeAddr string

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return "pipe:" + string(a) }
