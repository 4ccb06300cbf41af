package tunnel

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

// socket is a bare TCP or Unix connection with the descriptor at hand.
// On systems with the right calls it waits without a buffer, and moves bytes inside the kernel.
type socket struct {
	Conn
	raw syscall.RawConn

	reader socketReader

	writing sync.Mutex // held during each write
	reset   bool       // a write was told of a reset; guarded by writing
}

// asSocket gives c its descriptor back where it is a bare socket; other connections stay as they are.
func asSocket(c Conn) Conn {
	var raw syscall.RawConn
	var err error
	switch c := c.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	default:
		return c
	}
	if err != nil {
		return c
	}
	s := &socket{Conn: c, raw: raw}
	s.bind()
	return s
}

// Read is for those who bring their own buffer.
func (s *socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if err == io.EOF {
		err = s.end()
	}
	return n, err
}

func (s *socket) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	n, err := s.write(p)
	s.noteReset(err)
	return n, err
}

// noteReset remembers that a write was told of a reset. The caller holds writing.
func (s *socket) noteReset(err error) {
	if errors.Is(err, syscall.ECONNRESET) {
		s.reset = true
	}
}

// end tells an end of the stream from a reset that looks like one. The kernel tells of a reset once:
// if a write was the one to hear of it, a read finds nothing but the end. A write that hears EPIPE
// says that the end had come before.
func (s *socket) end() error {
	if !s.writing.TryLock() {
		if !s.isDead() {
			return io.EOF
		}
		s.writing.Lock() // on a dead connection no write takes long
	}
	defer s.writing.Unlock()
	if s.reset {
		return os.NewSyscallError("read", syscall.ECONNRESET)
	}
	return io.EOF
}

// lower is implemented by connections that sit on another one.
type lower interface{ below() Conn }

func (s *socket) below() Conn { return s.Conn }

// bottom returns the connection that was accepted or dialed, below all layers.
func bottom(c Conn) Conn {
	for {
		l, ok := c.(lower)
		if !ok {
			return c
		}
		c = l.below()
	}
}

// ResetOnClose makes the coming Close of c, also by the death of this process, tell the peer that the stream
// was cut (RST), where its kind can.
func ResetOnClose(c Conn) { linger(c, 0) }

// letEnd makes the coming Close of c an ordinary one again.
func letEnd(c Conn) { linger(c, -1) }

func linger(c Conn, seconds int) {
	if l, ok := bottom(c).(interface{ SetLinger(int) error }); ok {
		l.SetLinger(seconds)
	}
}

// hasHungUp tells whether c has said in a Close frame why it ends, which a reset would overtake.
func hasHungUp(c Conn) bool {
	f, ok := c.(*frames)
	return ok && f.hungUp.Load()
}

// prefixed is a connection from which bytes were read ahead: a proxy's answer may bring the first
// of them along.
type prefixed interface {
	// Detach returns the bytes read ahead, which the caller now owns, and the connection behind them.
	Detach() (pending []byte, c Conn)
}

// detach takes what was read ahead from c, in several steps where there were several.
func detach(c Conn) (bare Conn, ahead []byte) {
	for {
		p, ok := c.(prefixed)
		if !ok {
			return c, ahead
		}
		var pending []byte
		pending, c = p.Detach()
		ahead = append(ahead, pending...)
	}
}
