package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrTimeout ends a handshake or dial that took longer than Forwarder.Timeout.
var ErrTimeout = errors.New("handshake and dial took too long")

// ErrDrained cuts the tunnels that are still open when draining has lasted long enough.
var ErrDrained = errors.New("shut down while the tunnel was open")

// Forwarder accepts connections, dials one for each, and relays. It is the edge as well as the
// client: only the side of the transport differs.
type Forwarder struct {
	// Accept is the transport spoken by those who connect to us; empty is plain tcp.
	Accept Transport
	// Dial opens the connection to the other side; info tells for whom.
	Dial func(ctx context.Context, info *Info) (Conn, error)
	// Connect is the transport spoken on the dialed connection; empty is plain tcp.
	Connect Transport
	// Open, where it is not nil, takes the place of Dial and Connect: it gives accepted its other end, and the bare
	// connection below it, which the session closes. Time limits are its own; ctx ends when nothing new is to begin. What it has carried already
	// it adds to info.Sent. An error in a Told is not worth more than a line for debugging.
	Open func(ctx context.Context, accepted Conn, info *Info) (bare, c Conn, err error)

	// Timeout limits handshakes and dial together. Zero means 10 seconds; negative means no limit.
	Timeout time.Duration
	// Linger is how long one direction may be silent after the other has ended, where the peer gives
	// no proof of life. Zero means 60 seconds; negative means no limit.
	Linger time.Duration
	// Drain is how long open tunnels may go on after Serve's context has ended.
	// Zero means 10 seconds; negative means not at all.
	Drain time.Duration
	// Until ends connections that wait (WebSocket.Wait) and have not been taken: what was agreed with them then holds no longer.
	// Nil: Draining alone does.
	Until context.Context
	// Opened is told of each tunnel when both of its ends are there. It must not block. Nil is not told.
	Opened func(*Session)
	// Again is told of each tunnel that has ended well and whose accepted connection may wait for another one, and tells whether it does.
	// Next has the Route of ended; what Start was given for the end of a session is told of the last one. It must not block. Nil: it does.
	Again func(ended, next *Session) bool
	// Keep is given the dialed connection of each tunnel that has ended well, if its edge waits for Take again (WebSocket.Reuse): the bare
	// one, and what is upon it. It tells whether it has taken it over; else it is closed. It must not block. Nil takes none.
	Keep func(s *Session, bare, c Conn) bool
	// Hint says what a user can do about an error of a tunnel, for the log. Nil says nothing.
	Hint func(error) string
	// Reason says in one word, for the log, why a connection that Accept has refused became no tunnel. Nil: EndReason does.
	Reason func(info *Info, err error) string
	// Quiet tells, once for each tunnel that has failed, whether that is worth no more than a line for debugging, because the
	// log knows of it already. Nil: none is.
	Quiet func(error) bool
	// Log takes one line for each connection. Nil discards them.
	Log *slog.Logger
	// Level is the level of the line about a tunnel that went well; zero is slog.LevelInfo.
	Level slog.Level

	leash atomic.Pointer[leash] // of the context of the last session
}

// Serve forwards what l accepts until ctx ends. It then closes l, lets open tunnels go on for Drain,
// cuts the rest, and returns nil when every goroutine that it started has ended. An error of Accept
// never ends it: it waits a little and tries again.
func (f *Forwarder) Serve(ctx context.Context, l net.Listener) error {
	cut, stop := DrainAfter(ctx, func() time.Duration { return f.Drain })
	defer stop()
	var sessions sync.WaitGroup
	defer sessions.Wait()
	return Accept(ctx, l, func(c Conn) {
		sessions.Add(1)
		f.Start(cut, ctx, c, func(*Session, error) { sessions.Done() })
	}, func(err error, pause time.Duration) {
		f.log().Error("accept", "error", err, f.hint(err), "retry_in", pause.String())
	})
}

// Accept calls start for each connection that l accepts until ctx ends, and then closes l. An error of
// l is told to failed, together with the pause before the next attempt; only net.ErrClosed ends Accept.
func Accept(ctx context.Context, l net.Listener, start func(Conn), failed func(error, time.Duration)) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	pause := time.Duration(0)
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("accept: %w", err)
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			failed(err, pause)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		start(c.(Conn))
	}
}

// DrainAfter returns a context that ends some time after ctx has ended, and a function that ends it at
// once. Drain says then how long that is: zero means 10 seconds; negative means at once.
func DrainAfter(ctx context.Context, drain func() time.Duration) (cut context.Context, stop func()) {
	cut, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	var mu sync.Mutex
	var timer *time.Timer
	unhook := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		timer = time.AfterFunc(max(0, orDefault(drain(), 10*time.Second)), func() { cancel(ErrDrained) })
	})
	return cut, func() {
		unhook()
		mu.Lock()
		defer mu.Unlock()
		if timer != nil {
			timer.Stop()
		}
		cancel(nil)
	}
}

// Handle forwards one connection that arrived in another way than through Serve, and closes it.
// It returns when the tunnel has ended, or at once when ctx ends.
func (f *Forwarder) Handle(ctx context.Context, c Conn) error {
	ended := make(chan error, 1)
	f.session(ctx, ctx, c, func(_ *Session, err error) { ended <- err }).open()
	return <-ended
}

// Start forwards one connection, closes it, and then calls ended, on a goroutine of the session. It
// returns at once. The end of ctx cuts the tunnel; that of draining only keeps it from coming about.
func (f *Forwarder) Start(ctx, draining context.Context, c Conn, ended func(*Session, error)) {
	go f.session(ctx, draining, c, ended).open()
}

// Session is the life of one connection: open, then a relay, then close.
type Session struct {
	f   *Forwarder
	ctx context.Context

	info             Info
	accepted, dialed Conn // bare; ours to close
	begin            time.Time
	relay            *relay // nil: the tunnel did not come about
	follows          bool   // another one on the same connection
	answered         bool   // whoever is on the accepted side has been told why, and leaves
	ended            func(*Session, error)
}

// Info is what is known of the connection. It is complete, and no longer changes, once the tunnel is open.
func (s *Session) Info() *Info { return &s.info }

// Cut ends the tunnel because of err; without a tunnel it does nothing.
func (s *Session) Cut(err error) {
	if s.relay != nil {
		s.relay.abort(err, byNobody)
	}
}

// StopWaiting ends the wait of a session for its tunnel. It is not to be called once that has begun. If MayLeave, the session ends at once.
func (s *Session) StopWaiting() { s.accepted.SetReadDeadline(past) }

// MayLeave tells whether the client has taken all of the tunnel before, as far as is known: else it gets the time for that, which may be long.
func (s *Session) MayLeave() bool { return hasTakenAll(asSocket(bottom(s.accepted))) }

// Begin is when the connection was accepted or, if it has waited, taken.
func (s *Session) Begin() time.Time { return s.begin }

// Open tells whether the tunnel has come about.
func (s *Session) Open() bool { return s.relay != nil }

// Sent is how many bytes of the client have been handed on.
func (s *Session) Sent() int64 {
	if s.relay == nil {
		return 0
	}
	return s.info.Sent + s.relay.forth.moved.Load()
}

// Received is how many bytes have come back for the client.
func (s *Session) Received() int64 {
	if s.relay == nil {
		return 0
	}
	return s.relay.back.moved.Load()
}

func (f *Forwarder) session(ctx, draining context.Context, c Conn, ended func(*Session, error)) *Session {
	s := &Session{f: f, ctx: ctx, accepted: c, begin: time.Now(), ended: ended}
	s.info = Info{Client: c.RemoteAddr(), drain: drainFor(draining)}
	return s
}

// open accepts the connection and leads to a tunnel, or to its wait for one.
func (s *Session) open() {
	growStack(0)
	limited, cancel := s.f.limit(s.ctx, &s.info)
	accepted, err := s.f.Accept.Server(limited, s.accepted, &s.info)
	if err != nil {
		cancel()
		s.close(strayError{err})
		return
	}
	if f, ok := accepted.(*frames); ok && f.wait {
		cancel()
		f.expectDial()
		go s.wait(f) // handshakes make a stack grow, and this may take long
		return
	}
	s.connect(limited, cancel, accepted)
}

// wait is the life of a connection until its client wants a tunnel, if it ever does.
func (s *Session) wait(f *frames) {
	target, err := f.awaitDial(s.draining(), s.f.Until)
	if err != nil {
		if s.follows {
			s.seeOff(f)
		}
		release(f)
		s.close(strayError{err})
		return
	}
	s.begin = time.Now()
	if target != "" {
		s.info.Target = target
	}
	limited, cancel := s.f.limit(s.ctx, &s.info)
	s.connect(limited, cancel, f)
}

// connect makes the tunnel and leaves it to its relay, whose end closes it. Handshakes make a stack grow;
// the goroutine that called has no further use for its own.
func (s *Session) connect(limited context.Context, cancel func(), accepted Conn) {
	growStack(0)
	a, b, err := s.handshakes(limited, accepted)
	cancel()
	if err != nil {
		release(accepted)
		s.close(err)
		return
	}
	s.relay = newRelay(s.f.leashFor(s.ctx), a, b, orDefault(s.f.Linger, time.Minute))
	if s.f.Opened != nil {
		s.f.Opened(s)
	}
	s.relay.start(s.over)
}

// growStack makes the stack of its goroutine as large as a dial needs it, while there is hardly anything on it. Later all that is on it
// would have to be moved, again and again: a tenth of the processor time that a tunnel takes on a connection that has waited.
//
//go:noinline
func growStack(i int) byte {
	var room [6 << 10]byte
	return room[i]
}

func (s *Session) close(err error) {
	s.tell(err)
	if s.dialed != nil {
		s.dialed.Close()
	}
	s.accepted.Close()
	s.ended(s, err)
}

// handshakes make the two ends of the tunnel, of which the accepted one is there.
func (s *Session) handshakes(limited context.Context, accepted Conn) (a, dialed Conn, err error) {
	info := &s.info
	dialed, err = s.dial(limited, accepted)
	if err == nil && limited.Err() != nil {
		err = context.Cause(limited)
		ResetOnClose(dialed) // it must not look as if a client had come and said nothing
	}
	if err != nil {
		err = WithCause(limited, err)
		s.answered = refuse(accepted, err)
		return nil, nil, unreachedError{err}
	}
	a, err = answer(limited, accepted)
	info.stopLimit()
	if err == nil && limited.Err() != nil {
		err = context.Cause(limited)
	}
	if err != nil {
		ResetOnClose(accepted)
		ResetOnClose(dialed)
		release(dialed)
		return nil, nil, err
	}
	info.TLS, info.limit = nil, nil // have served their purpose, and are large
	return a, dialed, nil
}

// dial reaches the other side.
func (s *Session) dial(ctx context.Context, accepted Conn) (Conn, error) {
	if f, ok := accepted.(*frames); ok && s.info.Target != "" && !f.chooses {
		return nil, &TargetError{Reason: ReasonForbidden, Err: errors.New("no client may choose its target here")}
	}
	if s.f.Open != nil {
		return s.openOwn(accepted)
	}
	bare, err := s.f.Dial(ctx, &s.info)
	if err != nil {
		return nil, err
	}
	s.dialed = bare
	dialed, err := s.f.Connect.Client(ctx, bare)
	if err != nil {
		return nil, err
	}
	if err := begin(ctx, dialed); err != nil {
		release(dialed)
		return nil, err
	}
	return dialed, nil
}

// openOwn has Forwarder.Open reach the other side.
func (s *Session) openOwn(accepted Conn) (Conn, error) {
	s.info.stopLimit()
	bare, c, err := s.f.Open(s.draining(), accepted, &s.info)
	s.dialed = bare
	return c, err
}

// draining ends when nothing new is to begin, and no later than the session's context.
func (s *Session) draining() context.Context {
	if s.info.drain == nil {
		return s.ctx
	}
	return s.info.drain.ctx
}

// answer tells the accepted side that the other one is there, if it waits for that.
func answer(ctx context.Context, accepted Conn) (c Conn, err error) {
	waiting, ok := accepted.(Answering)
	if f, isFrames := accepted.(*frames); !ok || isFrames && !f.open {
		return accepted, nil
	}
	err = interruptible(ctx, accepted, func() (err error) {
		c, err = waiting.Answer(nil)
		return err
	})
	return c, err
}

// tell leaves the one line that tells what became of the connection.
func (s *Session) tell(err error) {
	log := s.f.log()
	level, message := s.verdict(err)
	if !log.Enabled(context.Background(), level) {
		return
	}
	log = log.With("client", addrString(s.info.Client))
	if s.info.ServerName != "" {
		log = log.With("sni", s.info.ServerName)
	}
	log = log.With(s.info.Attrs...)
	if s.info.Target != "" {
		log = log.With("target", s.info.Target)
	}
	reason := slog.String("reason", s.reason(err))
	traffic := slog.Group("", "sent", s.Sent(), "received", s.Received(), "duration", time.Since(s.begin).Round(time.Millisecond).String(), reason)
	switch message {
	case tunnelClosed:
		log.Log(context.Background(), level, message, traffic)
	case noTunnel:
		if !isTold(err) {
			traffic = reason
		}
		log.Log(context.Background(), level, message, "error", err, traffic)
	case tunnelReset:
		log.Log(context.Background(), level, message, "error", err, traffic)
	default:
		log.Log(context.Background(), level, message, "error", err, s.f.hint(err), traffic)
	}
}

// What is said of connections that have ended.
const (
	tunnelClosed = "tunnel closed"
	tunnelReset  = "tunnel reset"
	tunnelFailed = "tunnel failed"
	noTunnel     = "no tunnel"
)

// verdict is what there is to say when the session has ended with err, and how loud.
func (s *Session) verdict(err error) (slog.Level, string) {
	switch {
	case err == nil:
		return s.f.Level, tunnelClosed
	case isStray(err) || !s.answered && s.info.Sent+s.Sent()+s.Received() == 0 && hasLeft(s.accepted), isTold(err):
		// Whoever probes a port is gone before there is anything to say.
		return slog.LevelDebug, noTunnel
	case IsReset(err) && !isUnreached(err):
		return s.f.Level, tunnelReset // programs do that all the time
	case s.f.Quiet != nil && s.f.Quiet(err):
		return slog.LevelDebug, tunnelFailed
	case isToldByEdge(err):
		return slog.LevelInfo, tunnelFailed // the edge's log has the warning
	}
	return slog.LevelWarn, tunnelFailed
}

// limit bounds handshakes and dial; the layers may start it anew through info.
func (f *Forwarder) limit(ctx context.Context, info *Info) (context.Context, func()) {
	limited, cancel := context.WithCancelCause(ctx)
	timeout := orDefault(f.Timeout, 10*time.Second)
	if timeout > 0 {
		info.timeout = timeout
		info.limit = time.AfterFunc(timeout, func() { cancel(ErrTimeout) })
	}
	return limited, func() {
		info.stopLimit()
		cancel(nil)
	}
}

// refuse ends an accepted connection for which there is nobody on the other side, because of err.
// It tells whether the peer has been told so.
func refuse(accepted Conn, err error) (told bool) {
	if waiting, ok := accepted.(Answering); ok {
		letEnd(accepted) // it may have carried a tunnel before
		if _, failed := waiting.Answer(err); failed == nil {
			return true
		}
	}
	ResetOnClose(accepted)
	return false
}

// WithCause prefers the reason for which ctx ended to err, which that led to; nil stays nil.
func WithCause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	return err
}

// strayError is what comes of visitors who never asked for a tunnel: scanners, probes, browsers.
type strayError struct{ error }

func (e strayError) Unwrap() error { return e.error }

func isStray(err error) bool {
	var s strayError
	return errors.As(err, &s)
}

// Told is an error of Forwarder.Open that the log knows of already, as one of many that have the same cause.
type Told struct{ Err error }

func (e Told) Error() string { return e.Err.Error() }
func (e Told) Unwrap() error { return e.Err }

// isToldByEdge tells whether it is an edge that could not reach its target, or would not.
func isToldByEdge(err error) bool {
	var target *TargetError
	return errors.As(err, &target) && target.Err == nil
}

func isTold(err error) bool {
	var t Told
	return errors.As(err, &t)
}

// unreachedError says that there was nobody to carry a tunnel to. A reset is no everyday event then.
type unreachedError struct{ error }

func (e unreachedError) Unwrap() error { return e.error }

func isUnreached(err error) bool {
	var u unreachedError
	return errors.As(err, &u)
}

// hasLeft tells whether the peer has closed its side of c without having sent anything more.
func hasLeft(c Conn) bool {
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	n, err := c.Read(make([]byte, 1))
	return n == 0 && (err == io.EOF || errors.Is(err, net.ErrClosed) || IsReset(err))
}

// hint is what a user can do about err, for the end of a log line.
func (f *Forwarder) hint(err error) slog.Attr {
	if f.Hint != nil {
		if hint := f.Hint(err); hint != "" {
			return slog.String("hint", hint)
		}
	}
	return slog.Attr{}
}

func (f *Forwarder) log() *slog.Logger {
	if f.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return f.Log
}

// orDefault is d, or def where d is zero.
func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

// addrString is the address for a log line; Unix sockets of clients have none.
func addrString(a net.Addr) string {
	if a == nil || a.String() == "" {
		return "unix"
	}
	return a.String()
}
