package tunnel

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/net/http/httpguts"
)

const (
	// featureHeader carries what two raimons agree on beyond RFC 6455; docs/protocol.md describes it.
	featureHeader = "Raimon"
	// featureEnd offers and accepts the empty text message as the end of one direction.
	featureEnd = "end"
	// featureWait offers and accepts that the edge dials only when it is told to, and then says when its target is there.
	featureWait = "wait"
	// featureOpen accepts targetHeader, and that the edge says when its target is there.
	featureOpen = "open"
	// featureAgain offers and accepts that the edge waits for the next tunnel when one has ended well.
	featureAgain = "again"
	// targetHeader names the target that the client has chosen.
	targetHeader = "Raimon-Target"

	// maxHead bounds what an HTTP head may bring.
	maxHead = 64 << 10
)

// ErrNoTunnel says that an HTTP connection ended without having become a tunnel.
var ErrNoTunnel = errors.New("http connection ended without a tunnel")

// ErrNoAnswer says that the peer closed the connection instead of answering an upgrade.
var ErrNoAnswer = fmt.Errorf("the peer closed the connection without an answer: %w", io.ErrUnexpectedEOF)

// UpgradeError says that the peer answered HTTP, but not with an upgrade.
type UpgradeError struct {
	Status int  // of the answer
	Token  bool // one was sent
}

func (e *UpgradeError) Error() string {
	return fmt.Sprintf("websocket handshake: the peer answered %d %s instead of an upgrade", e.Status, http.StatusText(e.Status))
}

// WebSocket is the layer that speaks RFC 6455: an HTTP/1.1 upgrade, then binary messages.
type WebSocket struct {
	// Host is the Host header that the client sends. An edge takes no other; empty there: it takes all.
	Host string
	// Path is the request target, with a query if it has one, to the letter.
	Path string
	// Token gives the token that the client sends (RFC 6750, section 2.1), for each connection anew: printable
	// ASCII without blanks. Nil sends none. An error of it ends the handshake. An edge checks with Match.
	Token func(ctx context.Context) (string, error)
	// Header gives what else the client's request says, for each connection anew: no field that the upgrade or
	// Token is made of, at most 64 KiB. Nil adds nothing. An error of it ends the handshake.
	Header func(ctx context.Context) (http.Header, error)
	// Wait asks the edge not to dial before Take says so; Waiting tells whether it has agreed.
	Wait bool
	// Reuse asks the edge to wait for Take again whenever a tunnel has ended well; Forwarder.Keep gets the connection then.
	Reuse bool
	// Target is where the client wants to go, host:port; empty is the edge's own target. AwaitOpen tells whether the edge has agreed.
	// With Wait it is what Take means by an empty target.
	Target string
	// Targets lets the clients of an edge choose their target: its Forwarder.Dial goes to Info.Target, if it may, or is
	// NewEcho where that is TargetEcho. Otherwise who chooses one gets none.
	Targets bool
	// Mask is how the client masks.
	Mask Mask
	// Ping is the silence after which a Ping is sent. Zero means 30 seconds; negative means never.
	Ping time.Duration
	// HeaderSize is how many bytes an edge takes of the head of a request, and a few KiB more that net/http
	// reads ahead. Zero means 64 KiB.
	HeaderSize int
	// IdleTimeout is how long an edge keeps a connection on which no request is under way, until the head of
	// the next is there; zero means 60 seconds.
	IdleTimeout time.Duration
	// BodyTimeout is how long a visitor of Site may send nothing of a body, or take nothing of an answer,
	// that is waited for; zero means 60 seconds.
	BodyTimeout time.Duration
	// Site answers whatever does not ask for the tunnel. Nil answers 404. Its requests have the address of
	// Info.Client, and the state of Info.TLS. Where it hijacks a connection, it returns when that has ended.
	Site http.Handler
	// Match decides for the edge, in place of Host and Path, which of the well-formed upgrade requests open
	// the tunnel, and may note Info.Path. It may be asked twice about a request that it refuses. Nil compares Host and Path.
	//
	// It may take its time where the request's context ends when the client leaves. If that never ends, nobody looks at the
	// client: a refusal then is asked about again, with one that does.
	Match func(r *http.Request, info *Info) bool
}

func (w *WebSocket) pingInterval() time.Duration {
	if w.Ping == 0 {
		return 30 * time.Second
	}
	return w.Ping
}

func (w *WebSocket) headerSize() int            { return cmp.Or(w.HeaderSize, maxHead) }
func (w *WebSocket) idleTimeout() time.Duration { return orDefault(w.IdleTimeout, siteTimeout) }
func (w *WebSocket) bodyTimeout() time.Duration { return orDefault(w.BodyTimeout, siteTimeout) }

// Client asks the peer for an upgrade. Nothing is sent before its answer has come.
func (w *WebSocket) Client(ctx context.Context, c Conn) (Conn, error) {
	header, err := w.header(ctx)
	if err != nil {
		return nil, err
	}
	c = asSocket(c)
	wake := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
	defer wake()
	head := &headReader{Conn: c}
	peer := peerUnknown
	waits, opens, again := false, false, false
	dialer := ws.Dialer{
		Host: w.Host,
		// All of the head is one write.
		WriteBufferSize: ws.DefaultClientWriteBufferSize + len(w.Path) + len(w.Host) + len(header),
		Header:          ws.HandshakeHeaderString(header),
		OnHeader: func(key, value []byte) error {
			if string(key) == featureHeader {
				tokens := []string{string(value)}
				if hasToken(tokens, featureEnd) {
					peer = peerRaimon
				}
				waits = waits || w.Wait && hasToken(tokens, featureWait)
				opens = opens || w.Target != "" && hasToken(tokens, featureOpen)
				again = again || w.Reuse && hasToken(tokens, featureAgain)
			}
			return nil
		},
	}
	pending, _, err := dialer.Upgrade(head, requestURL(w.Path))
	if !wake() {
		return nil, fmt.Errorf("websocket handshake: %w", context.Cause(ctx))
	}
	if err != nil {
		err = head.explain(err)
		if refused, ok := errors.AsType[*UpgradeError](err); ok {
			refused.Token = w.Token != nil
		}
		return nil, err
	}
	var rest []byte
	if pending != nil {
		rest = make([]byte, pending.Buffered())
		io.ReadFull(pending, rest)
		ws.PutReader(pending)
	}
	if peer == peerUnknown && head.isKaminari() {
		peer = peerHalfCloses
	}
	f := newFrames(c, true, w, peer, rest)
	f.wait = waits && peer == peerRaimon
	f.open = f.wait || opens && peer == peerRaimon
	f.again = again && peer == peerRaimon
	f.unheard = w.Target != "" && !f.open
	return f, nil
}

// header is what the client says beyond RFC 6455.
func (w *WebSocket) header(ctx context.Context) (string, error) {
	header := featureHeader + ": " + featureEnd
	if w.Wait {
		header += ", " + featureWait
	}
	if w.Reuse {
		header += ", " + featureAgain
	}
	header += "\r\n"
	if w.Target != "" {
		if !IsTarget(w.Target) {
			return "", fmt.Errorf("websocket handshake: target %q: %w", w.Target, errTargetForm)
		}
		header += targetHeader + ": " + w.Target + "\r\n"
	}
	if w.Token != nil {
		token, err := w.Token(ctx)
		if err != nil {
			return "", fmt.Errorf("websocket handshake: token: %w", err)
		}
		if !IsToken(token) {
			return "", fmt.Errorf("websocket handshake: token: %w", ErrToken)
		}
		header += "Authorization: Bearer " + token + "\r\n"
	}
	if w.Header == nil {
		return header, nil
	}
	more, err := w.Header(ctx)
	if err != nil {
		return "", fmt.Errorf("websocket handshake: %w", err)
	}
	lines, err := headerLines(more)
	if err != nil {
		return "", fmt.Errorf("websocket handshake: %w", err)
	}
	return header + lines, nil
}

// headerLines refuses what would end a line and begin another. No value is in its error.
func headerLines(h http.Header) (string, error) {
	for name, values := range h {
		if !httpguts.ValidHeaderFieldName(name) {
			return "", fmt.Errorf("header %q: that is no name", name)
		}
		if slices.ContainsFunc(values, func(v string) bool { return !httpguts.ValidHeaderFieldValue(v) }) {
			return "", fmt.Errorf("header %s: its value has a control character", name)
		}
	}
	var lines strings.Builder
	if err := h.Write(&lines); err != nil {
		return "", err
	}
	if lines.Len() > maxHead {
		return "", errors.New("header: it has more than 64 KiB")
	}
	return lines.String(), nil
}

// maxToken is how many bytes a token may have.
const maxToken = 4 << 10

// ErrToken says that a token is none that a header can carry. The token is not in it.
var ErrToken = errors.New("it is empty, longer than 4096 bytes, or holds a blank or anything but printable ASCII")

// IsToken tells whether a header can carry token.
func IsToken(token string) bool {
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return false
		}
	}
	return 0 < len(token) && len(token) <= maxToken
}

// requestURL makes target come out on the request line to the letter.
func requestURL(target string) *url.URL {
	path, query, found := strings.Cut(target, "?")
	u := &url.URL{Scheme: "ws", Opaque: path, RawQuery: query, ForceQuery: found && query == ""}
	if strings.HasPrefix(path, "//") { // would be taken for an authority
		u.Opaque, u.Path, u.RawPath = "", path, path
	}
	return u
}

// headReader bounds and remembers the beginning of an HTTP answer.
type headReader struct {
	Conn
	first []byte
	n     int
}

// kaminariHead is how lightws, which kaminari is made of, begins its answer.
const kaminariHead = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: "

func (h *headReader) Read(p []byte) (int, error) {
	if h.n > maxHead {
		return 0, errors.New("the answer's head is longer than 64 KiB")
	}
	n, err := h.Conn.Read(p)
	if len(h.first) < len(kaminariHead) {
		h.first = append(h.first, p[:min(n, len(kaminariHead)-len(h.first))]...)
	}
	h.n += n
	return n, err
}

func (h *headReader) isKaminari() bool { return string(h.first) == kaminariHead }

// explain says in the user's words why an upgrade failed.
func (h *headReader) explain(err error) error {
	var status ws.StatusError
	switch {
	case errors.As(err, &status):
		return &UpgradeError{Status: int(status)}
	case errors.Is(err, io.EOF) && h.n == 0:
		return fmt.Errorf("websocket handshake: %w", ErrNoAnswer)
	case h.n > 0 && !strings.HasPrefix(string(h.first), "HTTP/"):
		return errors.New("websocket handshake: the peer does not answer in HTTP (one side with tls, the other without?)")
	}
	return fmt.Errorf("websocket handshake: %w", err)
}

// Server serves HTTP on c until a request asks for the tunnel. Every other request is answered as by
// any web server; if none asks for the tunnel, the error is ErrNoTunnel.
func (w *WebSocket) Server(ctx context.Context, c Conn, info *Info) (Conn, error) {
	c, head := detach(c)
	c = asSocket(c)
	wake := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
	defer wake()
	if len(head) == 0 {
		var err error
		if head, err = w.firstBytes(ctx, c, info); err != nil {
			return nil, err
		}
	}
	up, err := w.plainUpgrade(head, info), error(nil)
	if up == nil {
		if up, err = w.serveHTTP(ctx, c, head, info); err != nil {
			return nil, err
		}
	}
	_, err = io.WriteString(c, up.answer)
	if !wake() {
		return nil, fmt.Errorf("websocket handshake: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("websocket handshake: %w", err)
	}
	if w.Match == nil {
		info.Path = w.Path
	}
	f := newFrames(c, false, w, up.peer, up.pending)
	f.wait, f.open, f.again, f.chooses = up.waits, up.waits || up.target != "", up.again, w.Targets
	if up.target != "" && !IsTarget(up.target) {
		f.violation(fmt.Errorf("target %.40q: %w", up.target, errTargetForm))
		return nil, f.readErr
	}
	info.Target = up.target
	return f, nil
}

// firstBytes waits for a visitor to speak, unless nothing new is to begin, or ctx ends, which wakes it.
func (w *WebSocket) firstBytes(ctx context.Context, c Conn, info *Info) ([]byte, error) {
	leave := func() bool { return true }
	if info.drain != nil {
		end := info.drain.late
		if info.TLS != nil {
			end = info.drain.later
		}
		leave = context.AfterFunc(end, func() { c.SetReadDeadline(past) })
	}
	if info.limit == nil {
		c.SetReadDeadline(time.Now().Add(w.idleTimeout()))
		defer c.SetReadDeadline(time.Time{})
	}
	b, err := readBuffer(c, probeSize)
	defer b.free()
	isDrained := !leave()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("websocket handshake: %w", context.Cause(ctx))
	case isDrained:
		return nil, ErrNoTunnel
	case b == nil:
		if err == io.EOF {
			c.CloseWrite() // over TLS an end without a close_notify looks cut off
		}
		return nil, ErrNoTunnel
	}
	info.startLimit()
	return bytes.Clone(b.bytes()), nil
}
