package tunnel

import (
	"bytes"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
)

// frameWriter is the state of the writing side, guarded by writing.
type frameWriter struct {
	key       [4]byte // MaskFixed's
	owedKey   [4]byte
	unsent    []byte // rest of a header that a deadline cut off
	owed      int64  // payload of the frame begun that is still to be written
	owedAt    int    // position in owedKey
	place     placeWriter
	scratch   [ws.MaxHeaderSize]byte
	drainHead [ws.MaxHeaderSize]byte // header before a spliced payload
	torn      bool                   // a frame has not got out whole, and never will
	deadline  atomic.Int64           // Unix nanoseconds; 0: none

	saidEnd   atomic.Bool
	waiting   atomic.Bool // the edge has said that it waits again
	taken     atomic.Bool // the edge, which waited, was told to dial
	saidClose atomic.Bool
	written   atomic.Int64 // data frames
	lastWrite atomic.Int64 // when data was last written, Unix nanoseconds
}

// placeWriter lets gobwas write a header to a place of ours.
type placeWriter struct{ b []byte }

func (w *placeWriter) Write(p []byte) (int, error) { return copy(w.b, p), nil }

// Write is for those whose bytes must stay as they are. After a deadline has passed it may be called
// again; the frame that was begun goes on then.
func (f *frames) Write(p []byte) (int, error) {
	return writeChunks(p, func(b *buffer) (int, error) {
		f.writing.Lock()
		defer f.writing.Unlock()
		return f.writeFrame(b)
	})
}

// writeBuffer sends b as one frame, masked in place.
func (f *frames) writeBuffer(b *buffer) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	for b.len() > 0 {
		n, err := f.writeFrame(b)
		if err != nil {
			return err
		}
		b.start += n
	}
	return nil
}

// writable says why nothing may be written any more.
func (f *frames) writable() error {
	if f.saidEnd.Load() || f.saidClose.Load() || f.closed.Load() {
		return net.ErrClosed
	}
	if d := f.deadline.Load(); d != 0 && time.Now().UnixNano() >= d {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// writeFrame writes the payload in b, or the part of it that completes the frame which a deadline
// interrupted, and returns how much of it is on its way.
func (f *frames) writeFrame(b *buffer) (int, error) {
	if err := f.writable(); err != nil {
		return 0, err
	}
	if f.owed > 0 || len(f.unsent) > 0 {
		return f.writeOwed(b)
	}
	f.awaitHeadTaken()
	length, payload := b.len(), b.start
	h := f.nextHeader(ws.OpBinary, length)
	f.cipher(b.bytes(), h.Mask, 0)
	size := ws.HeaderSize(h)
	b.start -= size
	f.putHeader(b.array[b.start:payload], h)
	n, err := f.Conn.Write(b.bytes())
	b.start = payload
	f.wrote()
	if err == nil {
		return length, nil
	}
	n -= size
	if n < 0 {
		f.unsent = bytes.Clone(b.array[payload+n : payload])
		n = 0
	}
	f.owed, f.owedKey, f.owedAt = int64(length-n), h.Mask, n&3
	return n, err
}

// awaitHeadTaken keeps our first frame back until kaminari's client has taken the 101: what it reads
// together with that it throws away. It has when it sends something, or when some time has passed.
func (f *frames) awaitHeadTaken() {
	if f.client || f.peer != peerHalfCloses || f.written.Load() > 0 {
		return
	}
	began := f.lastWrite.Load()
	for f.lastRead.Load() <= began && f.writable() == nil {
		waited := time.Since(time.Unix(0, began))
		if s, ok := bottomSocket(f); waited >= headTaken && (!ok || s.unsent() == 0) {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// writeOwed goes on with the frame that a deadline interrupted.
func (f *frames) writeOwed(b *buffer) (int, error) {
	if len(f.unsent) > 0 {
		n, err := f.Conn.Write(f.unsent)
		f.unsent = f.unsent[n:]
		if err != nil {
			return 0, err
		}
	}
	p := b.bytes()[:min(int64(b.len()), f.owed)]
	f.cipher(p, f.owedKey, f.owedAt)
	n, err := f.Conn.Write(p)
	f.owed -= int64(n)
	f.owedAt = (f.owedAt + n) & 3
	f.wrote()
	return n, err
}

func (f *frames) wrote() {
	f.written.Add(1)
	f.lastWrite.Store(time.Now().UnixNano())
}

// nextHeader is the header of our next frame. Servers never mask (RFC 6455, section 5.1).
func (f *frames) nextHeader(op ws.OpCode, length int) ws.Header {
	h := ws.Header{Fin: true, OpCode: op, Masked: f.client, Length: int64(length)}
	if f.client && f.mask == MaskStandard {
		h.Mask = f.newKey()
	} else {
		h.Mask = f.key
	}
	return h
}

// newKey is a random mask key. Kaminari's server begins the key anew after each partial read of a
// frame, which damages the payload unless all four bytes are the same.
func (f *frames) newKey() [4]byte {
	key := ws.NewMask()
	if f.peer == peerHalfCloses {
		key = [4]byte{key[0], key[0], key[0], key[0]}
	}
	return key
}

func (f *frames) cipher(p []byte, key [4]byte, at int) {
	if key != [4]byte{} {
		ws.Cipher(p, key, at)
	}
}

// putHeader writes h to place, which has its size.
func (f *frames) putHeader(place []byte, h ws.Header) {
	f.place.b = place
	ws.WriteHeaderBuffer(&f.place, h, f.scratch[:])
	f.place.b = nil // it would keep a whole buffer alive
}

// writeSmall writes a small frame in one write. The caller holds writing.
func (f *frames) writeSmall(op ws.OpCode, body []byte) error {
	return f.writeWhole(f.appendSmall(nil, op, body))
}

// writeWhole writes small frames. The caller holds writing.
func (f *frames) writeWhole(frames []byte) error {
	if f.owed > 0 || len(f.unsent) > 0 || f.torn {
		return os.ErrDeadlineExceeded // in the middle of a frame that a deadline interrupted
	}
	n, err := f.Conn.Write(frames)
	f.torn = f.torn || err != nil && n > 0
	return err
}

// appendSmall appends a small frame.
func (f *frames) appendSmall(to []byte, op ws.OpCode, body []byte) []byte {
	h := f.nextHeader(op, len(body))
	begin := len(to)
	to = append(to, make([]byte, ws.HeaderSize(h)+len(body))...)
	payload := to[begin+ws.HeaderSize(h):]
	f.putHeader(to[begin:len(to)-len(body)], h)
	copy(payload, body)
	f.cipher(payload, h.Mask, 0)
	return to
}

// CloseWrite says that our direction has ended, in the way that the peer takes without loss.
func (f *frames) CloseWrite() error {
	if f.peer == peerUnknown || f.peer == peerBrowser {
		if err := f.awaitQuiet(); err != nil {
			return err
		}
	}
	f.writing.Lock()
	defer f.writing.Unlock()
	if f.saidEnd.Load() || f.saidClose.Load() {
		return nil
	}
	if d := f.deadline.Load(); d != 0 && time.Now().UnixNano() >= d {
		return os.ErrDeadlineExceeded
	}
	f.saidEnd.Store(true)
	if f.peer == peerRaimon {
		return f.writeSmall(ws.OpText, nil)
	}
	if (f.peer == peerBrowser || f.closed.Load()) && !f.saidClose.Swap(true) {
		if err := f.writeSmall(ws.OpClose, normalClosure); err != nil {
			return err
		}
	}
	return f.Conn.CloseWrite()
}

// closeLast is CloseWrite and farewell in one write, where the end is a frame and other needs no time.
func (f *frames) closeLast(other Conn) error {
	if f.peer != peerRaimon {
		return f.CloseWrite()
	}
	f.writing.Lock()
	defer f.writing.Unlock()
	if err := f.writable(); err != nil {
		if err == net.ErrClosed {
			return nil
		}
		return err
	}
	if f.owed > 0 || len(f.unsent) > 0 {
		return os.ErrDeadlineExceeded // in the middle of a frame that a deadline interrupted
	}
	f.saidEnd.Store(true)
	switch {
	case f.again && f.client, f.mayWait() && !hasTakenAll(other):
		return f.writeSmall(ws.OpText, nil) // the edge says later how it goes on
	case f.mayWait():
		return f.sayWait(f.appendSmall(nil, ws.OpText, nil))
	case f.saidClose.Swap(true):
		return f.writeSmall(ws.OpText, nil)
	}
	return f.writeWhole(f.appendSmall(f.appendSmall(nil, ws.OpText, nil), ws.OpClose, normalClosure))
}

// awaitQuiet waits until an unknown peer has had the time to pass on all that it was sent: at an end
// it may drop what it has not read.
func (f *frames) awaitQuiet() error {
	for !f.closed.Load() {
		now := time.Now()
		if d := f.deadline.Load(); d != 0 && now.UnixNano() >= d {
			return os.ErrDeadlineExceeded
		}
		s, ok := bottomSocket(f)
		quiet := now.Sub(time.Unix(0, f.lastWrite.Load()))
		if quiet >= quietBeforeEnd && (!ok || s.unsent() == 0) {
			return nil
		}
		time.Sleep(min(max(quietBeforeEnd-quiet, 10*time.Millisecond), 50*time.Millisecond))
	}
	return nil
}

// farewell says Close once both directions have ended. Its answer tells that all has arrived. Where the connection is to be used again,
// the edge says in its place that it waits, once other has taken everything.
func (f *frames) farewell(other Conn) error {
	if f.peer != peerRaimon {
		return nil
	}
	waits := f.waitsAfter(other)
	f.writing.Lock()
	defer f.writing.Unlock()
	switch {
	case f.again && f.client, f.saidClose.Load(), f.waiting.Load():
		return nil
	case waits:
		return f.sayWait(nil)
	}
	f.saidClose.Store(true)
	return f.writeSmall(ws.OpClose, normalClosure)
}
