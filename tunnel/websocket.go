package tunnel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
)

const (
	// featureHeader carries what two raimons agree on beyond RFC 6455; docs/protocol.md describes it.
	featureHeader = "Raimon"
	// featureEnd offers and accepts the empty text message as the end of one direction.
	featureEnd = "end"

	// maxHead bounds what an HTTP head may bring.
	maxHead = 64 << 10
	// siteIdle is how long a visitor's connection is kept between requests.
	siteIdle = time.Minute
)

// ErrNoTunnel says that an HTTP connection ended without having become a tunnel.
var ErrNoTunnel = errors.New("http connection ended without a tunnel")

// ErrNoAnswer says that the peer closed the connection instead of answering an upgrade.
var ErrNoAnswer = fmt.Errorf("the peer closed the connection without an answer: %w", io.ErrUnexpectedEOF)

// UpgradeError says that the peer answered HTTP, but not with an upgrade.
type UpgradeError struct {
	Status int // of the answer
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
	// Mask is how the client masks.
	Mask Mask
	// Ping is the silence after which a Ping is sent. Zero means 30 seconds; negative means never.
	Ping time.Duration
	// Site answers whatever does not ask for the tunnel. Nil answers 404.
	Site http.Handler
}

func (w *WebSocket) pingInterval() time.Duration {
	if w.Ping == 0 {
		return 30 * time.Second
	}
	return w.Ping
}

// Client asks the peer for an upgrade. Nothing is sent before its answer has come.
func (w *WebSocket) Client(ctx context.Context, c Conn) (Conn, error) {
	c = asSocket(c)
	wake := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
	defer wake()
	head := &headReader{Conn: c}
	peer := peerUnknown
	dialer := ws.Dialer{
		Host: w.Host,
		// All of the head is one write.
		WriteBufferSize: ws.DefaultClientWriteBufferSize + len(w.Path) + len(w.Host),
		Header:          ws.HandshakeHeaderString(featureHeader + ": " + featureEnd + "\r\n"),
		OnHeader: func(key, value []byte) error {
			if string(key) == featureHeader && hasToken([]string{string(value)}, featureEnd) {
				peer = peerRaimon
			}
			return nil
		},
	}
	pending, _, err := dialer.Upgrade(head, requestURL(w.Path))
	if !wake() {
		return nil, fmt.Errorf("websocket handshake: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, head.explain(err)
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
	return newFrames(c, true, w, peer, rest), nil
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
	c = asSocket(c)
	head, err := w.firstBytes(ctx, c, info)
	if err != nil {
		return nil, err
	}
	up := w.plainUpgrade(head)
	if up == nil {
		if up, err = w.serveHTTP(ctx, c, head, info); err != nil {
			return nil, err
		}
	}
	wake := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
	_, err = io.WriteString(c, up.answer)
	if !wake() {
		return nil, fmt.Errorf("websocket handshake: %w", context.Cause(ctx))
	}
	if err != nil {
		return nil, fmt.Errorf("websocket handshake: %w", err)
	}
	info.Path = w.Path
	return newFrames(c, false, w, up.peer, up.pending), nil
}

// firstBytes waits for a visitor to speak, unless nothing new is to begin.
func (w *WebSocket) firstBytes(ctx context.Context, c Conn, info *Info) ([]byte, error) {
	begun, stop := info.untilDraining(ctx)
	defer stop()
	wake := context.AfterFunc(begun, func() { c.SetDeadline(past) })
	if info.limit == nil {
		c.SetReadDeadline(time.Now().Add(siteIdle))
		defer c.SetReadDeadline(time.Time{})
	}
	b, err := readBuffer(c, probeSize)
	defer b.free()
	switch {
	case !wake() && ctx.Err() != nil:
		return nil, fmt.Errorf("websocket handshake: %w", context.Cause(ctx))
	case begun.Err() != nil:
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

// serveHTTP leaves c, of which head has been read, to net/http until a request asks for the tunnel.
func (w *WebSocket) serveHTTP(ctx context.Context, c Conn, head []byte, info *Info) (*upgrade, error) {
	visit := &visit{layer: w, info: info, ended: make(chan struct{})}
	ahead := &readAhead{Conn: c, pending: head}
	visit.conn = &borrowed{Conn: ahead}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true) // told by its first bytes, with TLS as well
	server := &http.Server{
		Handler:           visit,
		ReadHeaderTimeout: info.headLimit(),
		IdleTimeout:       siteIdle,
		MaxHeaderBytes:    maxHead,
		Protocols:         &protocols,
		ErrorLog:          log.New(io.Discard, "", 0),
		ConnState:         visit.state,
	}
	if w.Site == nil {
		// Whoever sends a body that nobody reads, or does not read the answer, is not kept for ever.
		server.ReadTimeout = max(siteIdle, server.ReadHeaderTimeout)
		server.WriteTimeout = siteIdle
		server.HTTP2 = &http.HTTP2Config{WriteByteTimeout: siteIdle}
	}
	hangUp := func() {
		server.Close()
		visit.conn.Close() // which server does not know yet if it has only just begun
	}
	defer context.AfterFunc(ctx, hangUp)()
	if info.draining != nil {
		defer context.AfterFunc(info.draining, func() {
			server.SetKeepAlivesEnabled(false)
			if !visit.busy.Load() {
				hangUp()
			}
		})()
	}
	visitors := &visitListener{conn: visit.conn}
	server.Serve(visitors) // returns at once; the connection has its goroutine
	if visitors.conn != nil {
		return nil, ErrNoTunnel // hung up before it began
	}
	<-visit.ended

	if visit.tunnel == nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("websocket handshake: %w", context.Cause(ctx))
		}
		c.CloseWrite() // over TLS an answer without a close_notify looks cut off
		return nil, ErrNoTunnel
	}
	visit.tunnel.pending = append(visit.tunnel.pending, ahead.pending...)
	return visit.tunnel, nil
}

// visit is one connection while it belongs to net/http.
type visit struct {
	layer  *WebSocket
	info   *Info
	conn   *borrowed
	tunnel *upgrade
	busy   atomic.Bool // a request is being read or answered
	once   sync.Once
	ended  chan struct{} // closed when net/http is done with the connection
}

// state keeps the time limit: it runs while a visitor sends a request, not between requests.
func (v *visit) state(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateActive:
		v.busy.Store(true)
		v.info.startLimit()
	case http.StateIdle:
		v.busy.Store(false)
		v.info.stopLimit()
	case http.StateClosed:
		v.once.Do(func() { close(v.ended) })
	}
}

func (v *visit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !v.layer.wants(r) {
		v.info.stopLimit()
		if v.layer.Site != nil {
			v.layer.Site.ServeHTTP(w, r)
		} else {
			http.NotFound(w, r)
		}
		return
	}
	up := newUpgrade(r)
	_, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	// What came together with the request belongs to the stream.
	up.pending = make([]byte, rw.Reader.Buffered())
	io.ReadFull(rw.Reader, up.pending)
	v.tunnel = up
	v.once.Do(func() { close(v.ended) })
}

// visitListener hands net/http its one connection.
type visitListener struct{ conn *borrowed }

func (l *visitListener) Accept() (net.Conn, error) {
	if l.conn == nil {
		return nil, io.EOF
	}
	c := l.conn
	l.conn = nil
	return c, nil
}

func (l *visitListener) Close() error   { return nil }
func (l *visitListener) Addr() net.Addr { return &net.TCPAddr{} }

// borrowed is a connection that net/http may use but not close. It hides TLS, so that net/http
// looks at the first bytes to tell HTTP/2 from HTTP/1.1.
type borrowed struct {
	Conn
	mu     sync.Mutex
	closed bool
}

// Close wakes whoever waits on the connection, for good.
func (b *borrowed) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return net.ErrClosed
	}
	b.closed = true
	return b.Conn.SetDeadline(past)
}

func (b *borrowed) deadline(set func(time.Time) error, t time.Time) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return net.ErrClosed
	}
	return set(t)
}

func (b *borrowed) SetDeadline(t time.Time) error      { return b.deadline(b.Conn.SetDeadline, t) }
func (b *borrowed) SetReadDeadline(t time.Time) error  { return b.deadline(b.Conn.SetReadDeadline, t) }
func (b *borrowed) SetWriteDeadline(t time.Time) error { return b.deadline(b.Conn.SetWriteDeadline, t) }
