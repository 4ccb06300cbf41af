//go:build unix && !portable

package tunnel

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// socketReader holds what one read in progress needs, so that no read allocates.
// One goroutine reads at a time.
type socketReader struct {
	try    func(fd uintptr) bool
	limit  int32
	streak uint32 // reads and splices since one found nothing
	b      *buffer
	err    error

	splice spliceReader
}

// bind makes the callbacks of s once, for all its reads.
func (s *socket) bind() {
	s.reader.try = s.tryRead
}

// socketWriter holds what one write in progress needs. Unlike a read, which is always waiting, a write
// borrows it.
type socketWriter struct {
	try func(fd uintptr) bool
	p   []byte
	n   int // bytes of p that are sent
	err error
}

var socketWriters = sync.Pool{New: func() any {
	w := new(socketWriter)
	w.try = w.write
	return w
}}

// readBuffer waits until there is something to read and only then takes a buffer.
func (s *socket) readBuffer(limit int) (*buffer, error) {
	r := &s.reader
	r.limit, r.b, r.err = int32(limit), nil, nil
	if err := s.raw.Read(r.try); err != nil {
		return nil, err
	}
	b := r.b
	r.b = nil
	return b, r.err
}

// tryRead is called when the socket may be readable. It asks to be called again only after EAGAIN:
// the poller reports edges.
func (s *socket) tryRead(fd uintptr) bool {
	r := &s.reader
	r.b = newBuffer(int(r.limit))
	n, err := retryEINTR(func() (int, error) { return quickRead(int(fd), r.b.room(int(r.limit)), r.streak) })
	if n > 0 {
		if !isHead(int(r.limit)) {
			r.streak++
		}
		r.b.end += n
		return true
	}
	r.streak = 0
	r.b.free()
	r.b = nil
	switch err {
	case nil:
		r.err = s.end()
	case unix.EAGAIN:
		return false
	default:
		r.err = os.NewSyscallError("read", err)
	}
	return true
}

// write sends all of p. It needs less of the stack than net.Conn's, which the stacks of idle tunnels
// would keep. The caller holds writing.
func (s *socket) write(p []byte) (n int, err error) {
	w := socketWriters.Get().(*socketWriter)
	w.p = p
	if err = s.raw.Write(w.try); err == nil {
		err = w.err
	}
	n = w.n
	w.p, w.n, w.err = nil, 0, nil
	socketWriters.Put(w)
	return n, err
}

// ReadNow reads what has come on c, a bare TCP or Unix connection, without waiting. It returns 0 and no error where nothing has, where
// the stream has ended, which the next Read finds as well, and of any other connection.
func ReadNow(c Conn, p []byte) (n int, err error) {
	s, ok := asSocket(c).(*socket)
	if !ok {
		return 0, nil
	}
	if waitErr := s.raw.Read(func(fd uintptr) bool {
		n, err = retryEINTR(func() (int, error) { return quickRead(int(fd), p, 0) })
		return true
	}); waitErr != nil {
		return 0, waitErr
	}
	switch {
	case n > 0:
		return n, nil
	case err == nil || err == unix.EAGAIN:
		return 0, nil
	}
	return 0, os.NewSyscallError("read", err)
}

func (w *socketWriter) write(fd uintptr) bool {
	for w.n < len(w.p) {
		n, err := quickWrite(int(fd), w.p[w.n:])
		switch err {
		case nil:
			w.n += n
		case unix.EAGAIN:
			return false
		case unix.EINTR:
		default:
			w.err = os.NewSyscallError("write", err)
			return true
		}
	}
	return true
}

func retryEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}
