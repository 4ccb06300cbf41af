package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
)

// Mask says how a client masks its payload (RFC 6455, section 5.3). Every mode sets the mask bit.
type Mask int

const (
	// MaskSkip uses the key 0, which leaves the payload untouched.
	MaskSkip Mask = iota
	// MaskFixed uses one random key a connection.
	MaskFixed
	// MaskStandard uses a fresh random key for every frame, as the RFC asks for.
	MaskStandard
)

// peerKind is what is known of the other end of a WebSocket; it decides how the end of a direction
// is said.
type peerKind int

const (
	// peerUnknown may end both directions and drop unread bytes when it sees an end: v2ray-plugin,
	// anything behind nginx.
	peerUnknown peerKind = iota
	// peerBrowser is the same, but knows of no end that a Close frame does not announce.
	peerBrowser
	// peerHalfCloses takes the end of the stream below as the end of one direction: kaminari.
	peerHalfCloses
	// peerRaimon agreed on our sign in the handshake: an empty text message.
	peerRaimon
)

const (
	// statusBadGateway is registered for "the target could not be reached" (IANA WebSocket registry).
	statusBadGateway ws.StatusCode = 1014
	// quietBeforeEnd is how long an unknown peer is left to forward what it has before it sees an end.
	quietBeforeEnd = time.Second
)

// normalClosure is the body of a Close frame after all went well.
var normalClosure = ws.NewCloseFrameBody(ws.StatusNormalClosure, "")

// CloseError says that the peer sent a Close frame where the stream had not ended.
type CloseError struct {
	Code   int // RFC 6455, section 7.4; 1005: none was given
	Reason string
}

func (e *CloseError) Error() string {
	if e.Code == int(statusBadGateway) {
		return "the edge could not reach its target (close 1014)"
	}
	if e.Reason == "" {
		return fmt.Sprintf("peer closed the WebSocket (close %d)", e.Code)
	}
	return fmt.Sprintf("peer closed the WebSocket (close %d %q)", e.Code, e.Reason)
}

// frames is the framing of RFC 6455 over any Conn: what is written leaves as binary messages, what
// comes in binary or text messages is read. Nothing is kept of a payload, whatever length is
// declared.
type frames struct {
	Conn
	client bool
	mask   Mask
	peer   peerKind

	reading sync.Mutex
	frameReader

	writing sync.Mutex
	frameWriter

	controls
}

// frameReader is the state of the reading side, guarded by reading.
type frameReader struct {
	pending []byte // raw bytes that were read ahead

	head        [ws.MaxHeaderSize]byte
	headLen     int
	bytes       bytes.Reader // lets gobwas read head
	scratchHead [ws.MaxHeaderSize]byte

	header   ws.Header // of the frame that is being read
	left     int64     // payload of it to come; 0: a header comes next
	offset   int       // position in the mask key
	state    ws.State  // what headers are checked against
	text     bool      // the message is text
	nonEmpty bool      // the message has payload

	body    [ws.MaxControlFramePayloadSize]byte // of the control frame that is being read
	bodyLen int

	ended   bool  // the peer has said its end in a frame
	readErr error // what every Read returns from now on

	closed     atomic.Bool  // a Close frame has come
	lastRead   atomic.Int64 // when bytes last came, Unix nanoseconds
	waitsSince atomic.Int64 // since when a read waits for the network; 0: none does
}

// frameWriter is the state of the writing side, guarded by writing.
type frameWriter struct {
	key       [4]byte // MaskFixed's
	unsent    []byte  // rest of a header that a deadline cut off
	owed      int64   // payload of the frame begun that is still to be written
	owedKey   [4]byte
	owedAt    int // position in owedKey
	place     placeWriter
	scratch   [ws.MaxHeaderSize]byte
	drainHead [ws.MaxHeaderSize]byte // header before a spliced payload
	deadline  atomic.Int64           // Unix nanoseconds; 0: none

	saidEnd   atomic.Bool
	saidClose atomic.Bool
	written   atomic.Int64 // data frames
	lastWrite atomic.Int64 // when data was last written, Unix nanoseconds
}

// placeWriter lets gobwas write a header to a place of ours.
type placeWriter struct{ b []byte }

func (w *placeWriter) Write(p []byte) (int, error) { return copy(w.b, p), nil }

func newFrames(c Conn, client bool, w *WebSocket, peer peerKind, pending []byte) *frames {
	f := &frames{Conn: asSocket(c), client: client, mask: w.Mask, peer: peer}
	f.interval = w.pingInterval()
	f.pending = pending
	f.state = ws.StateServerSide
	if client {
		f.state = ws.StateClientSide
		if f.mask == MaskFixed {
			f.key = f.newKey()
		}
	}
	now := time.Now().UnixNano()
	f.lastRead.Store(now)
	f.lastWrite.Store(now)
	return f
}

func (f *frames) below() Conn { return f.Conn }

// Read is for those who bring their own buffer.
func (f *frames) Read(p []byte) (int, error) {
	f.reading.Lock()
	defer f.reading.Unlock()
	for len(p) > 0 {
		if f.readErr != nil {
			return 0, f.readErr
		}
		n, err := f.readBelow(p)
		n = f.parse(p[:n])
		if err != nil {
			err = f.broke(err)
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, nil
}

// readBelow reads raw bytes, those that were read ahead first.
func (f *frames) readBelow(p []byte) (int, error) {
	if len(f.pending) > 0 {
		n := copy(p, f.pending)
		f.took(n)
		return n, nil
	}
	f.waits()
	n, err := f.Conn.Read(p)
	f.came(n)
	return n, err
}

// took drops the first n bytes of pending, and its memory with the last.
func (f *frames) took(n int) {
	if f.pending = f.pending[n:]; len(f.pending) == 0 {
		f.pending = nil
	}
}

// readBuffer reads into a pooled buffer and takes the frame headers out of it in place.
func (f *frames) readBuffer(limit int) (*buffer, error) {
	f.reading.Lock()
	defer f.reading.Unlock()
	for f.readErr == nil {
		b, err := f.readBufferBelow(limit)
		if b != nil {
			b.end = b.start + f.parse(b.bytes())
			if b.len() == 0 {
				b.free()
				b = nil
			}
		}
		if err != nil {
			err = f.broke(err)
		}
		if b != nil || err != nil {
			return b, err
		}
	}
	return nil, f.readErr
}

func (f *frames) readBufferBelow(limit int) (*buffer, error) {
	if len(f.pending) > 0 {
		b := newBuffer()
		n := copy(b.room(bufferSize), f.pending)
		b.end += n
		f.took(n)
		return b, nil
	}
	f.waits()
	b, err := readBuffer(f.Conn, limit)
	if b != nil {
		f.came(b.len())
	} else {
		f.came(0)
	}
	return b, err
}

// waits notes that a read begins to wait for the network.
func (f *frames) waits() { f.waitsSince.Store(time.Now().UnixNano()) }

// came notes that it no longer does, and whether the network was heard.
func (f *frames) came(n int) {
	f.waitsSince.Store(0)
	if n > 0 {
		f.lastRead.Store(time.Now().UnixNano())
	}
}

// broke turns an error of the connection below into what the stream ends with. A deadline may be
// lifted and is not remembered, unless it is how a dead peer was declared.
func (f *frames) broke(err error) error {
	var n net.Error
	switch {
	case f.readErr != nil:
		return f.readErr
	case errors.As(err, &n) && n.Timeout():
		if !f.dead.Load() {
			return err
		}
		f.readErr = errNoPong
	case err != io.EOF:
		f.readErr = err
	case f.peer == peerRaimon || f.headLen > 0 || f.left > 0 || f.state.Fragmented():
		f.readErr = errCut
	default:
		f.readErr = io.EOF
	}
	return f.readErr
}

// parse takes headers and control frames out of p, unmasks the payload and moves it to the front.
// It returns how many bytes of payload that leaves. From f.readErr on nothing is taken; what stands
// behind the end of the stream is kept for linger.
func (f *frames) parse(p []byte) (out int) {
	i := 0
	for i < len(p) && f.readErr == nil {
		if f.left == 0 {
			i += f.takeHeader(p[i:])
			continue
		}
		chunk := p[i : i+int(min(int64(len(p)-i), f.left))]
		i += len(chunk)
		f.left -= int64(len(chunk))
		if f.header.Masked && f.header.Mask != [4]byte{} {
			ws.Cipher(chunk, f.header.Mask, f.offset)
			f.offset = (f.offset + len(chunk)) & 3
		}
		if f.header.OpCode.IsControl() {
			f.bodyLen += copy(f.body[f.bodyLen:], chunk)
		} else {
			out += copy(p[out:], chunk)
		}
		if f.left == 0 {
			f.frameDone()
		}
	}
	if i < len(p) && f.ended && !f.closed.Load() {
		f.pending = append(bytes.Clone(p[i:]), f.pending...)
	}
	return out
}

// takeHeader takes bytes of a header from p and says how many.
func (f *frames) takeHeader(p []byte) int {
	need := 2
	if f.headLen >= 2 {
		need = headerSize(f.head[1])
	}
	n := copy(f.head[f.headLen:need], p)
	f.headLen += n
	if f.headLen < 2 || f.headLen < headerSize(f.head[1]) {
		return n
	}
	f.bytes.Reset(f.head[:f.headLen])
	f.headLen = 0
	h, err := ws.ReadHeaderBuffer(&f.bytes, f.scratchHead[:])
	if err == nil {
		err = ws.CheckHeader(h, f.state)
	}
	if err == nil && f.ended && h.OpCode.IsData() {
		err = errors.New("data after the end of the stream")
	}
	if err != nil {
		f.violation(err)
		return n
	}
	f.begin(h)
	return n
}

// headerSize is the length of a header whose second byte is b (RFC 6455, section 5.2).
func headerSize(b byte) int {
	n := 2
	switch b & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if b&0x80 != 0 {
		n += 4
	}
	return n
}

// begin starts the frame of h.
func (f *frames) begin(h ws.Header) {
	f.header, f.left, f.offset = h, h.Length, 0
	switch {
	case h.OpCode.IsControl():
		f.bodyLen = 0
	case h.OpCode != ws.OpContinuation:
		f.text, f.nonEmpty = h.OpCode == ws.OpText, false
		fallthrough
	default:
		f.nonEmpty = f.nonEmpty || h.Length > 0
		if h.Fin {
			f.state = f.state.Clear(ws.StateFragmented)
		} else {
			f.state = f.state.Set(ws.StateFragmented)
		}
	}
	if f.left == 0 {
		f.frameDone()
	}
}

// frameDone acts on a frame that is complete.
func (f *frames) frameDone() {
	switch f.header.OpCode {
	case ws.OpPing:
		f.answer(f.body[:f.bodyLen])
	case ws.OpPong:
		f.ponged()
	case ws.OpClose:
		f.closing(f.body[:f.bodyLen])
	default:
		if f.peer == peerRaimon && f.header.Fin && f.text && !f.nonEmpty {
			f.ended, f.readErr = true, io.EOF
		}
	}
}

// closing acts on a Close frame, which ends both directions. It is the end of the stream only where
// none has to be said in another way.
func (f *frames) closing(body []byte) {
	code := ws.StatusNoStatusRcvd
	reason := ""
	if len(body) > 0 {
		code, reason = ws.ParseCloseFrameData(body)
		if err := ws.CheckCloseFrameData(code, reason); err != nil && !registeredLater(code) {
			f.violation(err)
			return
		}
	}
	f.closed.Store(true)
	f.readErr = &CloseError{Code: int(code), Reason: reason}
	if f.peer != peerRaimon && (code == ws.StatusNormalClosure || code == ws.StatusNoStatusRcvd) {
		f.readErr = io.EOF
	}
	if code == ws.StatusNoStatusRcvd {
		code = ws.StatusNormalClosure
	}
	f.answerClose(code)
}

// registeredLater tells of codes that IANA has and gobwas does not know.
func registeredLater(code ws.StatusCode) bool { return code >= 1012 && code <= statusBadGateway }

// violation ends the connection with Close 1002 (RFC 6455, section 7.4.1).
func (f *frames) violation(err error) {
	f.readErr = fmt.Errorf("websocket: %w", err)
	f.hangUp(ws.StatusProtocolError)
}

// linger reads on behind the end of the stream, so that Pings are answered, until the peer closes.
// If it does so before we have said our own end, the stream was cut.
func (f *frames) linger() error {
	if f.peer != peerRaimon {
		return nil
	}
	f.reading.Lock()
	defer f.reading.Unlock()
	if f.ended && f.readErr == io.EOF {
		f.readErr = nil
	}
	for f.readErr == nil {
		b, err := f.readBufferBelow(probeSize)
		if b != nil {
			f.parse(b.bytes())
			b.free()
		}
		if err != nil {
			f.broke(err)
			if f.readErr == nil {
				return err
			}
		}
	}
	if f.closed.Load() && f.saidEnd.Load() {
		return nil
	}
	return f.readErr
}

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
}

// writeSmall writes a frame of at most 125 bytes in one write. The caller holds writing.
func (f *frames) writeSmall(op ws.OpCode, body []byte) error {
	if f.owed > 0 || len(f.unsent) > 0 {
		return os.ErrDeadlineExceeded // in the middle of a frame that a deadline interrupted
	}
	h := f.nextHeader(op, len(body))
	frame := make([]byte, ws.HeaderSize(h)+len(body))
	payload := frame[ws.HeaderSize(h):]
	f.putHeader(frame[:ws.HeaderSize(h)], h)
	copy(payload, body)
	f.cipher(payload, h.Mask, 0)
	_, err := f.Conn.Write(frame)
	return err
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

// farewell says Close once both directions have ended. Its answer tells that all has arrived.
func (f *frames) farewell() error {
	if f.peer != peerRaimon {
		return nil
	}
	f.writing.Lock()
	defer f.writing.Unlock()
	if f.saidClose.Swap(true) {
		return nil
	}
	return f.writeSmall(ws.OpClose, normalClosure)
}

// Close closes the connection at once. Where nobody is writing it ends our direction first, as the
// Close of a TCP connection does.
func (f *frames) Close() error {
	if f.writing.TryLock() {
		if f.peer == peerRaimon && !f.saidClose.Swap(true) {
			f.Conn.SetWriteDeadline(time.Now().Add(time.Second))
			if !f.saidEnd.Swap(true) {
				f.writeSmall(ws.OpText, nil)
			}
			f.writeSmall(ws.OpClose, normalClosure)
		}
		f.writing.Unlock()
	}
	return f.Conn.Close()
}

func (f *frames) SetDeadline(t time.Time) error {
	f.noteDeadline(t)
	return f.Conn.SetDeadline(t)
}

func (f *frames) SetWriteDeadline(t time.Time) error {
	f.noteDeadline(t)
	return f.Conn.SetWriteDeadline(t)
}

func (f *frames) noteDeadline(t time.Time) {
	if t.IsZero() {
		f.deadline.Store(0)
	} else {
		f.deadline.Store(t.UnixNano())
	}
}
