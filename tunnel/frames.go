package tunnel

import (
	"fmt"
	"sync"
	"time"

	"github.com/gobwas/ws"
)

// Mask says how a client masks its payload (RFC 6455, section 5.3). Every mode sets the mask bit.
type Mask uint8

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
type peerKind uint8

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
	// headTaken is how long kaminari's client gets to read the 101 before it is sent anything.
	headTaken = 50 * time.Millisecond
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
		return fmt.Sprintf("the edge could not reach its target: %s (close 1014)", phrases[knownReason(e.Reason)])
	}
	if e.Reason == "" {
		return fmt.Sprintf("peer closed the WebSocket (close %d)", e.Code)
	}
	return fmt.Sprintf("peer closed the WebSocket (close %d %q)", e.Code, e.Reason)
}

// frames is the framing of RFC 6455 over any Conn: what is written leaves as binary messages, what
// comes in binary or text messages is read. Nothing is kept of a payload, whatever length is
// declared. Each idle tunnel has one: the order of its fields keeps it at 512 bytes, a size that Go allocates.
type frames struct {
	Conn
	client bool
	// Agreed in the handshake: the edge waits to be told to dial; it says when its target is there; it waits again when the
	// tunnel has ended well; and it has not heard which target the client has chosen.
	wait, open, again, unheard bool
	chooses                    bool // an edge: its clients may choose their target
	used                       bool // it has carried a tunnel, and Close is a reset still, until letEnd

	mask  Mask
	peer  peerKind
	since int64 // the handshake, Unix nanoseconds

	reading sync.Mutex
	frameReader

	writing sync.Mutex
	frameWriter

	controls
}

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
	f.since = time.Now().UnixNano()
	f.lastRead.Store(f.since)
	f.lastWrite.Store(f.since)
	return f
}

// PeerName is which program the edge behind c is, as far as the handshake of WebSocket.Client has told: raimon or kaminari. Empty:
// another one, or whatever stands behind a proxy that rewrites heads.
func PeerName(c Conn) string {
	f, ok := c.(*frames)
	switch {
	case !ok || !f.client:
		return ""
	case f.peer == peerRaimon:
		return "raimon"
	case f.peer == peerHalfCloses:
		return "kaminari"
	}
	return ""
}

func (f *frames) below() Conn { return f.Conn }

// Close closes the connection at once. Where nobody is writing it ends our direction first, as the
// Close of a TCP connection does.
func (f *frames) Close() error {
	if f.used {
		letEnd(f)
	}
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
