package tunnel

import (
	"net"
	"syscall"
)

// socket is a bare TCP or Unix connection with the descriptor at hand.
// On systems with the right calls it waits without a buffer, and moves bytes inside the kernel.
type socket struct {
	Conn
	raw syscall.RawConn

	reader socketReader
	writer socketWriter
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

// reset makes the coming Close of c tell the peer that the stream was cut (RST), where its kind can.
// A WebSocket that has hung up with a Close frame is left to deliver it.
func reset(c Conn) {
	if f, ok := c.(*frames); ok && f.hungUp.Load() {
		return
	}
	if l, ok := bottom(c).(interface{ SetLinger(int) error }); ok {
		l.SetLinger(0)
	}
}

// prefixed is a connection from which bytes were read ahead: a proxy's answer may bring the first
// of them along.
type prefixed interface {
	// Detach returns the bytes read ahead, which the caller now owns, and the connection behind them.
	Detach() (pending []byte, c Conn)
}

// detach takes what was read ahead from c.
func detach(c Conn) (Conn, []byte) {
	if p, ok := c.(prefixed); ok {
		pending, bare := p.Detach()
		return bare, pending
	}
	return c, nil
}
