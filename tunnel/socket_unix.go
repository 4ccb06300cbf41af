//go:build unix && !portable

package tunnel

import (
	"os"

	"golang.org/x/sys/unix"
)

// socketReader holds what one read in progress needs, so that no read allocates.
// One goroutine reads at a time.
type socketReader struct {
	try   func(fd uintptr) bool
	limit int
	b     *buffer
	err   error

	splice spliceReader
}

// bind makes the callbacks of s once, for all its reads and writes.
func (s *socket) bind() {
	s.reader.try = s.tryRead
	s.bindSplice()
}

// readBuffer waits until there is something to read and only then takes a buffer.
func (s *socket) readBuffer(limit int) (*buffer, error) {
	r := &s.reader
	r.limit, r.b, r.err = limit, nil, nil
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
	r.b = newBuffer()
	n, err := retryEINTR(func() (int, error) { return unix.Read(int(fd), r.b.room(r.limit)) })
	if n > 0 {
		r.b.end += n
		return true
	}
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

func retryEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}
