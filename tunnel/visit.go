package tunnel

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// siteTimeout is how long a visitor's connection is kept between requests, and one that stalls.
	siteTimeout = time.Minute
	// siteStreams is how many requests of a visitor are answered at a time over HTTP/2.
	siteStreams = 100
	// maxRequests is how many requests a connection may bring, as with other web servers: who has more to say shakes
	// hands anew, and meets the limits on that. Over HTTP/2 a request and its reset cost the client next to nothing.
	maxRequests = 1000
)

// serveHTTP leaves c, of which head has been read, to net/http until a request asks for the tunnel.
func (w *WebSocket) serveHTTP(ctx context.Context, c Conn, head []byte, info *Info) (*upgrade, error) {
	visit := &visit{layer: w, info: info, ended: make(chan struct{})}
	ahead := &readAhead{Conn: c, pending: head}
	visit.conn = &borrowed{Conn: ahead, client: info.Client, patience: w.bodyTimeout()}
	var protocols http.Protocols
	// Told by the first bytes, with TLS as well. Who has agreed on h2 may speak HTTP/1.1 all the same, and is hung up
	// on where it speaks neither (RFC 9113, section 3.4).
	protocols.SetHTTP1(!agreedOnHTTP2(info) || beginsRequest(head))
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:           visit,
		ReadHeaderTimeout: info.headLimit(w.idleTimeout()),
		MaxHeaderBytes:    w.headerSize(),
		Protocols:         &protocols,
		ErrorLog:          log.New(io.Discard, "", 0),
		ConnState:         visit.state,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: siteStreams, WriteByteTimeout: w.bodyTimeout()},
	}
	hangUp := func() {
		server.Close()
		visit.conn.Close() // which server does not know yet if it has only just begun
	}
	defer context.AfterFunc(ctx, hangUp)()
	// IdleTimeout of net/http would keep a connection over HTTP/2 in memory for as long, if it ends with streams open.
	visit.idle = time.AfterFunc(w.idleTimeout(), func() { visit.conn.Close() })
	visit.idle.Stop()
	defer visit.idle.Stop()
	if info.drain != nil {
		defer context.AfterFunc(info.drain.ctx, func() {
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
		c.SetWriteDeadline(time.Now().Add(time.Second)) // net/http has left one that has passed
		c.CloseWrite()                                  // over TLS an answer without a close_notify looks cut off
		return nil, ErrNoTunnel
	}
	visit.tunnel.pending = append(visit.tunnel.pending, ahead.pending...)
	return visit.tunnel, nil
}

func agreedOnHTTP2(info *Info) bool { return info.TLS != nil && info.TLS.NegotiatedProtocol == "h2" }

// beginsRequest tells whether head may be the beginning of an HTTP/1 request: a method that is a token, and a version
// where the first line is whole (RFC 9112, section 3).
func beginsRequest(head []byte) bool {
	line, _, whole := bytes.Cut(head, []byte("\n"))
	method, rest, _ := bytes.Cut(line, []byte(" "))
	if len(method) == 0 || !consistsOf(method, "!#$%&'*+-.^_`|~") {
		return false
	}
	if !whole {
		return true
	}
	version := rest[bytes.LastIndexByte(rest, ' ')+1:]
	major, _, ok := http.ParseHTTPVersion(string(bytes.TrimSuffix(version, []byte("\r"))))
	return ok && major == 1
}

// visit is one connection while it belongs to net/http.
type visit struct {
	layer    *WebSocket
	info     *Info
	conn     *borrowed
	tunnel   *upgrade
	busy     atomic.Bool // a request is being read or answered
	idle     *time.Timer // ends the connection where no request comes
	hijacked atomic.Bool // for the tunnel, or by the site
	requests atomic.Int64
	once     sync.Once
	ended    chan struct{} // closed when net/http, and the site, are done with the connection
}

// state keeps the time limit: it runs while a visitor sends a request, not between requests.
func (v *visit) state(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateActive:
		v.busy.Store(true)
		v.idle.Stop()
		v.info.startLimit()
	case http.StateIdle:
		v.busy.Store(false)
		v.info.stopLimit()
		v.idle.Reset(v.layer.idleTimeout())
	case http.StateHijacked:
		v.hijacked.Store(true)
	case http.StateClosed:
		v.once.Do(func() { close(v.ended) })
	}
}

func (v *visit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if v.hijacked.Load() { // net/http says no more about it
			v.once.Do(func() { close(v.ended) })
		}
	}()
	r.TLS = v.info.TLS
	if !IsUpgrade(r) || !v.layer.matches(r, v.info) {
		v.info.stopLimit()
		if v.requests.Add(1) >= maxRequests {
			w.Header().Set("Connection", "close") // over HTTP/2 a GOAWAY
		}
		site := v.layer.Site
		if site == nil {
			site = http.HandlerFunc(http.NotFound)
		}
		(&pace{limit: v.layer.bodyTimeout()}).serve(site, w, r.WithContext(context.WithValue(r.Context(), infoKey{}, v.info)), v.hijacked.Load)
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
}

type infoKey struct{}

// InfoOf returns the Info of the connection of r, which WebSocket.Site was given; nil for other requests.
func InfoOf(r *http.Request) *Info {
	info, _ := r.Context().Value(infoKey{}).(*Info)
	return info
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
	client   net.Addr
	patience time.Duration // with a write
	mu       sync.Mutex
	closed   bool
	timed    bool // net/http, or a handler, has set a deadline for writes
}

// Write gives the peer some time to take p, unless there is a deadline already.
func (b *borrowed) Write(p []byte) (int, error) {
	b.mu.Lock()
	if !b.closed && !b.timed {
		b.Conn.SetWriteDeadline(time.Now().Add(b.patience))
	}
	b.mu.Unlock()
	return b.Conn.Write(p)
}

// RemoteAddr is the address of the client, of which a proxy in front of us may have told.
func (b *borrowed) RemoteAddr() net.Addr {
	if b.client == nil {
		return b.Conn.RemoteAddr()
	}
	return b.client
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

func (b *borrowed) deadline(t time.Time, set func(time.Time) error, isWrite bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return net.ErrClosed
	}
	if isWrite {
		b.timed = !t.IsZero()
	}
	return set(t)
}

func (b *borrowed) SetDeadline(t time.Time) error { return b.deadline(t, b.Conn.SetDeadline, true) }
func (b *borrowed) SetReadDeadline(t time.Time) error {
	return b.deadline(t, b.Conn.SetReadDeadline, false)
}
func (b *borrowed) SetWriteDeadline(t time.Time) error {
	return b.deadline(t, b.Conn.SetWriteDeadline, true)
}
