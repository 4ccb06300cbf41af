package tunnel

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
)

// frameReader is the state of the reading side, guarded by reading.
type frameReader struct {
	pending []byte // raw bytes that were read ahead

	head        [ws.MaxHeaderSize]byte
	headLen     uint8
	offset      uint8 // position in the mask key
	scratchHead [ws.MaxHeaderSize]byte
	state       ws.State     // what headers are checked against
	floodHead   uint8        // size of the last header if its frame was one of a flood, else 0
	bytes       bytes.Reader // lets gobwas read head

	header ws.Header // of the frame that is being read
	left   int64     // payload of it to come; 0: a header comes next
	body   []byte    // of the control frame that is being read

	text     bool        // the message is text
	nonEmpty bool        // the message has payload
	isOpen   bool        // the edge has said that its target is there
	ended    bool        // the peer has said its end in a frame
	closed   atomic.Bool // a Close frame has come
	readErr  error       // what every Read returns from now on

	lastRead   atomic.Int64 // when bytes last came, Unix nanoseconds
	waitsSince atomic.Int64 // since when a read waits for the network; 0: none does
}

// Read is for those who bring their own buffer.
func (f *frames) Read(p []byte) (int, error) {
	f.reading.Lock()
	defer f.reading.Unlock()
	for len(p) > 0 {
		if f.readErr != nil {
			return 0, f.readErr
		}
		n, err := f.readBelow(p)
		from, to := f.parse(p[:n])
		n = copy(p, p[from:to])
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
			from, to := f.parse(b.bytes())
			b.start, b.end = b.start+from, b.start+to
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
		b := newBuffer(len(f.pending))
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
	switch {
	case f.readErr != nil:
		return f.readErr
	case isTimeout(err):
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

// isTimeout tells whether err is that of a deadline, or another one that may pass. A deadline ends many tunnels, and looking for a
// net.Error takes more of the stack than an idle one has.
func isTimeout(err error) bool {
	if op, ok := err.(*net.OpError); ok && op.Err == os.ErrDeadlineExceeded {
		return true
	}
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// parse takes headers and control frames out of p and unmasks the payload, which is left in p[from:to]: what comes first
// stays where it is, the rest closes up to it. From f.readErr on nothing is taken; what stands behind the
// end of the stream is kept for linger.
func (f *frames) parse(p []byte) (from, to int) {
	i := 0
	for i < len(p) && f.readErr == nil {
		if f.left == 0 {
			i += f.takeHeader(p[i:])
			continue
		}
		chunk := f.chunk(p[i:])
		switch {
		case f.header.OpCode.IsControl():
			f.body = append(f.body, chunk...)
		case from == to:
			from, to = i, i+len(chunk)
		default:
			to += copy(p[to:], chunk)
		}
		i += len(chunk)
		if f.left == 0 {
			f.frameDone()
		}
	}
	if i < len(p) && f.ended && !f.closed.Load() {
		f.pending = append(bytes.Clone(p[i:]), f.pending...)
	}
	return from, to
}

// chunk is how much of the frame p begins with, unmasked.
func (f *frames) chunk(p []byte) []byte {
	p = p[:min(int64(len(p)), f.left)]
	f.left -= int64(len(p))
	if f.header.Masked && f.header.Mask != [4]byte{} {
		ws.Cipher(p, f.header.Mask, int(f.offset))
		f.offset = (f.offset + uint8(len(p))) & 3
	}
	return p
}

// takeHeader takes bytes of a header from p and says how many.
func (f *frames) takeHeader(p []byte) int {
	need := 2
	if f.headLen >= 2 {
		need = headerSize(f.head[1])
	}
	n := copy(f.head[f.headLen:need], p)
	f.headLen += uint8(n)
	if f.headLen < 2 || int(f.headLen) < headerSize(f.head[1]) {
		return n
	}
	f.bytes.Reset(f.head[:f.headLen])
	f.headLen = 0
	h, err := ws.ReadHeaderBuffer(&f.bytes, f.scratchHead[:])
	if err == nil {
		err = ws.CheckHeader(h, f.state)
	}
	if err == ws.ErrProtocolMaskUnexpected {
		err = errors.New("a masked frame from a server") // gobwas says it the other way round
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

// isHead tells of a read that wants no more than the header of a frame whose payload is spliced. To the scheduler (quick_linux.go) the payload counts.
func isHead(limit int) bool { return limit <= ws.MaxHeaderSize }

// begin starts the frame of h.
func (f *frames) begin(h ws.Header) {
	f.header, f.left, f.offset = h, h.Length, 0
	switch {
	case h.OpCode.IsControl():
		f.body = nil
	case h.OpCode != ws.OpContinuation:
		f.text, f.nonEmpty = h.OpCode == ws.OpText, false
		fallthrough
	default:
		f.nonEmpty = f.nonEmpty || h.Length > 0
		f.floodHead = 0
		if h.Length >= probeSize {
			f.floodHead = uint8(ws.HeaderSize(h))
		}
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
		f.answer(f.body)
	case ws.OpPong:
		f.ponged()
	case ws.OpClose:
		f.closing(f.body)
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
	if f.peer != peerRaimon && f.isEnd(code) {
		f.readErr = io.EOF
	}
	if code == ws.StatusNoStatusRcvd {
		code = ws.StatusNormalClosure
	}
	f.answerClose(code)
}

// isEnd tells of codes that say that all went well. A page that is left says 1001; a server says so
// when it goes down in the middle of something (RFC 6455, section 7.4.1).
func (f *frames) isEnd(code ws.StatusCode) bool {
	return code == ws.StatusNormalClosure || code == ws.StatusNoStatusRcvd || code == ws.StatusGoingAway && !f.client
}

// registeredLater tells of codes that IANA has and gobwas does not know.
func registeredLater(code ws.StatusCode) bool { return code >= 1012 && code <= statusBadGateway }

// violation ends the connection with Close 1002 (RFC 6455, section 7.4.1).
func (f *frames) violation(err error) {
	f.readErr = fmt.Errorf("websocket: %w", err)
	f.hangUp(ws.StatusProtocolError, "")
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
	if f.again && f.client {
		return f.hearWait()
	}
	for f.readErr == nil && !f.waiting.Load() {
		b, err := f.readBufferBelow(probeSize)
		switch {
		case b != nil && f.waiting.Load():
			f.pending = append(bytes.Clone(b.bytes()), f.pending...) // belongs to the next tunnel
		case b != nil:
			f.parse(b.bytes())
		}
		b.free()
		if err != nil {
			f.broke(err)
			if f.readErr == nil && !f.waiting.Load() {
				return err
			}
		}
	}
	if f.saidEnd.Load() && (f.closed.Load() || f.waiting.Load()) {
		return nil
	}
	return f.readErr
}
