package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/pires/go-proxyproto"

	"raimon/tunnel"
)

// snapshot is a Config, prepared for handshakes.
type snapshot struct {
	server    *Server
	config    *Config
	sites     map[string]*Site     // by name; "" is the site without names
	entrances map[string]*entrance // by address of the listener
	tls       *tls.Config
	encrypted tunnel.Transport  // TLS and what is above
	http      *tunnel.WebSocket // for all sites that speak it
	passes    bool              // some site is passed on untouched
	replaced  context.Context   // ends when there is another
	replace   func()
}

func (s *Server) newSnapshot(c *Config) (*snapshot, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	now := &snapshot{server: s, config: c, sites: make(map[string]*Site), entrances: make(map[string]*entrance)}
	now.replaced, now.replace = context.WithCancel(context.Background())
	for _, site := range c.Sites {
		now.passes = now.passes || site.Pass != ""
		for _, name := range site.Names {
			now.sites[name] = site
		}
		if len(site.Names) == 0 {
			now.sites[""] = site
		}
	}
	now.tls = now.tlsConfig()
	now.encrypted = tunnel.Transport{&tunnel.TLS{ServerConfig: now.tls}, upper{now}}
	now.http = &tunnel.WebSocket{Ping: c.Ping, Targets: true, HeaderSize: c.HeaderSize, IdleTimeout: c.IdleTimeout, BodyTimeout: c.BodyTimeout,
		Match: func(r *http.Request, info *tunnel.Info) bool { return visitOf(info).match(r, info) },
		Site: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			visitOf(tunnel.InfoOf(r)).ServeHTTP(w, r)
		}),
	}
	opened := s.opened
	if s.Fixed && s.Metrics == nil {
		opened = s.release
	}
	for _, l := range c.Listeners {
		e := &entrance{Listener: l, snapshot: now}
		e.forwarder = &tunnel.Forwarder{
			Accept: tunnel.Transport{e}, Dial: dial, Until: now.replaced, Opened: opened, Again: s.again,
			Timeout: c.Timeout, Linger: c.Linger, Drain: c.Drain, Hint: s.Hint, Reason: reason, Log: s.Log, Level: c.Level,
		}
		now.entrances[l.Address] = e
	}
	return now, nil
}

// retire ends what waits for a tunnel under the terms of s; nil has nothing of the kind.
func (s *snapshot) retire() {
	if s != nil {
		s.replace()
	}
}

// entrance is a Listener with all that lies behind it: the accepting side of a tunnel.
type entrance struct {
	Listener
	snapshot  *snapshot
	forwarder *tunnel.Forwarder
}

// Client is not for an edge.
func (e *entrance) Client(context.Context, tunnel.Conn) (tunnel.Conn, error) {
	return nil, errors.ErrUnsupported
}

// Server finds out what the one who has connected wants.
func (e *entrance) Server(ctx context.Context, c tunnel.Conn, info *tunnel.Info) (tunnel.Conn, error) {
	v := &visit{entrance: e, info: info, local: c.LocalAddr(), stage: arriving}
	info.Route = v
	accepted := c
	if e.expectsProxy(info.Client) {
		var err error
		if c, err = v.readProxyHeader(ctx, c); err != nil {
			return nil, err
		}
	}
	v.network = network(info.Client)
	if e.snapshot.config.Limits.PerAddress > 0 {
		limited, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		ctx = limited
		v.leaver = handshake(func() {
			e.snapshot.server.refused(ErrPerAddress)
			tunnel.ResetOnClose(accepted)
			cancel(ErrPerAddress)
		})
	}
	if err := e.snapshot.server.admit(v); err != nil {
		tunnel.ResetOnClose(accepted)
		return nil, err
	}
	v.stage, v.begin = inHandshake, time.Now()
	if e.Plain {
		v.site = e.snapshot.sites[""]
		return e.snapshot.above(ctx, c, info)
	}
	if e.snapshot.passes {
		hello, peeked, err := tunnel.PeekHello(ctx, c, info)
		if err != nil {
			return nil, err
		}
		if site := e.snapshot.site(hello.ServerName); site != nil && site.Pass != "" {
			info.ServerName, v.site = hello.ServerName, site
			if !v.settle() {
				return nil, ErrPerAddress
			}
			v.note()
			return peeked, nil
		}
		c = peeked
	}
	return e.snapshot.encrypted.Server(ctx, c, info)
}

// expectsProxy tells whether connections from client begin with a PROXY header.
func (e *entrance) expectsProxy(client net.Addr) bool {
	ip := addressOf(client)
	return slices.ContainsFunc(e.ProxyFrom, func(p netip.Prefix) bool {
		return p.Contains(ip) || !ip.IsValid() && p.Bits() == 0 // Unix sockets have no address
	})
}

// site is that for a server name; nil: there is none.
func (s *snapshot) site(name string) *Site {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if site := siteNamed(s.sites, name); site != nil {
		return site
	}
	if name == "" { // who names nothing gets the first
		return s.config.Sites[0]
	}
	return nil
}

// upper is what comes above TLS, as a layer.
type upper struct{ *snapshot }

// Client is not for an edge.
func (u upper) Client(context.Context, tunnel.Conn) (tunnel.Conn, error) {
	return nil, errors.ErrUnsupported
}

// Server is above.
func (u upper) Server(ctx context.Context, c tunnel.Conn, info *tunnel.Info) (tunnel.Conn, error) {
	return u.above(ctx, c, info)
}

// above is what comes above TLS, or above nothing on a plain listener.
func (s *snapshot) above(ctx context.Context, c tunnel.Conn, info *tunnel.Info) (tunnel.Conn, error) {
	v := visitOf(info)
	v.stage = inRequest
	if !v.entrance.Plain {
		v.site = s.site(info.ServerName)
		if v.site == nil {
			return nil, errUnknownName
		}
		v.policy = v.site.Clients.policy()
		s.server.Metrics.shookHands(v)
	}
	if v.site != nil && v.site.Raw != nil {
		if err := v.takeRaw(ctx); err != nil {
			return nil, err
		}
		return c, nil
	}
	return s.http.Server(ctx, c, info)
}

// visitOf is the visit of a connection that an entrance has let in.
func visitOf(info *tunnel.Info) *visit { return info.Route.(*visit) }

// visit is one connection, until it has become a tunnel and while it is one.
type visit struct {
	guest
	entrance *entrance
	info     *tunnel.Info
	local    net.Addr // where the client has connected to
	stage    stage
	begin    time.Time   // of the TLS handshake
	live     *liveTunnel // nil: no tunnel yet

	site   *Site            // nil on a plain listener, where each request has its own
	policy string           // what the client had to show in the handshake
	route  *Route           // nil: no tunnel, or passed on untouched
	user   string           // whose token or certificate opened the route
	shown  *shown           // what did, for a tunnel that comes later; nil: there will be none, or nothing is asked for
	open   *places          // nil: nobody counts
	idle   *idler           // while it waits for another tunnel
	proxy  []proxyproto.TLV // of a PROXY header, for the next tunnel of the connection
	full   error            // why there was no place on the route of the last request

	uncounted bool // its address does not count it
}

// stage is how far a visit has come.
type stage int

const (
	arriving    stage = iota // a PROXY header and limits
	inHandshake              // of TLS
	inRequest                // for a tunnel
	atTarget                 // which is dialed
)

// errUnknownName is why nobody could shake hands.
var errUnknownName = errors.New("no site has this name")

// current is the site as it is now, which a reload may have changed: nil if it is not what the client
// has shaken hands for any more.
func (v *visit) current(r *http.Request) *Site {
	now := v.entrance.snapshot.server.current.Load()
	site := now.site(v.info.ServerName)
	if v.entrance.Plain {
		site = now.site(hostName(r.Host))
	} else if site == nil || site.Pass != "" || site.Raw != nil || site.Clients.policy() != v.policy {
		return nil
	}
	if site != nil && site.Clients.check(v.info.TLS) != nil { // revoked meanwhile, or a plain listener
		return nil
	}
	return site
}

// settle says that the visitor has asked for something, and so did not come to hold a place only. It is too late if
// another one has got the place.
func (v *visit) settle() bool {
	return v.uncounted || v.entrance.snapshot.server.addresses.settle(&v.guest)
}

// match tells whether r, which asks for a WebSocket, gets a tunnel.
func (v *visit) match(r *http.Request, info *tunnel.Info) bool {
	v.full = v.take(r.Context(), tunnel.AsksToWait(r), func() (choice, error) {
		site := v.current(r)
		if !v.settle() || site == nil {
			return choice{}, ErrAccess
		}
		route, user := site.route(r, info)
		if route == nil {
			return choice{}, ErrAccess
		}
		v.shown = nil
		if tunnel.AsksForLater(r) && (site.Clients != nil || route.Access.Tokens != nil) {
			s := shownBy(r, info)
			v.shown = &s
		}
		return choice{site, route, user}, nil
	})
	return v.full == nil
}

// stillMay is the choice of a client that has waited since its handshake, if what it has shown then is still good. What else lets it in is in the
// config, whose end would have ended the wait.
func (v *visit) stillMay() (choice, error) {
	if v.shown == nil {
		return choice{v.site, v.route, v.user}, nil
	}
	user, ok := v.route.Access.admits(*v.shown, v.info)
	if err := v.site.Clients.check(v.shown.state); err != nil {
		return choice{}, err
	}
	if !ok {
		return choice{}, ErrAccess
	}
	return choice{v.site, v.route, user}, nil
}

// route is that which r may have; nil: none. Somebody who looks for routes learns nothing from how long it
// takes: for each request one Access is asked.
func (s *Site) route(r *http.Request, info *tunnel.Info) (*Route, string) {
	n := slices.IndexFunc(s.Routes, func(route *Route) bool { return route.Path == r.RequestURI && s.isHost(route, r.Host) })
	if n < 0 {
		if n = slices.IndexFunc(s.Routes, func(route *Route) bool { return route.Access.Tokens != nil }); n >= 0 {
			s.Routes[n].Access.allows(r, info)
		}
		return nil, ""
	}
	user, ok := s.Routes[n].Access.allows(r, info)
	if !ok {
		return nil, ""
	}
	return s.Routes[n], user
}

func (s *Site) isHost(route *Route, header string) bool {
	if route.Host != "" {
		return tunnel.SameHost(header, route.Host)
	}
	return s.has(hostName(header))
}

// takeRaw gives the visitor of a site without HTTP its tunnel.
func (v *visit) takeRaw(ctx context.Context) error {
	err := v.take(ctx, false, v.chooseRaw)
	if errors.Is(err, ErrRouteFull) {
		v.entrance.snapshot.server.Metrics.refused(ErrRouteFull)
	}
	return err
}

// chooseRaw is the tunnel of a site without HTTP, as it is now.
func (v *visit) chooseRaw() (choice, error) {
	now := v.entrance.snapshot.server.current.Load()
	site := now.sites[""]
	if !v.entrance.Plain {
		site = now.site(v.info.ServerName)
	}
	switch {
	case !v.settle():
		return choice{}, ErrPerAddress
	case site == nil || site.Pass != "" || site.Raw == nil || !v.entrance.Plain && site.Clients.policy() != v.policy:
		return choice{}, ErrAccess // a reload has made something else of what the client has shaken hands for
	}
	if err := site.Clients.check(v.info.TLS); err != nil {
		return choice{}, err
	}
	user, ok := site.Raw.Access.allows(nil, v.info)
	if !ok {
		return choice{}, ErrAccess
	}
	return choice{site, site.Raw, user}, nil
}

// choice is a route that the visitor may have.
type choice struct {
	site  *Site
	route *Route
	user  string
}

// take makes the visit a tunnel on the route that choose finds, when there is a place. While the visitor waits for that,
// choose is asked again whenever the config changes. Who cannot be seen to leave, by a context that never ends, does not wait.
// Later says that the client does not want it yet, so that it needs no place: its dial looks for one.
func (v *visit) take(ctx context.Context, later bool, choose func() (choice, error)) error {
	server := v.entrance.snapshot.server
	var waiting context.Context
	for {
		now := server.current.Load()
		c, err := choose()
		if err != nil {
			return err
		}
		if later {
			v.has(c, nil)
			return nil
		}
		open := server.openOn(c.site, c.route)
		t, err := open.enter(c.route.Limit, c.route.Queue && ctx.Done() != nil)
		switch {
		case err != nil:
			return err
		case t == nil:
			v.has(c, open)
			return nil
		case server.current.Load() != now: // whoever changed it may not have seen the turn
			open.leave(t)
			continue
		}
		if waiting == nil {
			var stop func()
			waiting, stop = v.info.Patience(ctx)
			defer stop()
		}
		placed, err := open.await(waiting, t)
		switch {
		case placed:
			v.has(c, open)
			return nil
		case errors.Is(err, tunnel.ErrTimeout):
			return ErrRouteFull
		case err != nil:
			return err
		}
	}
}

// has notes that the visit has a place, in open if anybody counts.
func (v *visit) has(c choice, open *places) {
	v.site, v.route, v.user, v.open = c.site, c.route, c.user, open
	v.info.Path = c.route.Path
	v.note()
}

// ServeHTTP answers whoever gets no tunnel, as the site behind it does.
func (v *visit) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.settle()
	site := v.current(r)
	if site == nil || !v.entrance.Plain && v.belongsElsewhere(site, r.Host) {
		// A browser then asks again on a new connection (RFC 9110, section 15.5.20).
		w.Header().Set("Connection", "close")
		http.Error(w, http.StatusText(http.StatusMisdirectedRequest), http.StatusMisdirectedRequest)
		return
	}
	if tunnel.IsUpgrade(r) {
		if route, _ := site.route(r, v.info); route != nil { // it was full, or still is
			if errors.Is(v.full, ErrRouteFull) { // who has left while it waited was not refused
				v.entrance.snapshot.server.Metrics.refused(ErrRouteFull)
			}
			w.Header().Set("Retry-After", "5")
			http.Error(w, http.StatusText(http.StatusServiceUnavailable), http.StatusServiceUnavailable)
			return
		}
		scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if strings.EqualFold(scheme, "Bearer") && slices.ContainsFunc(site.Routes, func(route *Route) bool { return route.Access.Tokens != nil }) {
			r.Header.Del("Authorization") // a token with a mistyped path is not for the website
		}
	}
	if site.Behind == nil {
		http.NotFound(w, r)
		return
	}
	site.Behind.ServeHTTP(w, r)
}

// belongsElsewhere tells whether host is a name of another site than the one that the client has shaken hands
// with: browsers use one connection for all names of its certificate (RFC 9113, section 9.1.1).
func (v *visit) belongsElsewhere(site *Site, host string) bool {
	other := siteNamed(v.entrance.snapshot.server.current.Load().sites, hostName(host))
	return other != nil && other != site && len(other.Names) > 0
}

// note tells the log, and those who dial, what was chosen.
func (v *visit) note() {
	v.info.Attrs = nil // a connection notes this for each of its tunnels
	if site := v.siteLabel(); site != "" {
		v.info.Attrs = []any{"site", site, "route", v.routeLabel()}
	}
	if v.user != "" {
		v.info.Attrs = append(v.info.Attrs, "user", v.user)
	}
}

func (v *visit) siteLabel() string {
	if v.site == nil {
		return ""
	}
	return v.site.label()
}

// passLabel is what logs call the way of connections that are passed on untouched.
const passLabel = "pass"

func (v *visit) routeLabel() string {
	if v.route == nil {
		return passLabel
	}
	return v.route.label()
}

// leave gives back what the visit has taken of limits.
func (v *visit) leave() {
	if v.open != nil {
		v.open.give()
	}
	if !v.uncounted {
		v.entrance.snapshot.server.addresses.leave(&v.guest)
	}
}

// dial reaches the target that was chosen.
func dial(ctx context.Context, info *tunnel.Info) (tunnel.Conn, error) {
	v := visitOf(info)
	v.stage = atTarget
	c, err := v.reach(ctx)
	if err != nil {
		return nil, err
	}
	proxy := v.site.Proxy
	if v.route != nil {
		proxy = v.route.Proxy
	}
	if proxy == 0 {
		return c, nil
	}
	if info.Target == tunnel.TargetEcho {
		return c, v.noteDetails() // for the next tunnel, when nothing is known of TLS any more
	}
	if err := v.writeProxyHeader(ctx, c, proxy); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// reach dials what the config says or, where it lets it, what the client says.
func (v *visit) reach(ctx context.Context) (tunnel.Conn, error) {
	config := v.entrance.snapshot.config
	reach := config.Dial
	if reach == nil {
		reach = new(tunnel.Dialer).Dial
	}
	if v.route == nil {
		return reach(ctx, v.site.Pass)
	}
	if v.open == nil { // it has had no use for a place before
		idle := v.idle
		v.idle = nil
		switch {
		case !v.entrance.snapshot.server.room.rise(idle):
			return nil, v.tooLate(ErrFull)
		case !v.settle():
			return nil, v.tooLate(ErrPerAddress)
		}
		var denied error
		err := v.take(ctx, false, func() (c choice, err error) {
			c, denied = v.stillMay()
			return c, denied
		})
		switch {
		case denied != nil:
			return nil, v.tooLate(denied)
		case errors.Is(err, ErrRouteFull):
			v.entrance.snapshot.server.refused(err)
			return nil, &tunnel.TargetError{Reason: tunnel.ReasonBusy, Err: err}
		case err != nil:
			return nil, err
		}
	}
	switch {
	case v.info.Target == tunnel.TargetEcho:
		return tunnel.NewEcho(), nil
	case v.info.Target != "":
		return dialChosen(ctx, config, v.route.Targets, v.info.Target)
	case v.route.Target == "":
		return nil, errNoOwnTarget
	}
	return reach(ctx, v.route.Target)
}

// tooLate is why a connection on which the edge has waited gets no tunnel any more. It is no failure of the target; the client may ask again
// in another handshake.
func (v *visit) tooLate(err error) error {
	v.stage = inRequest
	return tunnel.Told{Err: fmt.Errorf("%w: %w", tunnel.ErrNotTaken, err)}
}

// hostName is the host of a Host header without its port, in lower case, as server names are.
func hostName(header string) string {
	name := header
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
}
