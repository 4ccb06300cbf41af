// Package tunnel carries TCP connections over tcp, tls, ws or wss, in either direction.
//
// Nothing here closes a connection it was given: whoever accepted or dialed it does.
package tunnel

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"
)

// Conn is a stream whose two directions end one at a time.
//
// CloseWrite says that nothing more will be sent; the peer's Read then returns io.EOF once it has
// everything. Read returns io.EOF only for such an end: a stream that was cut gives another error.
// *net.TCPConn, *net.UnixConn and *tls.Conn fit as they are.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Info is what is known of an accepted connection. Layers fill it in on the way up.
type Info struct {
	// Client is the address of the peer that connected.
	Client net.Addr
	// ServerName is the name the client asked for in its ClientHello (RFC 6066, section 3);
	// empty without TLS or without SNI.
	ServerName string
	// Path is the request target of the WebSocket upgrade; empty without WebSocket.
	Path string
	// Target is where the client asked to be connected to, host:port with the name unresolved; empty
	// where that is settled otherwise.
	Target string
	// TLS is the state after the TLS handshake; nil without TLS, and once the tunnel is open.
	TLS *tls.ConnectionState
	// Route is what the accepting side has chosen for the connection, for Forwarder.Dial; nil is nothing.
	Route any
	// Sent is how many bytes of the client Forwarder.Open has handed on, before the rest followed.
	Sent int64
	// Attrs go into the log line of the connection, as pairs or slog.Attr.
	Attrs []any

	limit   *time.Timer   // ends handshakes and dial; nil: no limit
	timeout time.Duration // what limit is set to
	drain   *drain        // nil: there is always something new to begin
}

// UntilDraining returns ctx for what is not worth waiting for when nothing new is to begin.
func (i *Info) UntilDraining(ctx context.Context) (context.Context, func()) {
	if i.drain == nil {
		return ctx, func() {}
	}
	return until(ctx, i.drain.ctx)
}

// WhileShakingHands is UntilDraining for a handshake of which the client may have said something already: it
// has handshakeGrace more.
func (i *Info) WhileShakingHands(ctx context.Context) (context.Context, func()) {
	if i.drain == nil {
		return ctx, func() {}
	}
	return until(ctx, i.drain.late)
}

// until returns ctx, which ends with ErrDrained when end does.
func until(ctx, end context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(end, func() { cancel(ErrDrained) })
	return ctx, func() {
		unhook()
		cancel(nil)
	}
}

// drain is when nothing new is to begin. Who is shaking hands then may still come to an end of it, one step after the other.
type drain struct {
	ctx   context.Context // ends then
	late  context.Context // ends handshakeGrace later
	later context.Context // ends once more so much later: who has shaken hands in TLS does not expect to be turned away
}

// handshakeGrace is enough for what the client of a handshake has on the way.
const handshakeGrace = time.Second

// lastDrain is of the context of the last session: all that a program has are of the same.
var lastDrain atomic.Pointer[drain]

// drainFor is that of all sessions with ctx; nil where that never ends.
func drainFor(ctx context.Context) *drain {
	if ctx == nil || ctx.Done() == nil {
		return nil
	}
	d := lastDrain.Load()
	if d == nil || d.ctx != ctx {
		late, endLate := context.WithCancel(context.Background())
		later, endLater := context.WithCancel(context.Background())
		context.AfterFunc(ctx, func() {
			time.AfterFunc(handshakeGrace, endLate)
			time.AfterFunc(2*handshakeGrace, endLater)
		})
		d = &drain{ctx, late, later}
		lastDrain.Store(d)
	}
	return d
}

// Patience returns ctx for a wait in the middle of the handshakes. It has as long as they have to itself, and ends with
// ErrTimeout; with ErrDrained when nothing new is to begin. Their own limit stands still until stop, and then begins anew.
func (i *Info) Patience(ctx context.Context) (waiting context.Context, stop func()) {
	i.stopLimit()
	waiting, unhook := i.UntilDraining(ctx)
	release := func() {}
	if i.limit != nil {
		waiting, release = context.WithTimeoutCause(waiting, i.timeout, ErrTimeout)
	}
	return waiting, func() {
		release()
		unhook()
		i.startLimit()
	}
}

// startLimit gives the handshake and the dial that follows it their time, from now on. A later
// request of an HTTP connection begins anew.
func (i *Info) startLimit() {
	if i.limit != nil {
		i.limit.Reset(i.timeout)
	}
}

// headLimit is for the head of a later request, and otherwise where there is no limit. A first one is ended by the limit
// itself, a little sooner.
func (i *Info) headLimit(otherwise time.Duration) time.Duration {
	if i.limit == nil {
		return otherwise
	}
	return i.timeout + time.Second
}

// stopLimit suspends the time limit.
func (i *Info) stopLimit() {
	if i.limit != nil {
		i.limit.Stop()
	}
}

// Layer turns one connection into another, as tls.Client and tls.Server do.
//
// Both methods give up when ctx ends. They never close what they were given, but what they return
// owns it: closing the result closes the connection below.
type Layer interface {
	Client(ctx context.Context, c Conn) (Conn, error)
	Server(ctx context.Context, c Conn, info *Info) (Conn, error)
}

// Transport is a list of layers, the one nearest to the network first; it is itself a Layer.
// The empty Transport is plain tcp.
type Transport []Layer

// String names the transport: tcp, ws, tls or wss.
func (t Transport) String() string {
	name := ""
	for _, layer := range t {
		switch layer.(type) {
		case *TLS:
			name += "tls"
		case *WebSocket:
			name += "ws"
		}
	}
	switch name {
	case "":
		return "tcp"
	case "tlsws":
		return "wss"
	}
	return name
}

// Client applies the dialing side of every layer in order.
func (t Transport) Client(ctx context.Context, c Conn) (Conn, error) {
	for _, layer := range t {
		upper, err := layer.Client(ctx, c)
		if err != nil {
			release(c)
			return nil, err
		}
		c = upper
	}
	return c, nil
}

// Server applies the accepting side of every layer in order.
func (t Transport) Server(ctx context.Context, c Conn, info *Info) (Conn, error) {
	for _, layer := range t {
		upper, err := layer.Server(ctx, c, info)
		if err != nil {
			release(c)
			return nil, err
		}
		c = upper
	}
	return c, nil
}
