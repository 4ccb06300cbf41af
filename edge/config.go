package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"raimon/tunnel"
)

// Config says what a Server does. It does not change once a Server has it: Server.Apply puts another in
// its place.
type Config struct {
	// Listeners are where connections come in; at least one.
	Listeners []Listener
	// Listen opens them; Log and Have in it are not used.
	Listen tunnel.ListenConfig
	// Sites are what is served, by server name: the exact name wins, then the longest wildcard, then the
	// site without names. At least one.
	Sites []*Site
	// Challenges has the certificates that a CA wants to see (TLS-ALPN-01, RFC 8737), for whatever name
	// that is not passed on. Nil: none.
	Challenges func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Dial reaches targets, with an address in the form of tunnel.ParseAddress. Nil is a tunnel.Dialer.
	Dial func(ctx context.Context, address string) (tunnel.Conn, error)
	// DialAllowed reaches targets that clients have chosen, and connects to no address for which allow has an error. Nil is
	// that of a tunnel.Dialer.
	DialAllowed func(ctx context.Context, address string, allow func(netip.AddrPort) error) (tunnel.Conn, error)
	// Limits bound what strangers can make us do.
	Limits Limits

	// Timeout, Linger and Drain are those of tunnel.Forwarder, Ping that of tunnel.WebSocket.
	Timeout, Linger, Drain, Ping time.Duration
	// HeaderSize, IdleTimeout and BodyTimeout are those of tunnel.WebSocket.
	HeaderSize               int
	IdleTimeout, BodyTimeout time.Duration
	// Level is the level of the log line about a tunnel that went well; zero is slog.LevelInfo.
	Level slog.Level
}

// Listener is where connections come in.
type Listener struct {
	// Address is in the form of tunnel.ParseAddress.
	Address string
	// Plain means no TLS: for loopback, or where something in front of us speaks it. Sites are then
	// found by the Host header of each request.
	Plain bool
	// ProxyFrom are the networks of which each connection begins with a PROXY header, v1 or v2, that tells
	// the client's address. From elsewhere such a header is what it looks like: no TLS and no HTTP.
	ProxyFrom []netip.Prefix
}

// Site is what is served under some names.
type Site struct {
	// Names are server names in lower case, such as example.com and *.example.com; a star stands for one
	// label. None: every name that no other site has, and connections without a server name.
	Names []string
	// Label is what logs and metrics call the site; empty is the first name. Without any, logs name neither site nor route.
	Label string

	// Pass is an address to which the connection goes untouched, TLS and all. Proxy is the version of the PROXY header
	// that it gets before that: 1, 2, or 0 for none. Everything below is not used then.
	Pass  string
	Proxy int

	// Certificate is for tls.Config.GetCertificate. Nil and no error refuses the name.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Clients says which client certificates are asked for; nil asks for none.
	Clients *Clients
	// Tickets names the site towards other edges with the same storage; empty is its Label.
	Tickets string

	// Raw makes the site a tunnel without HTTP: all that comes is for its target. Routes and Behind are not used then.
	Raw *Route
	// Routes are the tunnels of the site, found by path.
	Routes []*Route
	// Behind answers everybody who does not ask for a tunnel, or may not have it. Nil answers 404.
	Behind http.Handler
}

// Route is the way of a tunnel to its target.
type Route struct {
	// Path is the request target of the upgrade, to the letter, with its query if it has one.
	Path string
	// Host is what the Host header has to be, as in tunnel.SameHost; empty is any of the site's names, any
	// at all where the site has none.
	Host string
	// Target is an address in the form of tunnel.ParseAddress. Empty with Targets: each client has to name one.
	Target string
	// Targets are what clients may choose instead. None: nothing. They are reached from this machine, with all that it may do:
	// whoever Access lets in may go there.
	Targets []TargetRule
	// Label is what logs and metrics call the route; empty is its Path without the query, which may be a
	// secret, or "raw".
	Label string

	// Access says who may use the route.
	Access Access
	// Limit is how many tunnels may be open at a time; zero means no limit. More are refused. With Queue, as many
	// as Limit may wait for a place, each for Config.Timeout.
	Limit int
	Queue bool
	// Proxy is the version of the PROXY header that the target gets: 1, 2, or 0 for none.
	Proxy int
}

func (s *Site) label() string {
	if s.Label == "" && len(s.Names) > 0 {
		return s.Names[0]
	}
	return s.Label
}

func (r *Route) label() string {
	switch {
	case r.Label != "":
		return r.Label
	case r.Path != "":
		path, _, _ := strings.Cut(r.Path, "?")
		return path
	}
	return "raw"
}

// has tells whether one of the site's names is name, which is in lower case.
func (s *Site) has(name string) bool {
	if len(s.Names) == 0 || slices.Contains(s.Names, name) {
		return true
	}
	_, parent, found := strings.Cut(name, ".")
	return found && slices.Contains(s.Names, "*."+parent)
}

// check finds what no Server could serve.
func (c *Config) check() error {
	if len(c.Listeners) == 0 {
		return errors.New("no listener")
	}
	if len(c.Sites) == 0 {
		return errors.New("no site")
	}
	bound := make(map[string]bool)
	for _, l := range c.Listeners {
		if bound[l.Address] {
			return fmt.Errorf("two listeners have the address %s", l.Address)
		}
		bound[l.Address] = true
	}
	taken := make(map[string]bool)
	unnamed := false
	for _, s := range c.Sites {
		for _, name := range s.Names {
			if taken[name] {
				return fmt.Errorf("two sites have the name %s", name)
			}
			taken[name] = true
		}
		if len(s.Names) == 0 && unnamed {
			return errors.New("two sites have no names")
		}
		unnamed = unnamed || len(s.Names) == 0
	}
	return nil
}

// siteNamed returns the site for a server name, which is in lower case; nil: there is none.
func siteNamed(sites map[string]*Site, name string) *Site {
	if s := sites[name]; s != nil {
		return s
	}
	if _, parent, found := strings.Cut(name, "."); found {
		if s := sites["*."+parent]; s != nil {
			return s
		}
	}
	return sites[""]
}
