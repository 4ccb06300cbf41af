package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"raimon/tunnel"
)

// ErrRetired says that a Server accepts no more, because another process does.
var ErrRetired = errors.New("another process has taken over")

// Server is the public edge: it takes connections, finds site and route for each, and hands tunnels to
// their targets. Set the fields, call Apply, then Run.
type Server struct {
	// Log takes a line for each connection. Nil discards them.
	Log *slog.Logger
	// Hint says what a user can do about an error, for the log. Nil says nothing.
	Hint func(error) string
	// Tickets makes clients resume after a restart; whoever sets it runs it. Nil: tickets die with the process.
	Tickets *TicketKeys
	// Metrics counts what happens. Nil counts nothing.
	Metrics *Metrics
	// Fixed says that Apply is called once only. Without Metrics, nothing is known then of tunnels that the Config does
	// not limit, not even to Tunnels, and each takes half a kilobyte less.
	Fixed bool
	// Inherited are listeners that are open already. Those of an address that a Config names are used
	// in place of new ones, by the first Apply.
	Inherited []net.Listener
	// Handed are those of another Server, as its Listeners tells them, and are used before Inherited.
	Handed map[string]net.Listener

	current   atomic.Pointer[snapshot]
	room      room
	addresses addresses
	refusals  seldom
	misfits   seldom
	tickets   TicketKeys // in place of Tickets

	mu        sync.Mutex
	doors     map[string]*door // by address
	run       *lifetime        // nil before and after Run
	retired   bool
	accepting sync.WaitGroup
	sessions  sync.WaitGroup
	counts    map[place]*places
	traffic   traffic // has a lock of its own
}

// place tells routes apart, also across changes of the Config.
type place struct{ site, route, path, host string }

// lifetime is what Run gives to those whom it starts.
type lifetime struct {
	draining, cut context.Context
	fail          context.CancelCauseFunc
	retire        func() // lets Run end with the last tunnel
}

// door is a listener that is open.
type door struct {
	net.Listener
	address string
	close   func() // ends its accepting; nil: it is not accepting yet
}

// Apply makes c what the server does, for all that comes from now on: connections, and requests on those that are
// there. Open tunnels go on. Where c cannot be served the error says why, and nothing has changed.
// Before Run it only opens the listeners; connections wait in their queues.
func (s *Server) Apply(ctx context.Context, c *Config) error {
	next, err := s.newSnapshot(c)
	if err != nil {
		return err
	}
	unused := next
	defer func() { unused.retire() }()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.retired {
		return ErrRetired
	}
	var addresses []string
	for _, l := range c.Listeners {
		addresses = append(addresses, l.Address)
	}
	listen := c.Listen
	listen.Log = s.Log
	listen.Have = s.have
	opened, err := listen.Open(ctx, addresses...)
	if err != nil {
		return err
	}
	unused = s.current.Swap(next)
	s.room.look()
	for _, p := range s.counts {
		p.look()
	}
	doors := make(map[string]*door)
	for address, l := range opened {
		d := s.doors[address]
		if d == nil {
			d = &door{Listener: l, address: address}
			s.accept(d)
		}
		doors[address] = d
	}
	for address, d := range s.doors {
		if doors[address] == nil {
			d.shut()
		}
	}
	s.doors = doors
	return nil
}

// have is the listener of address that is open already; nil: none. The caller holds mu.
func (s *Server) have(address string) net.Listener {
	if d := s.doors[address]; d != nil {
		return d.Listener
	}
	if l := s.Handed[address]; l != nil {
		delete(s.Handed, address)
		return l
	}
	for n, l := range s.Inherited {
		if isAt(l, address) {
			s.Inherited = slices.Delete(s.Inherited, n, n+1)
			return l
		}
	}
	return nil
}

func (d *door) shut() {
	if d.close != nil {
		d.close()
	}
	d.Listener.Close()
}

// Listeners are those that are open, by address.
func (s *Server) Listeners() map[string]net.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]net.Listener)
	for address, d := range s.doors {
		all[address] = d.Listener
	}
	return all
}

// Close closes the listeners, for those who do not come to call Run.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.doors {
		d.shut()
	}
	s.doors = nil
}

// Run serves until ctx ends. Open tunnels then go on for Config.Drain, the rest is cut, and Run returns when every
// goroutine of the server has ended. It fails where a listener does. See also Retire.
func (s *Server) Run(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	cut, stop := tunnel.DrainAfter(ctx, func() time.Duration { return s.current.Load().config.Drain })
	defer stop()
	draining, drain := context.WithCancel(ctx)
	defer drain()
	retired, retire := context.WithCancel(ctx)
	defer retire()
	s.mu.Lock()
	s.run = &lifetime{draining: draining, cut: cut, fail: fail, retire: retire}
	for _, d := range s.doors {
		s.accept(d)
	}
	if s.retired {
		retire()
	}
	s.mu.Unlock()
	if s.Tickets == nil {
		var running sync.WaitGroup
		defer running.Wait()
		rotating, end := context.WithCancel(ctx)
		defer end()
		running.Go(func() { s.tickets.Run(rotating) })
	}

	<-retired.Done()
	if ctx.Err() == nil {
		s.outlast(drain) // the end of ctx ends tunnels as ever
	}
	s.mu.Lock()
	s.run = nil
	for _, d := range s.doors {
		d.shut()
	}
	s.mu.Unlock()
	s.accepting.Wait()
	s.sessions.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Retire stops accepting, for good, because another process does. The files of Unix sockets stay. Run then returns
// when all tunnels have ended, or at the end of its context, as ever; Config.Drain does not count before that.
// What has been accepted gets Config.Timeout to become a tunnel, and requests are answered.
func (s *Server) Retire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
	for _, d := range s.doors {
		if l, ok := d.Listener.(interface{ SetUnlinkOnClose(bool) }); ok {
			l.SetUnlinkOnClose(false)
		}
		// Not d.shut: a connection that is accepted at this moment is still served.
		d.Listener.Close()
	}
	s.doors = nil
	if s.run != nil {
		s.run.retire()
	}
}

// outlast returns when all connections have ended. Those that are no tunnels after some time are not waited for.
func (s *Server) outlast(drain func()) {
	grace := s.current.Load().config.Timeout
	if grace <= 0 {
		grace = retireTimeout
	}
	defer time.AfterFunc(grace, drain).Stop()
	s.accepting.Wait()
	s.sessions.Wait()
}

// retireTimeout stands in for Config.Timeout where that is zero or no limit.
const retireTimeout = 10 * time.Second

// accept begins to take what comes to d, if Run has been called. The caller holds mu.
func (s *Server) accept(d *door) {
	run := s.run
	if run == nil {
		return
	}
	ctx, cancel := context.WithCancel(run.draining)
	d.close = cancel
	s.accepting.Go(func() {
		defer cancel()
		err := tunnel.Accept(ctx, d.Listener, func(c tunnel.Conn) { s.start(ctx, run, d.address, c) }, func(err error, pause time.Duration) {
			s.log().Error("accept", "error", err, s.hint(err), "retry_in", pause.String())
		})
		if err != nil && !s.isRetired() {
			run.fail(fmt.Errorf("%s: %w", d.address, err))
		}
	})
}

func (s *Server) isRetired() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.retired
}

// start serves one connection with what is current, for as long as it lasts. While the house is full it waits, and whoever
// accepts waits with it, until ctx ends.
func (s *Server) start(ctx context.Context, run *lifetime, address string, c tunnel.Conn) {
	if err := s.room.enter(ctx, func() Limits { return s.current.Load().config.Limits }); err != nil {
		if errors.Is(err, ErrFull) {
			s.refused(err)
		}
		tunnel.ResetOnClose(c)
		c.Close()
		return
	}
	e := s.current.Load().entrances[address]
	if e == nil { // it has just been closed
		s.room.leave()
		c.Close()
		return
	}
	s.Metrics.accepted(address)
	s.sessions.Add(1)
	e.forwarder.Start(run.cut, run.draining, c, func(session *tunnel.Session, err error) {
		s.ended(session, err)
		s.room.leave()
		s.sessions.Done()
	})
}

// admit counts v for its address, or says why not. It may cost another visitor of that address its place.
func (s *Server) admit(v *visit) error {
	limits := v.entrance.snapshot.config.Limits
	if s.Fixed && limits.PerAddress <= 0 && limits.Rate <= 0 {
		v.uncounted = true // nobody is turned away
		return nil
	}
	leaving, err := s.addresses.admit(&v.guest, limits, time.Now())
	if leaving != nil {
		leaving.StopWaiting()
	}
	if err != nil {
		s.refused(err)
	}
	return err
}

// refused is told of each connection that is over a limit.
func (s *Server) refused(reason error) {
	s.Metrics.refused(reason)
	s.refusals.note(reason, func(count int) {
		s.log().Warn("connections are refused", "reason", reason, "count", count)
	})
}

// misfit is told of each connection that ought to begin with a PROXY header and does not.
func (s *Server) misfit(v *visit, err error) {
	s.misfits.note(nil, func(count int) {
		s.log().Warn("no proxy header", "listener", v.entrance.Address, "client", v.info.Client.String(), "error", err, s.hint(err), "count", count)
	})
}

// release lets go of what a tunnel has no use for once it is open, where nothing is counted.
func (s *Server) release(session *tunnel.Session) {
	if v := visitOf(session.Info()); v.uncounted && v.open == nil && v.shown == nil && (v.route == nil || v.route.Proxy == 0) {
		session.Info().Route = &settled{v.entrance, choice{v.site, v.route, v.user}}
	}
}

// settled is what is left of a visit that nobody counts, for the next tunnel on its connection.
type settled struct {
	entrance *entrance
	choice
}

// again lets a connection wait for another tunnel when one has ended well. It gives way to new ones where there are too many.
func (s *Server) again(ended, next *tunnel.Session) bool {
	if s.room.isAwaited() {
		return false
	}
	v, ok := ended.Info().Route.(*visit)
	if ok {
		s.traffic.ended(v)
		if v.open != nil {
			v.open.give()
		}
		s.Metrics.ended(v, ended, nil)
		v.live, v.open = nil, nil
	} else {
		left := ended.Info().Route.(*settled)
		v = &visit{entrance: left.entrance, site: left.site, route: left.route, user: left.user, uncounted: true}
	}
	v.info, v.stage = next.Info(), inRequest
	next.Info().Route = v
	v.idle = s.room.rest(next)
	if !v.uncounted {
		s.addresses.unsettle(&v.guest, next, time.Now())
	}
	return true
}

// opened is told of each tunnel.
func (s *Server) opened(session *tunnel.Session) {
	v := visitOf(session.Info())
	s.traffic.opened(v, session)
	s.Metrics.opened(v, time.Since(session.Begin()))
}

// ended is told of each connection, tunnel or not.
func (s *Server) ended(session *tunnel.Session, err error) {
	v, ok := session.Info().Route.(*visit)
	if !ok {
		return
	}
	s.traffic.ended(v)
	s.room.rise(v.idle)
	v.leave()
	s.Metrics.ended(v, session, err)
}

// openOn counts the tunnels of a route, also across changes of the Config.
func (s *Server) openOn(site *Site, route *Route) *places {
	if s.Fixed && route.Limit == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := place{site.label(), route.label(), route.Path, route.Host}
	if s.counts == nil {
		s.counts = make(map[place]*places)
	}
	if s.counts[key] == nil {
		s.counts[key] = new(places)
	}
	return s.counts[key]
}

// Config is what the server does at present; nil before Apply.
func (s *Server) Config() *Config {
	if now := s.current.Load(); now != nil {
		return now.config
	}
	return nil
}

// ticketKeys are there in any case: without keys of their own, crypto/tls gives sites those that all share.
func (s *Server) ticketKeys() *TicketKeys {
	if s.Tickets != nil {
		return s.Tickets
	}
	return &s.tickets
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

// hint is what a user can do about err, for the end of a log line.
func (s *Server) hint(err error) slog.Attr {
	if s.Hint != nil {
		if hint := s.Hint(err); hint != "" {
			return slog.String("hint", hint)
		}
	}
	return slog.Attr{}
}

// seldom keeps a flood of connections from flooding the log as well: of each kind it lets one line a minute pass.
type seldom struct {
	mu    sync.Mutex
	kinds map[error]*seldomKind
}

type seldomKind struct {
	since time.Time // of the last line
	count int       // since then
}

// note calls log with how many there were, this one included, since it last did.
func (s *seldom) note(kind error, log func(count int)) {
	if count := s.due(kind); count > 0 {
		log(count)
	}
}

// due is how many a line is to tell of now; 0: there is to be none.
func (s *seldom) due(kind error) (count int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kinds[kind]
	if k == nil {
		k = &seldomKind{}
		if s.kinds == nil {
			s.kinds = make(map[error]*seldomKind)
		}
		s.kinds[kind] = k
	}
	k.count++
	if now := time.Now(); now.Sub(k.since) >= time.Minute {
		count = k.count
		k.since, k.count = now, 0
	}
	return count
}

// isAt tells whether l listens at address, as far as its own address tells.
func isAt(l net.Listener, address string) bool {
	kind, name, err := tunnel.ParseAddress(address)
	if err != nil || l.Addr().Network() != kind {
		return false
	}
	if kind == "unix" {
		return l.Addr().String() == name
	}
	want, err := net.ResolveTCPAddr("tcp", name)
	have, ok := l.Addr().(*net.TCPAddr)
	if err != nil || !ok || want.Port != have.Port {
		return false
	}
	unspecified := want.IP == nil || want.IP.IsUnspecified()
	return unspecified && have.IP.IsUnspecified() || want.IP.Equal(have.IP)
}
