package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"
)

// feed is a Conn that gives raw in pieces and then io.EOF, and takes whatever is written.
type feed struct {
	Conn
	raw    []byte
	pieces []byte // sizes of the reads, in turn; none: as much as fits
	turn   int
}

func (f *feed) Read(p []byte) (int, error) {
	if len(f.raw) == 0 {
		return 0, io.EOF
	}
	n := min(len(p), len(f.raw))
	if len(f.pieces) > 0 {
		n = min(n, 1+int(f.pieces[f.turn%len(f.pieces)]))
		f.turn++
	}
	copy(p, f.raw[:n])
	f.raw = f.raw[n:]
	return n, nil
}

func (f *feed) Write(p []byte) (int, error)      { return len(p), nil }
func (f *feed) Close() error                     { return nil }
func (f *feed) CloseWrite() error                { return nil }
func (f *feed) SetDeadline(time.Time) error      { return nil }
func (f *feed) SetReadDeadline(time.Time) error  { return nil }
func (f *feed) SetWriteDeadline(time.Time) error { return nil }

// verdict is how a stream of frames ended.
type verdict string

const (
	verdictEnd       verdict = "end"
	verdictCut       verdict = "cut"
	verdictClose     verdict = "close"
	verdictViolation verdict = "violation"
)

// oracle reads raw as gobwas does, and gives the payload and how it ended.
func oracle(raw []byte, client bool, peer peerKind) ([]byte, verdict) {
	r := bytes.NewReader(raw)
	state := ws.StateServerSide
	if client {
		state = ws.StateClientSide
	}
	var payload []byte
	var op ws.OpCode
	empty := true // the message so far
	for {
		between := r.Len() == 0
		h, err := ws.ReadHeader(r) // within a header too it may give io.EOF
		switch {
		case between && peer != peerRaimon && !state.Fragmented():
			return payload, verdictEnd
		case err == io.EOF, err == io.ErrUnexpectedEOF:
			return payload, verdictCut
		case err != nil, ws.CheckHeader(h, state) != nil:
			return payload, verdictViolation
		}
		// As gobwas's ReadFrame, without taking the declared length at its word.
		body := make([]byte, min(h.Length, int64(r.Len())))
		io.ReadFull(r, body)
		if h.Masked {
			ws.Cipher(body, h.Mask, 0)
		}
		whole := int64(len(body)) == h.Length
		switch {
		case h.OpCode == ws.OpClose && whole:
			code, reason := ws.ParseCloseFrameData(body)
			registered := code >= 1012 && code <= 1014 // by IANA, after gobwas's list
			switch {
			case len(body) == 0:
				code = ws.StatusNoStatusRcvd
			case ws.CheckCloseFrameData(code, reason) != nil && !registered:
				return payload, verdictViolation
			}
			if peer != peerRaimon && (code == ws.StatusNormalClosure || code == ws.StatusNoStatusRcvd || code == ws.StatusGoingAway && !client) {
				return payload, verdictEnd
			}
			return payload, verdictClose
		case h.OpCode.IsControl():
		default:
			payload = append(payload, body...)
			if h.OpCode != ws.OpContinuation {
				op, empty = h.OpCode, true
			}
			empty = empty && h.Length == 0
			state = state.Clear(ws.StateFragmented)
			if !h.Fin {
				state = state.Set(ws.StateFragmented)
			}
			if whole && h.Fin && op == ws.OpText && empty && peer == peerRaimon {
				return payload, verdictEnd
			}
		}
		if !whole {
			return payload, verdictCut
		}
	}
}

func verdictOf(err error) verdict {
	var c *CloseError
	switch {
	case err == io.EOF:
		return verdictEnd
	case errors.Is(err, io.ErrUnexpectedEOF):
		return verdictCut
	case errors.As(err, &c):
		return verdictClose
	case strings.HasPrefix(err.Error(), "websocket: "):
		return verdictViolation
	}
	return verdict("unknown: " + err.Error())
}

// frameTable are the seeds: what must be read and what must be refused.
func frameTable() [][]byte {
	masked := func(f ws.Frame) []byte { return ws.MustCompileFrame(ws.MaskFrameWith(f, [4]byte{1, 2, 3, 4})) }
	plain := ws.MustCompileFrame
	zeroKey := func(f ws.Frame) []byte { return ws.MustCompileFrame(ws.MaskFrameWith(f, [4]byte{})) }
	declare := func(length uint64) []byte {
		return append(binary.BigEndian.AppendUint64([]byte{0x82, 0x7f}, length), "some"...)
	}
	declareMasked := func(length uint64) []byte {
		return append(binary.BigEndian.AppendUint64([]byte{0x82, 0xff}, length), 0, 0, 0, 0, 's', 'o')
	}
	part := func(op ws.OpCode, fin bool, p string) ws.Frame { return ws.NewFrame(op, fin, []byte(p)) }
	var table [][]byte
	for _, form := range []func(ws.Frame) []byte{masked, plain, zeroKey} {
		join := func(frames ...ws.Frame) {
			var b []byte
			for _, f := range frames {
				b = append(b, form(f)...)
			}
			table = append(table, b)
		}
		join()
		join(part(ws.OpBinary, true, "data"))
		join(part(ws.OpText, true, "text"), part(ws.OpBinary, true, ""), part(ws.OpBinary, true, "more"))
		for _, n := range []int{125, 126, 65535, 65536} {
			join(part(ws.OpBinary, true, strings.Repeat("x", n)))
		}
		join(part(ws.OpBinary, false, "da"), ws.NewPingFrame([]byte("ping")), part(ws.OpContinuation, false, "t"),
			ws.NewPongFrame(nil), part(ws.OpContinuation, true, "a"), part(ws.OpText, true, ""))
		join(part(ws.OpText, false, ""), ws.NewPingFrame(nil), part(ws.OpContinuation, true, "")) // the end, in two
		join(part(ws.OpText, false, ""), part(ws.OpContinuation, true, "x"))
		join(part(ws.OpText, true, ""), part(ws.OpBinary, true, "behind the end"))
		join(part(ws.OpBinary, true, "x"), ws.NewCloseFrame(ws.NewCloseFrameBody(1000, "bye")))
		join(ws.NewCloseFrame(ws.NewCloseFrameBody(1011, "error")), part(ws.OpBinary, true, "behind"))
		join(ws.NewCloseFrame(nil))
		join(ws.NewCloseFrame([]byte{3})) // half a code
		join(part(ws.OpContinuation, true, "of nothing"))
		join(part(ws.OpBinary, false, "x"), part(ws.OpBinary, true, "not a continuation"))
		join(part(3, true, "reserved"))
		join(part(ws.OpPing, true, strings.Repeat("x", 126)))
		join(part(ws.OpPing, false, "in pieces"))
		reserved := part(ws.OpBinary, true, "rsv1")
		reserved.Header.Rsv = ws.Rsv(true, false, false)
		join(reserved)
	}
	for _, length := range []uint64{1<<63 - 1, 1 << 63, 1<<64 - 1, 1 << 32} {
		table = append(table, declare(length), declareMasked(length))
	}
	return append(table, []byte{0x82}, []byte{0x82, 0xfe, 0}, []byte{0x82, 0x85, 1, 2, 3, 4, 'c', 'u'})
}

// FuzzFrames compares our reader with gobwas's, whatever comes in whatever pieces, on both sides and
// with every kind of peer.
func FuzzFrames(f *testing.F) {
	for _, raw := range frameTable() {
		for _, pieces := range []string{"", "\x00", "\x01\x04\x00"} {
			if len(raw) > 1000 && pieces != "" {
				continue // byte by byte these only take time
			}
			f.Add(raw, []byte(pieces), byte(0))
			f.Add(raw, []byte(pieces), byte(7))
		}
	}
	f.Fuzz(func(t *testing.T, raw, pieces []byte, options byte) {
		client, own := options&1 != 0, options&8 != 0
		peer := peerKind(options >> 1 & 3)
		want, end := oracle(raw, client, peer)
		conn := &feed{raw: bytes.Clone(raw), pieces: pieces}
		c := newFrames(conn, client, &WebSocket{Ping: -1}, peer, nil)
		if len(raw) > 0 && options&16 != 0 { // some of it was read ahead
			c.pending, conn.raw = bytes.Clone(raw[:len(raw)/2]), conn.raw[len(raw)/2:]
		}

		var got []byte
		var err error
		if own { // Read, with the caller's buffer
			size := 7
			if len(pieces) > 0 {
				size = 1 + int(pieces[0])
			}
			p := make([]byte, size)
			for err == nil {
				var n int
				n, err = c.Read(p)
				got = append(got, p[:n]...)
			}
		} else { // what Relay uses
			for err == nil {
				var b *buffer
				if b, err = c.readBuffer(probeSize); b != nil {
					got = append(got, b.bytes()...)
					b.free()
				}
			}
		}
		if !bytes.Equal(got, want) || verdictOf(err) != end {
			t.Fatalf("client %v, peer %d, %x:\ngot  %q, %v (%v)\nwant %q, %v", client, peer, raw, got, verdictOf(err), err, want, end)
		}
		if err == io.EOF {
			c.linger() // must come back
		}
		c.keepAlive()() // waits for the answers
	})
}

// oracleWord reads the first message of raw as gobwas does, which has to be a word; rest comes behind it.
func oracleWord(raw []byte, client bool) (word string, rest []byte, end verdict) {
	state := ws.StateServerSide
	if client {
		state = ws.StateClientSide
	}
	r := bytes.NewReader(raw)
	for {
		h, err := ws.ReadHeader(r)
		switch {
		case err == io.EOF, err == io.ErrUnexpectedEOF:
			return "", nil, verdictCut
		case err != nil, ws.CheckHeader(h, state) != nil:
			return "", nil, verdictViolation
		}
		isData := h.OpCode.IsData()
		if isData && h.Length > 0 && (h.OpCode != ws.OpText || !h.Fin || h.Length > maxWord) {
			return "", nil, verdictViolation
		}
		body := make([]byte, min(h.Length, int64(r.Len())))
		io.ReadFull(r, body)
		if int64(len(body)) < h.Length {
			return "", nil, verdictCut
		}
		if h.Masked {
			ws.Cipher(body, h.Mask, 0)
		}
		rest = raw[len(raw)-r.Len():]
		switch {
		case isData && h.Length > 0:
			return string(body), rest, ""
		case h.OpCode == ws.OpClose:
			_, end = oracle(raw[len(raw)-r.Len()-len(body)-ws.HeaderSize(h):], client, peerRaimon)
			return "", nil, end
		case isData && h.Fin: // an empty message
			if _, end := oracle(raw[:len(raw)-r.Len()], client, peerRaimon); end == verdictEnd {
				return "", nil, end
			}
			state = state.Clear(ws.StateFragmented)
		case isData:
			state = state.Set(ws.StateFragmented)
		}
	}
}

// FuzzWord compares the reader of a first message with gobwas's, and what is read behind it.
func FuzzWord(f *testing.F) {
	for _, word := range []string{"", "dial", "open", "echo", "dial db.example.com:5432", strings.Repeat("x", 125), strings.Repeat("x", 126), strings.Repeat("x", 300), strings.Repeat("x", 301)} {
		for _, form := range []func(ws.Frame) ws.Frame{ws.MaskFrame, func(f ws.Frame) ws.Frame { return f }} {
			raw := ws.MustCompileFrame(form(ws.NewPingFrame([]byte("?"))))
			raw = append(raw, ws.MustCompileFrame(form(ws.NewTextFrame([]byte(word))))...)
			raw = append(raw, ws.MustCompileFrame(form(ws.NewBinaryFrame([]byte("data"))))...)
			raw = append(raw, ws.MustCompileFrame(form(ws.NewTextFrame(nil)))...)
			f.Add(raw, []byte{}, false)
			f.Add(raw, []byte{0}, true)
		}
	}
	for _, raw := range frameTable() {
		if len(raw) < 1000 {
			f.Add(raw, []byte{1, 4, 0}, false)
			f.Add(raw, []byte{}, true)
		}
	}
	f.Fuzz(func(t *testing.T, raw, pieces []byte, client bool) {
		want, rest, end := oracleWord(raw, client)
		c := newFrames(&feed{raw: bytes.Clone(raw), pieces: pieces}, client, &WebSocket{Ping: -1}, peerRaimon, nil)
		defer func() { c.keepAlive()() }() // waits for the answers

		c.reading.Lock()
		got, err := c.readWord()
		c.reading.Unlock()

		switch {
		case err != nil && verdictOf(err) != end, err == nil && end != "", got != want:
			t.Fatalf("client %v, %x:\ngot  %q, %v\nwant %q, %v", client, raw, got, err, want, end)
		case err != nil:
			return
		}
		wantData, wantEnd := oracle(rest, client, peerRaimon)
		data, err := io.ReadAll(struct{ io.Reader }{c})
		if err == nil {
			err = io.EOF
		}
		if !bytes.Equal(data, wantData) || verdictOf(err) != wantEnd {
			t.Fatalf("client %v, %x: behind the word\ngot  %q, %v\nwant %q, %v", client, raw, data, err, wantData, wantEnd)
		}
	})
}

// Memory is reserved for what has arrived, not for what is declared (gobwas/ws#223).
func TestDeclaredLengthReservesNothing(t *testing.T) {
	if RaceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	for _, client := range []bool{true, false} {
		head := binary.BigEndian.AppendUint64([]byte{0x82, 0x7f}, 1<<63-1)
		if !client {
			head[1] |= 0x80
			head = append(head, 1, 2, 3, 4)
		}
		payload := make([]byte, 64<<10)
		conn := &feed{raw: append(head, payload...)}
		c := newFrames(conn, client, &WebSocket{Ping: -1}, peerRaimon, nil)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		total := 0
		for range 1000 {
			b, err := c.readBuffer(bufferSize)
			if b != nil {
				total += b.len()
				b.free()
			}
			if err != nil {
				t.Fatal(err)
			}
			conn.raw = payload
		}
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 4<<20 {
			t.Errorf("client %v: %d bytes allocated for %d bytes of one frame", client, grown, total)
		}
	}
}

var _ net.Conn = (*feed)(nil)

// Masking is done in place, on buffers of our own; SIMD makes it cheaper than a copy.
func BenchmarkMask(b *testing.B) {
	for _, size := range []int{64, 4 << 10, bufferSize} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			p := make([]byte, size)
			f := &frames{}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				f.cipher(p, [4]byte{1, 2, 3, 4}, 1)
			}
		})
	}
}
