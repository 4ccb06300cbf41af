package client

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"raimon/internal/netwatch"
	"raimon/tunnel"
)

// link is a Tunnel at work: what is known of its edge, and connections to it.
type link struct {
	*Tunnel
	client    *Client
	forwarder *tunnel.Forwarder
	outage    outage
	pool      pool
	stats     stats
	proof     proof
	silence   silence
	knocker   *tunnel.Dialer // of attempts that only look whether the edge can be reached

	mu   sync.Mutex
	halt context.CancelFunc // ends what keeps the link; nil: it has not begun

	heir atomic.Pointer[link] // who carries what comes to its addresses now; nil: itself, or nobody
}

func newLink(c *Client, t *Tunnel) *link {
	l := &link{Tunnel: t, client: c}
	l.outage.link = l
	l.pool.init(l)
	l.knocker = t.Dialer.Clone()
	l.knocker.FastOpen = false // with it a connection is there before anybody has answered
	l.forwarder = &tunnel.Forwarder{
		Accept: t.Accept, Open: l.open, Opened: l.opened, Keep: l.pool.keep,
		Timeout: t.Timeout, Linger: t.Linger, Drain: t.Drain, Hint: c.Hint, Quiet: l.isTold, Log: l.log(), Level: slog.LevelDebug,
	}
	if c.Quiet {
		l.forwarder.Log = nil
	}
	return l
}

// start begins to keep the link, unless that has begun.
func (l *link) start(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.halt != nil {
		return
	}
	ctx, l.halt = context.WithCancel(ctx)
	if l.Pool > 0 || l.Reuse > 0 {
		l.pool.setRuns(true) // the first program may be done before the goroutine begins
		l.client.serving.Go(func() { l.pool.run(ctx) })
	}
}

// stop ends the keeping of the link. Open connections go on.
func (l *link) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.halt != nil {
		l.halt()
	}
}

// leaveTo gives the programs that wait to the link that has taken the place of l. What has come to an edge stays.
func (l *link) leaveTo(heir *link) {
	if heir != nil && heir.Chooses == l.Chooses {
		l.heir.Store(heir)
		l.outage.replace()
	}
}

// latest is the link that has come to the place of l, or of its heirs.
func (l *link) latest() *link {
	for heir := l.heir.Load(); heir != nil; heir = l.heir.Load() {
		l = heir
	}
	return l
}

// serve carries one connection of a program, closes it, and then calls ended.
func (l *link) serve(ctx, draining context.Context, local tunnel.Conn, ended func(error)) {
	l.stats.began()
	l.forwarder.Start(ctx, draining, local, func(s *tunnel.Session, err error) {
		if w, ok := s.Info().Route.(*watched); ok {
			l.client.guard.leave(w)
		}
		l.stats.ended(s, err)
		ended(err)
	})
}

// opened is told of each tunnel.
func (l *link) opened(s *tunnel.Session) {
	l.client.guard.entrust(s.Info().Route.(*watched), s)
}

// networkChanged gives up what belonged to the old network. An address that comes or goes elsewhere, such as that of a container,
// is no other network to connections that would be made from theirs again.
func (l *link) networkChanged(change netwatch.Change) {
	l.Dialer.Forget()
	l.knocker.Forget()
	isOther := change.Routes || change.Slept > 0
	if isOther {
		l.pool.drop()
	} else {
		isOther = l.pool.dropMoved()
	}
	l.outage.retry(isOther)
}

// connect makes a connection to the edge for a program until the deadline. While the edge cannot be reached it tries again,
// if programs wait.
func (l *link) connect(ctx context.Context, deadline time.Time, said *said, target string) (*ready, error) {
	wait := l.Pool > 0 && target == "" // with a target of its own it would take a round trip more
	if since, _ := l.outage.state(); since.IsZero() || l.Wait <= 0 {
		r, err := l.attempt(ctx, max(time.Until(deadline), lastAttempt), wait, target)
		if err == errNetworkChanged && l.Wait <= 0 {
			r, err = l.attempt(ctx, l.timeout(), wait, target)
		}
		if l.Wait <= 0 || isSettled(ctx, err, deadline) {
			return r, told(err)
		}
	}
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	defer said.hear(leave)()
	for {
		if err := l.outage.turn(ctx, deadline); err != nil {
			return nil, told(err)
		}
		r, err := l.attempt(ctx, max(time.Until(deadline), lastAttempt), wait, target)
		if isSettled(ctx, err, deadline) {
			return r, told(err)
		}
	}
}

// isSettled tells whether there is nothing to be tried again after an attempt that ended with err.
func isSettled(ctx context.Context, err error, deadline time.Time) bool {
	return err == nil || err == errReplaced || ctx.Err() != nil || isFinal(err) || isStarved(err) || !time.Now().Before(deadline)
}

// lastAttempt is what an attempt gets that begins just before its deadline.
const lastAttempt = time.Second

// told is err for a log that knows of the outage already, if err is one.
func told(err error) error {
	if err == nil || isStarved(err) || err == errNetworkChanged || errors.As(err, new(straggler)) {
		return err
	}
	return tunnel.Told{Err: err}
}

// attempt tries once to make a connection to the edge, for Timeout. Where nobody has taken the connection within limit, it is over.
func (l *link) attempt(ctx context.Context, limit time.Duration, wait bool, target string) (r *ready, err error) {
	err = l.outage.try(ctx, func(ctx context.Context) (err error) {
		r, err = l.dial(ctx, limit, wait, target)
		return err
	})
	return r, err
}

func (l *link) dial(parent context.Context, limit time.Duration, wait bool, target string) (*ready, error) {
	ctx, cancel := context.WithTimeoutCause(parent, l.timeout(), tunnel.ErrTimeout)
	defer cancel()
	bare, conn, err := l.shakeHands(ctx, parent, limit, l.transport(wait, target))
	if err != nil {
		return nil, err
	}
	l.stats.reached(bare)
	r := newReady(l, bare, conn)
	if l.Chooses && target == "" && !r.waits { // the target behind it is none that a program has named
		r.close()
		return nil, l.Dialer.Through(l.Remote, tunnel.ErrNoTargets)
	}
	if target != "" && !r.waits {
		if err := r.hearAbout(ctx); err != nil {
			r.close()
			return nil, l.Dialer.Through(l.Remote, err)
		}
	}
	return r, nil
}

// shakeHands makes a connection to the edge within limit, and one of transport upon it. Where one of its addresses takes a connection, and then is not the
// edge, the others are tried; each once, because that is remembered. The end of parent, unlike that of ctx, is not the fault of any.
func (l *link) shakeHands(ctx, parent context.Context, limit time.Duration, transport tunnel.Transport) (bare, conn tunnel.Conn, err error) {
	reaching := ctx
	if limit < l.timeout() {
		var cancel func()
		reaching, cancel = context.WithTimeoutCause(ctx, limit, tunnel.ErrTimeout)
		defer cancel()
	}
	for {
		bare, err = l.Dialer.Dial(reaching, l.Remote)
		if err != nil {
			return nil, nil, tunnel.WithCause(reaching, err)
		}
		if conn, err = transport.Client(ctx, bare); err == nil {
			l.Dialer.Trust(l.Remote, bare)
			return bare, conn, nil
		}
		hasOther := parent.Err() == nil && !isBusy(err) && l.Dialer.Doubt(l.Remote, bare)
		bare.Close()
		if !hasOther || ctx.Err() != nil {
			return nil, nil, l.Dialer.Through(l.Remote, tunnel.WithCause(ctx, err))
		}
		l.log().Debug("another address of the edge is tried", "remote", l.Remote, "error", err)
	}
}

// isBusy tells whether err is the answer of the edge, or of what stands before it, that it cannot do it now.
func isBusy(err error) bool {
	var upgrade *tunnel.UpgradeError
	return errors.As(err, &upgrade) && !isNo(upgrade.Status)
}

// hearAbout waits until the edge says what has become of the target that was named in the handshake.
func (r *ready) hearAbout(ctx context.Context) error {
	wake := context.AfterFunc(ctx, func() { r.conn.SetDeadline(past) })
	err := tunnel.AwaitOpen(r.conn)
	if !wake() {
		return context.Cause(ctx)
	}
	if cause := r.dead.Load(); cause != nil {
		return *cause
	}
	var target *tunnel.TargetError
	if errors.As(err, &target) {
		r.refused = err // the edge itself is reached
		return nil
	}
	return err
}

// timeout limits each step towards the edge.
func (l *link) timeout() time.Duration {
	if l.Timeout <= 0 {
		return 10 * time.Second
	}
	return l.Timeout
}

// transport is that of the tunnel, for a connection that waits in the pool, or for a target of the program's choice.
func (l *link) transport(wait bool, target string) tunnel.Transport {
	if !wait && target == "" || len(l.Transport) == 0 {
		return l.Transport
	}
	ws, ok := l.Transport[len(l.Transport)-1].(*tunnel.WebSocket)
	if !ok {
		return l.Transport
	}
	own := *ws
	own.Wait, own.Target = wait, target
	return append(l.Transport[:len(l.Transport)-1:len(l.Transport)-1], &own)
}

// log is that of the client, with the name of the tunnel.
func (l *link) log() *slog.Logger {
	if l.client.Alone {
		return l.client.log()
	}
	return l.client.log().With(l.label())
}

// label names the tunnel in a log, where there are several.
func (l *link) label() slog.Attr {
	if l.client.Alone {
		return slog.Attr{}
	}
	return slog.String("tunnel", l.Name)
}
