package tunnel

import (
	"io"
	"sync"
	"sync/atomic"

	"github.com/gobwas/ws"
)

const (
	// bufferSize is how much a large buffer holds: eight TLS records.
	bufferSize = 128 << 10
	// bulkSize is how much one read of moving data may take: with a frame header, eight TLS records.
	bulkSize = bufferSize - headroom
	// probeSize is the first read of data that may turn out to be a keystroke or a flood: one record.
	probeSize = 16 << 10
	// headroom stands free before the data, so that a frame header and its payload are one write.
	headroom = 16
	// tailroom stands free behind the data: what TLS adds to eight records (RFC 8446, section 5.2).
	tailroom = 1 << 10
	// maxLent bounds the large buffers in use, to 16 MiB: a buffer is held for as long as the peer takes
	// nothing. Beyond it there are small ones.
	maxLent = 128
)

// A frame header must fit before the data.
var _ [headroom - ws.MaxHeaderSize]struct{}

// buffer is a block of memory that a direction holds only while data moves through it.
type buffer struct {
	start, end int
	array      []byte
}

// bufferPool has buffers of one size.
type bufferPool struct {
	sync.Pool
	lent atomic.Int64
}

var smallBuffers, largeBuffers = newBufferPool(probeSize), newBufferPool(bufferSize)

func newBufferPool(size int) *bufferPool {
	return &bufferPool{Pool: sync.Pool{New: func() any {
		return &buffer{array: make([]byte, headroom+size+tailroom)}
	}}}
}

// newBuffer returns an empty buffer with room for a header before its data. It holds at least
// probeSize, and bufferSize if size is more than that (and its tailroom) and not too many are in use.
func newBuffer(size int) *buffer {
	pool := smallBuffers
	if size > probeSize+tailroom {
		if largeBuffers.lent.Add(1) <= maxLent {
			pool = largeBuffers
		} else {
			largeBuffers.lent.Add(-1)
		}
	}
	b := pool.Get().(*buffer)
	b.start, b.end = headroom, headroom
	return b
}

// free gives b back; a nil buffer is fine.
func (b *buffer) free() {
	switch {
	case b == nil:
	case b.size() == probeSize:
		smallBuffers.Put(b)
	default:
		largeBuffers.lent.Add(-1)
		largeBuffers.Put(b)
	}
}

func (b *buffer) size() int     { return len(b.array) - headroom - tailroom }
func (b *buffer) len() int      { return b.end - b.start }
func (b *buffer) bytes() []byte { return b.array[b.start:b.end] }

// room is where up to limit bytes more may be read to. A limit of more than the buffer's size, for TLS
// records, takes the tailroom too.
func (b *buffer) room(limit int) []byte {
	end := headroom + b.size()
	if limit > b.size() {
		end = len(b.array)
	}
	return b.array[b.end:max(b.end, min(b.end+limit, end))]
}

// Release gives back the buffers that c holds, which was closed in the middle and not relayed. Nobody reads it or writes to it any more.
func Release(c Conn) { release(c) }

// release gives back the buffers that c, or a Conn below it, holds at its end: what came and was not read,
// and what could not be sent. Nothing is read or written afterwards.
func release(c Conn) {
	for c != nil {
		if r, ok := c.(interface{ release() }); ok {
			r.release()
		}
		l, ok := c.(lower)
		if !ok {
			return
		}
		c = l.below()
	}
}

// bufferReader is a Conn that waits for data without holding a buffer.
//
// readBuffer returns at least one byte, or an error, or both; limit bounds the bytes taken from the
// network. Only one goroutine reads at a time.
type bufferReader interface {
	readBuffer(limit int) (*buffer, error)
}

// bufferWriter is a Conn that may change the bytes of b and the headroom before them.
type bufferWriter interface {
	writeBuffer(b *buffer) error
}

// readBuffer reads from any Conn into a pooled buffer.
func readBuffer(c io.Reader, limit int) (*buffer, error) {
	if r, ok := c.(bufferReader); ok {
		return r.readBuffer(limit)
	}
	return readWith(c, limit)
}

// readWith reads with Read, and so holds a buffer while it waits.
func readWith(c io.Reader, limit int) (*buffer, error) {
	b := newBuffer(limit)
	for {
		n, err := c.Read(b.room(limit))
		b.end += n
		if n == 0 && err == nil {
			continue
		}
		if n == 0 {
			b.free()
			b = nil
		}
		return b, err
	}
}

// writeBuffer writes all of b to any Conn.
func writeBuffer(c io.Writer, b *buffer) error {
	if w, ok := c.(bufferWriter); ok {
		return w.writeBuffer(b)
	}
	_, err := c.Write(b.bytes())
	return err
}

// writeChunks serves Write for Conns that work on buffers: p is copied, because it is not ours to
// change. write returns how much of the buffer it has taken.
func writeChunks(p []byte, write func(*buffer) (int, error)) (n int, err error) {
	b := newBuffer(len(p))
	defer b.free()
	for len(p) > 0 && err == nil {
		b.end = b.start + copy(b.array[b.start:headroom+b.size()], p)
		var m int
		m, err = write(b)
		n += m
		p = p[m:]
	}
	return n, err
}
