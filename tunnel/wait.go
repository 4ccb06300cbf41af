package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gobwas/ws"
)

const (
	// maxWait is how long after the handshake an edge waits to hear what its client wants: who may use a connection is asked then.
	maxWait = 5 * time.Minute
	// maxWord is how many bytes the message may have that tells it, or that says that the target is there.
	maxWord = 300
	// maxTarget is how many bytes an address may have that a client names: more than any name and port.
	maxTarget = 290

	wordDial = "dial"
	wordEcho = "echo"
	wordOpen = "open"
)

// ErrNotTaken says that a connection waited, and that its client had no use for it.
var ErrNotTaken = errors.New("nobody took the waiting connection")

// ErrNoTargets is for clients of an edge that does not let them choose.
var ErrNoTargets = errors.New("the edge does not know of chosen targets: it is older than that, or a proxy drops the header of raimon")

// Answering is a Conn whose peer waits to hear whether the other end of the tunnel is there.
type Answering interface {
	Conn
	// Answer tells the peer, once and before anything is read or written. With nil the tunnel begins, on the Conn
	// that it returns. Otherwise err is why there is no tunnel, and Reason has a word for it; if Answer then
	// returns no error, the peer has been told, and the connection is closed without a reset.
	Answer(err error) (Conn, error)
}

// Waiting tells whether c, which WebSocket.Client has returned, has an edge behind it that waits, or has waited, for Take.
func Waiting(c Conn) bool {
	f, ok := c.(*frames)
	return ok && f.client && f.wait
}

// Take has the edge that waits behind c dial target, host:port; empty is what WebSocket.Target says, or else the edge's own
// target. It does not wait for it, and data may be written to c as soon as it has returned. It may be called once;
// after an error c is of no use. Where nothing waits, and no target is named, there is nothing to do.
func Take(c Conn, target string) error { return TakeAndWrite(c, target, nil) }

// TakeAndWrite is Take and a Write of data, of at most 16 KiB, in one write.
func TakeAndWrite(c Conn, target string, data []byte) error {
	if target != "" && !IsTarget(target) {
		return fmt.Errorf("take: target %q: %w", target, errTargetForm)
	}
	f, ok := c.(*frames)
	switch {
	case ok && f.client && f.wait && target != "":
		return f.take(wordDial+" "+target, data)
	case ok && f.client && f.wait:
		return f.take(wordDial, data)
	case target != "":
		return ErrNoTargets
	}
	_, err := c.Write(data)
	return err
}

// Echo is Take with an edge that sends back what it gets in place of a target: at most 64 MiB, for 30 seconds. Edges that do not
// wait know no echo, and of those that do an older one hangs up with Close 1002.
func Echo(c Conn) error {
	if !Waiting(c) {
		return errors.New("echo: the edge does not wait for what its client wants")
	}
	return c.(*frames).take(wordEcho, nil)
}

func (f *frames) take(word string, data []byte) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	if err := f.writable(); err != nil {
		return fmt.Errorf("take: %w", err)
	}
	if f.taken.Swap(true) {
		return errors.New("take: the edge has been told what to do already")
	}
	first := f.appendSmall(nil, ws.OpText, []byte(word))
	if len(data) > 0 {
		first = f.appendSmall(first, ws.OpBinary, data)
	}
	if err := f.writeWhole(first); err != nil {
		return fmt.Errorf("take: %w", err)
	}
	f.wrote() // a Ping is not answered before the target is there
	return nil
}

// AwaitOpen returns when the edge behind c has said that its target is there, and at once where it has not agreed to say so.
// It is to be called before anything is read from c, by one goroutine; others may call Take and Write
// meanwhile. Before Take it is how to notice that an edge no longer waits. Pings are sent and answered as in Relay.
//
// A *TargetError says that the edge could not reach its target, or may not; a *CloseError that it waits no longer. After either of them,
// and before Take, nothing that was written to c has got to the target. A connection that was just cut does not tell that.
// A deadline for reading wakes AwaitOpen, which may then be called again. After other errors c is of no use.
func AwaitOpen(c Conn) error {
	f, ok := c.(*frames)
	switch {
	case !ok || !f.client:
		return nil
	case f.unheard:
		return ErrNoTargets
	case !f.open:
		return nil
	}
	return f.awaitOpen()
}

func (f *frames) awaitOpen() error {
	f.reading.Lock()
	defer f.reading.Unlock()
	if f.isOpen {
		return nil
	}
	f.startPings()
	defer f.stopPings()
	word, err := f.readWord()
	var closed *CloseError
	switch {
	case errors.As(err, &closed) && closed.Code == int(statusBadGateway):
		return &TargetError{Reason: knownReason(closed.Reason)}
	case err == io.EOF:
		return fmt.Errorf("await the target: %w", errCut)
	case err != nil:
		return fmt.Errorf("await the target: %w", err)
	case word != wordOpen || f.wait && !f.taken.Load():
		f.violation(fmt.Errorf("%.20q in place of %q", word, wordOpen))
		return f.readErr
	}
	f.isOpen = true
	return nil
}

// begin has the edge behind c dial, where that waits to be told, and returns when its target is there, where it says so.
func begin(ctx context.Context, c Conn) error {
	f, ok := c.(*frames)
	if !ok || !f.open && !f.unheard {
		return nil
	}
	return interruptible(ctx, c, func() error {
		if f.wait && !f.taken.Load() {
			if err := Take(c, ""); err != nil {
				return err
			}
		}
		return AwaitOpen(c)
	})
}

// expectDial limits the awaitDial that follows. It comes before anybody may set a deadline to end that.
func (f *frames) expectDial() { f.Conn.SetReadDeadline(time.Unix(0, f.since).Add(maxWait)) }

// awaitDial waits until the client tells the edge to dial; target is what it has chosen, if anything, or TargetEcho. It is over when any of ends is.
// What it waits with is little: no buffer, and the stack of a goroutine that has done nothing else.
func (f *frames) awaitDial(ends ...context.Context) (target string, err error) {
	var unhook []func() bool
	for _, ctx := range ends {
		if ctx != nil {
			unhook = append(unhook, context.AfterFunc(ctx, func() { f.Conn.SetReadDeadline(past) }))
		}
	}
	f.startPings()
	f.reading.Lock()
	word, err := f.readWord()
	f.reading.Unlock()
	f.stopPings()
	ended := errors.Is(err, os.ErrDeadlineExceeded)
	for _, stop := range unhook {
		ended = !stop() || ended
	}
	if ended {
		f.hangUp(ws.StatusGoingAway, "")
		return "", ErrNotTaken
	}
	if err != nil {
		f.quiet(time.Now().Add(time.Second)) // a Close is answered
		return "", fmt.Errorf("%w: %w", ErrNotTaken, err)
	}
	f.Conn.SetReadDeadline(time.Time{})
	if word == wordEcho {
		return TargetEcho, nil
	}
	verb, target, chosen := strings.Cut(word, " ")
	if verb != wordDial || chosen && !IsTarget(target) {
		f.violation(fmt.Errorf("%.20q in place of %q", word, wordDial))
		return "", fmt.Errorf("%w: %w", ErrNotTaken, f.readErr)
	}
	return target, nil
}

// Answer says that the target is there, if the client wants to hear it; or in a Close frame why it is not.
func (f *frames) Answer(err error) (Conn, error) {
	switch {
	case err == nil && !f.open:
		return f, nil
	case err == nil:
		f.writing.Lock()
		defer f.writing.Unlock()
		if err := f.writeSmall(ws.OpText, []byte(wordOpen)); err != nil {
			return nil, fmt.Errorf("websocket: say that the target is there: %w", err)
		}
		f.wrote()
		return f, nil
	}
	switch {
	case f.peer != peerRaimon:
	case errors.Is(err, ErrDrained), errors.Is(err, ErrNotTaken):
		f.hangUp(ws.StatusGoingAway, "") // the target is not to blame: the next edge may reach it
	default:
		f.hangUp(statusBadGateway, Reason(err))
	}
	if !f.hungUp.Load() {
		return nil, net.ErrClosed
	}
	return f, nil
}

// readWord reads the text message in one frame with which a tunnel begins where that was agreed, and takes nothing that comes behind it.
// The caller holds reading.
func (f *frames) readWord() (string, error) {
	for f.readErr == nil {
		b, err := f.readBufferBelow(probeSize)
		whole := false
		if b != nil {
			whole = f.parseWord(b.bytes())
			b.free()
		}
		if err != nil {
			err = f.broke(err)
		}
		if whole {
			word := string(f.body)
			f.body = nil
			return word, nil
		}
		if err != nil {
			return "", err
		}
	}
	return "", f.readErr
}

// parseWord is parse up to the end of the first message, which is kept in body. It tells whether that has come; what stands behind it
// is pending then.
func (f *frames) parseWord(p []byte) (whole bool) {
	for len(p) > 0 && f.readErr == nil {
		if f.left == 0 {
			p = p[f.takeHeader(p):]
			if h := f.header; f.left > 0 && h.OpCode.IsData() {
				f.body = nil
				if h.OpCode != ws.OpText || !h.Fin || h.Length > maxWord {
					f.violation(errors.New("data before the tunnel has begun"))
				}
			}
			continue
		}
		chunk := f.chunk(p)
		p = p[len(chunk):]
		f.body = append(f.body, chunk...)
		switch {
		case f.left > 0:
		case f.header.OpCode.IsData():
			if len(p) > 0 {
				f.pending = append(bytes.Clone(p), f.pending...)
			}
			return true
		default:
			f.frameDone()
		}
	}
	return false
}

// errTargetForm says what a target has to look like.
var errTargetForm = errors.New("it is not host:port or [ipv6]:port with a port from 1 to 65535")

// IsTarget tells whether a client may name target: host:port or [ipv6]:port, in printable ASCII, with a port from 1 to 65535.
func IsTarget(target string) bool {
	for i := range len(target) {
		if target[i] <= ' ' || target[i] > '~' {
			return false
		}
	}
	network, _, err := ParseAddress(target)
	if err != nil || network != "tcp" || len(target) > maxTarget {
		return false
	}
	host, port, err := net.SplitHostPort(target)
	n, _ := strconv.Atoi(port)
	return err == nil && host != "" && n > 0
}
