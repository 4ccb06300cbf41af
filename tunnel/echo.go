package tunnel

import (
	"errors"
	"net"
	"sync/atomic"
	"time"
)

const (
	// TargetEcho is the Info.Target of a client that has said Echo. It is no address: nobody can name it otherwise.
	TargetEcho = "echo"

	// maxEcho is how many bytes an echo sends back.
	maxEcho = 64 << 20
	// echoLife is how long an echo lasts.
	echoLife = 30 * time.Second
)

// errEchoOver says that a client has had all of its echo.
var errEchoOver = errors.New("an echo is 64 MiB or 30 seconds long, and no longer")

// echo is a pipe whose two ends are one: what is written to it can be read from it. It holds nothing, so a client that does not read is
// not read either.
type echo struct {
	in, out net.Conn
	left    atomic.Int64 // bytes
	over    *time.Timer
}

// NewEcho returns what Forwarder.Dial has to give to a client whose Info.Target is TargetEcho.
func NewEcho() Conn { return newEcho(maxEcho, echoLife) }

func newEcho(size int64, life time.Duration) Conn {
	e := &echo{}
	e.in, e.out = net.Pipe()
	e.left.Store(size)
	e.over = time.AfterFunc(life, func() {
		e.left.Store(0)
		e.in.Close()
	})
	return e
}

func (e *echo) Read(p []byte) (int, error) { return e.out.Read(p) }

func (e *echo) Write(p []byte) (int, error) {
	size := min(int64(len(p)), e.left.Load())
	if size <= 0 {
		e.in.Close()
		return 0, errEchoOver
	}
	n, err := e.in.Write(p[:size])
	e.left.Add(-int64(n))
	if n < len(p) && e.left.Load() <= 0 {
		e.in.Close()
		err = errEchoOver
	}
	return n, err
}

// CloseWrite ends the echo once all of it has been read.
func (e *echo) CloseWrite() error { return e.in.Close() }

func (e *echo) Close() error {
	e.over.Stop()
	e.in.Close()
	return e.out.Close()
}

func (e *echo) LocalAddr() net.Addr                { return e.in.LocalAddr() }
func (e *echo) RemoteAddr() net.Addr               { return e.out.LocalAddr() }
func (e *echo) SetReadDeadline(t time.Time) error  { return e.out.SetReadDeadline(t) }
func (e *echo) SetWriteDeadline(t time.Time) error { return e.in.SetWriteDeadline(t) }

func (e *echo) SetDeadline(t time.Time) error {
	return errors.Join(e.SetReadDeadline(t), e.SetWriteDeadline(t))
}
