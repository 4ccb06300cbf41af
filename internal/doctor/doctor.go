// Package doctor looks at everything between this machine and the target of a tunnel, step by step, and says what to do
// where something is wrong.
//
// Steps stand on those before them: after one that has failed, those that need it are left out.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"raimon/internal/client"
	"raimon/internal/options"
	"raimon/tunnel"
)

// Doctor looks at one tunnel.
type Doctor struct {
	// Tunnel is looked at with connections of the kind that it uses. Its Dialer does without FastOpen.
	Tunnel *client.Tunnel
	// Direct is its Dialer without a proxy.
	Direct *tunnel.Dialer
	// Options are those that Tunnel was made of.
	Options *options.Options
	// Getenv tells which variable of the environment names a proxy.
	Getenv func(string) string
	// Hint says what a user can do about an error; empty: nothing is known.
	Hint func(error) string
	// Report is told of each step when it is done.
	Report func(Step)
}

// examination is what is known so far.
type examination struct {
	*Doctor
	name string // host:port of the edge, or the path of its socket
	unix bool
	via  *url.URL // the proxy; nil: none

	tls *tunnel.TLS       // nil: the tunnel has none
	ws  *tunnel.WebSocket // nil: the tunnel has none

	server string // what the edge's web server calls itself; printable, may be empty
	failed bool
	// opening is how long the edge took to reach its target when it was told to; zero: it was not.
	opening time.Duration
}

// Run looks at everything that it can get to, and tells whether nothing has failed. When ctx ends it returns soon.
// Each step has as long as Tunnel.Timeout.
func (d *Doctor) Run(ctx context.Context) (healthy bool) {
	e := &examination{Doctor: d}
	for _, layer := range d.Tunnel.Transport {
		switch layer := layer.(type) {
		case *tunnel.TLS:
			e.tls = layer
		case *tunnel.WebSocket:
			e.ws = layer
		}
	}
	e.all(ctx)
	return !e.failed
}

// all goes from here to the target.
func (e *examination) all(ctx context.Context) {
	if !e.lookAtOptions() || !e.lookAtProxy() || !e.lookAtNetwork(ctx) {
		return
	}
	first := e.lookAtEdge(ctx)
	if first == nil {
		return
	}
	greeting := e.lookAtClock(ctx, first)
	first.end(ctx)
	second := e.lookAtResumption(ctx)
	if second == nil {
		return
	}
	defer second.close()
	if e.ws != nil && !e.lookAtUpgrade(ctx, second) {
		return
	}
	if !tunnel.Waiting(second.conn) {
		e.withoutWaiting(ctx, second, greeting)
		return
	}
	e.lookAtEcho(ctx, second)
	second.end(ctx) // it counts for the limits of the edge
	e.lookAtTarget(ctx)
}

// withoutWaiting is what there is to look at where the edge has dialed its target already, which has said greeting in tcp and tls.
func (e *examination) withoutWaiting(ctx context.Context, l *line, greeting greeting) {
	if e.Options.Socks {
		e.fail("target", tunnel.ErrNoTargets, 0)
		return
	}
	if e.ws != nil {
		greeting = listen(ctx, l)
	}
	l.end(ctx)
	e.ok("echo", "left out: it takes ws or wss, and a raimons that lets its clients wait", 0)
	if e.lookAtGreeting(greeting) {
		e.sum(l.took)
	}
}

// lookAtOptions tells of options that are ignored.
func (e *examination) lookAtOptions() bool {
	network, name, err := tunnel.ParseAddress(e.Tunnel.Remote)
	if err != nil {
		return e.fail("options", err, 0)
	}
	e.name, e.unix = name, network == "unix"
	for _, warning := range e.Options.Warnings {
		e.warn("options", warning, "correct the option, or leave it away: it has no effect as it is", 0)
	}
	return e.ok("options", e.Tunnel.Transport.String()+" to "+e.Tunnel.Remote, 0)
}

// open makes a connection to the edge, as far as TLS where there is that. Its error is a *stepError.
func (e *examination) open(ctx context.Context) (*line, error) {
	begin := time.Now()
	var bare tunnel.Conn
	err := e.limited(ctx, func(ctx context.Context) (err error) {
		bare, err = e.Tunnel.Dialer.Dial(ctx, e.Tunnel.Remote)
		return err
	})
	if err != nil {
		return nil, &stepError{e.reaching(), err, time.Since(begin)}
	}
	l := &line{conn: bare}
	l.took = time.Since(begin)
	if e.tls == nil {
		return l, nil
	}
	begin = time.Now()
	err = e.limited(ctx, func(ctx context.Context) (err error) {
		l.conn, err = e.tls.Client(ctx, bare)
		return err
	})
	if err != nil {
		bare.Close()
		return nil, &stepError{"tls", e.Tunnel.Dialer.Through(e.Tunnel.Remote, err), time.Since(begin)}
	}
	l.handshake = time.Since(begin)
	l.took += l.handshake
	return l, nil
}

// reaching is the step in which a connection comes about.
func (e *examination) reaching() string {
	if e.via != nil {
		return "connect"
	}
	return "tcp"
}

// line is a connection to the edge.
type line struct {
	conn      tunnel.Conn
	took      time.Duration // to make it, as far as it has got
	handshake time.Duration // of TLS, in took
}

// patience is for an answer that the other side has no reason to think about: half a second more than it took to get there.
func (l *line) patience() time.Duration { return 500*time.Millisecond + min(l.took, 2*time.Second) }

// close may be called twice.
func (l *line) close() { l.conn.Close() }

// end is close with good manners: who just hangs up is a failure in the log of the edge. Where the other side goes on
// nevertheless, the connection is cut, as by a program that is gone.
func (l *line) end(ctx context.Context) {
	defer l.close()
	err := talk(ctx, l.conn, l.patience(), func() error {
		if err := l.conn.CloseWrite(); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, l.conn)
		return err
	})
	if bare, ok := tunnel.Bottom(l.conn).(*net.TCPConn); ok && err != nil {
		bare.SetLinger(0)
		bare.Close()
	}
}

// stepError says which step has failed.
type stepError struct {
	step string
	err  error
	took time.Duration
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// limited gives do as long as a step may take. Its error is why ctx has ended, if that is what it is.
func (e *examination) limited(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, e.Tunnel.Timeout, tunnel.ErrTimeout)
	defer cancel()
	err := do(ctx)
	if err != nil && ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return err
}

// talk gives do, which reads and writes c, that long at most. Afterwards c has no deadline.
func talk(ctx context.Context, c net.Conn, limit time.Duration, do func() error) error {
	c.SetDeadline(time.Now().Add(limit))
	interrupt := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	err := do()
	if !interrupt() {
		return context.Cause(ctx)
	}
	c.SetDeadline(time.Time{})
	return err
}
