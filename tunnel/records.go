package tunnel

import (
	"encoding/binary"
	"io"
	"sync"
	"time"
)

const recordHeader = 5 // type, version, length (RFC 8446, section 5.1)

// records lies between crypto/tls and the network.
//
// Downwards it gathers the records of one Write into one write(2). Upwards it takes much at once but
// hands out one record at a time: after a short Read nothing is left inside crypto/tls, so that
// waiting can be done here, without the reader's buffer. An end of the stream below that no
// close_notify announced is an error here, which crypto/tls alone would call io.EOF.
type records struct {
	Conn

	// The reading side; one goroutine reads at a time.
	in     *buffer
	header [recordHeader]byte
	have   int   // bytes of header that are known
	left   int   // bytes of the current record's body not handed out
	quick  bool  // do not wait for the network: errWouldBlock
	inErr  error // came with the bytes in in

	// The writing side.
	mu       sync.Mutex
	out      *buffer
	flushing sync.Mutex
	gather   bool // after the handshake: keep records until flush
}

// wouldBlock is a temporary net.Error: crypto/tls does not remember it.
type wouldBlock struct{}

func (wouldBlock) Error() string   { return "no record at hand" }
func (wouldBlock) Timeout() bool   { return true }
func (wouldBlock) Temporary() bool { return true }

func (r *records) below() Conn { return r.Conn }

// putBack makes b the next that is read. It is called before the first Read.
func (r *records) putBack(b []byte) {
	if len(b) == 0 {
		return
	}
	r.in = newBuffer(len(b))
	n := copy(r.in.room(len(b)), b)
	r.in.end += n
	if n < len(b) {
		r.Conn = &readAhead{Conn: r.Conn, pending: b[n:]}
	}
}

// fill waits for bytes from the network unless there are some: for limit bytes of data at most, in whole
// records if they have come.
func (r *records) fill(limit int) error {
	if r.in != nil {
		return nil
	}
	if r.inErr == nil {
		r.in, r.inErr = readBuffer(r.Conn, limit+tailroom)
	}
	if r.in != nil {
		return nil
	}
	err := r.inErr
	if err == io.EOF {
		err = errCut
	} else {
		r.inErr = nil // a deadline may be lifted
	}
	return err
}

// ahead is how many bytes have come and are not handed out.
func (r *records) ahead() int {
	if r.in == nil {
		return 0
	}
	return r.in.len()
}

// atBoundary tells whether all that has come was handed out, up to the end of a record.
func (r *records) atBoundary() bool { return r.in == nil && r.have == 0 && r.left == 0 }

// Read hands out bytes of one record, small ones whole.
func (r *records) Read(p []byte) (n int, err error) {
	if r.in == nil {
		if r.quick {
			return 0, wouldBlock{}
		}
		if err := r.fill(probeSize); err != nil {
			return 0, err
		}
	}
	if r.left == 0 {
		n = copy(p, r.in.bytes()[:min(recordHeader-r.have, r.in.len())])
		r.in.start += n
		r.have += copy(r.header[r.have:], p[:n])
		if r.have == recordHeader {
			r.left = int(binary.BigEndian.Uint16(r.header[3:]))
			r.have = 0
		}
	}
	body := copy(p[n:], r.in.bytes()[:min(r.left, r.in.len())])
	r.in.start += body
	r.left -= body
	if r.in.len() == 0 {
		r.in.free()
		r.in = nil
	}
	return n + body, nil
}

// Write takes records from crypto/tls: during the handshake they go out at once, later with flush.
func (r *records) Write(p []byte) (int, error) {
	r.mu.Lock()
	if !r.gather {
		r.mu.Unlock()
		return r.Conn.Write(p)
	}
	defer r.mu.Unlock()
	if r.out == nil {
		r.out = newBuffer(probeSize) // an answer of crypto/tls to the peer
	}
	n := copy(r.out.array[r.out.end:], p)
	r.out.end += n
	if n < len(p) {
		return n, io.ErrShortBuffer
	}
	return n, nil
}

// reserve prepares for the records of a Write, and returns how much of want that may bring: a buffer
// and a frame header at most. Where answers to the peer have piled up it is 0 or less: flush first.
func (r *records) reserve(want int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.out == nil {
		r.out = newBuffer(want - headroom)
	}
	return min(want, headroom+r.out.size()-r.out.len())
}

// release gives the buffers back at the end of the connection. Nobody reads or writes any more.
func (r *records) release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in.free()
	r.out.free()
	r.in, r.out = nil, nil
}

// unflushed says whether bytes from before wait for the network.
func (r *records) unflushed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out != nil
}

// flush sends what was gathered in one write. What a deadline leaves behind goes out with the next.
func (r *records) flush() error {
	r.flushing.Lock()
	defer r.flushing.Unlock()
	r.mu.Lock()
	out := r.out
	r.out = nil
	r.mu.Unlock()
	if out == nil {
		return nil
	}
	n, err := r.Conn.Write(out.bytes())
	out.start += n
	if out.len() == 0 {
		out.free()
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.out != nil { // crypto/tls answered the peer meanwhile
		n := copy(out.array[out.end:], r.out.bytes())
		out.end += n
		r.out.start += n
		if r.out.len() > 0 {
			err = io.ErrShortBuffer // a record is lost, and with it the connection
		}
		r.out.free()
	}
	r.out = out
	return err
}

// Close is called by crypto/tls when a handshake's context ends. The connection is not ours to close
// before the handshake is done: waking it is enough.
func (r *records) Close() error {
	r.mu.Lock()
	established := r.gather
	r.mu.Unlock()
	if !established {
		return r.Conn.SetDeadline(past)
	}
	return r.Conn.Close()
}

// SetWriteDeadline is called by crypto/tls around its close_notify, to make later writes fail. They
// are gathered here and must not: the deadlines of an established connection are tlsConn's business.
func (r *records) SetWriteDeadline(t time.Time) error {
	r.mu.Lock()
	established := r.gather
	r.mu.Unlock()
	if established {
		return nil
	}
	return r.Conn.SetWriteDeadline(t)
}

// establish begins gathering, once the handshake is done.
func (r *records) establish() {
	r.mu.Lock()
	r.gather = true
	r.mu.Unlock()
}
