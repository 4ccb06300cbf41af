package tunnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Dialer opens the connection that a tunnel is built on. The zero value dials directly and asks the
// system's resolver. Keep one Dialer for many connections: it remembers which addresses work.
//
// Give ctx an end: without one, dead addresses cost what the system allows, minutes.
type Dialer struct {
	// Proxy returns the proxy for an address, as ProxyFromOption does; nil, or a nil URL, means none.
	// Unix sockets are never dialed through a proxy.
	Proxy func(address string) (*url.URL, error)
	// ProxyTLS is for https proxies; nil means the system's roots. ServerName is filled in.
	ProxyTLS *tls.Config
	// ProxyUser gives user and password for the proxy, for each connection anew, in place of those in its URL.
	// Nil takes those. An error of it ends Dial; it must not hold the password.
	ProxyUser func(ctx context.Context) (*url.Userinfo, error)
	// UserAgent is what HTTP proxies are told (RFC 9110, section 10.1.5), free of control characters; empty: nothing.
	UserAgent string
	// FastOpen sends the first bytes in the SYN (RFC 7413) where the system can; elsewhere it does
	// nothing. Only for transports where the client speaks first: to an edge that is known
	// already, the connection is not opened before the first Write, which then reports a dead edge.
	//
	// Of a name with several addresses only the one that worked a few seconds ago is dialed so:
	// the others race for an answer, and fast open does not wait for one.
	FastOpen bool
	// Fwmark is the mark (SO_MARK) of the sockets; zero means none.
	// It needs Linux and CAP_NET_ADMIN.
	Fwmark uint32
	// ProtectPath is the unix socket on which an Android VPN excludes sockets from itself; empty
	// means none.
	ProtectPath string
	// Resolver looks up the names that are dialed, with a proxy only the proxy's own; nil means the
	// system's.
	Resolver Resolver
	// Log hears, at debug level, of connections that came about though their name was not found;
	// nil means no log.
	Log *slog.Logger

	allow   func(netip.AddrPort) error // of DialAllowed; nil: everything
	lookups lookups
	memory  memory
}

// Dial connects to address, in the forms of ParseAddress. Names are looked up anew each time, by
// the proxy if there is one. A name's addresses race (RFC 8305): the one that worked last time
// first, then IPv6 and IPv4 in turn, the next after 250 ms or as soon as one has failed, until one is
// connected or all have failed. While a lookup hangs, or when it fails, addresses that have worked
// earlier are tried: whoever takes them must know the edge by its key or certificate.
// An error of a proxy, or on the way to it, is a *ProxyError.
//
// The result is a bare *net.TCPConn or *net.UnixConn wherever nothing needs to sit in between:
// an https proxy needs TLS, and bytes that came with a proxy's answer are kept in a Conn with
// Detach. When ctx ends, so does Dial; afterwards ctx has no power over the connection.
func (d *Dialer) Dial(ctx context.Context, address string) (Conn, error) {
	network, name, err := ParseAddress(address)
	if err != nil {
		return nil, err
	}
	if network == "unix" || d.Proxy == nil {
		return d.direct(ctx, network, name)
	}
	via, err := d.Proxy(name)
	if err != nil {
		return nil, err
	}
	if via == nil {
		return d.direct(ctx, network, name)
	}
	return d.throughProxy(ctx, via, name)
}

// Clone returns a Dialer with the fields of d, which remembers nothing yet.
func (d *Dialer) Clone() *Dialer {
	return &Dialer{
		Proxy: d.Proxy, ProxyTLS: d.ProxyTLS, ProxyUser: d.ProxyUser, UserAgent: d.UserAgent,
		FastOpen: d.FastOpen, Fwmark: d.Fwmark, ProtectPath: d.ProtectPath, Resolver: d.Resolver, Log: d.Log,
	}
}

// Forget is to be called when the network has changed: what worked in the old one is not tried first in the
// new one, but still when lookups fail; where an answer of the resolver is awaited, it is asked again, and it
// gives up connections that it has kept. Connections that were dialed stay.
func (d *Dialer) Forget() {
	d.memory.outdate()
	if r, ok := d.Resolver.(interface{ Forget() }); ok {
		r.Forget()
	}
	d.lookups.forget()
}

// Doubt is to be called when a connection that Dial has made to address came to nothing: nobody has answered on it, or
// somebody else has. For a minute, or until Forget, the other addresses of the name come before the one that c has. It tells whether
// one of them may do better. Where a proxy has chosen the address, it does nothing.
func (d *Dialer) Doubt(address string, c net.Conn) (hasOther bool) {
	name, a, ok := d.chosen(address, c)
	return ok && d.memory.doubt(name, a)
}

// Trust takes a Doubt back: it was the edge who answered on c.
func (d *Dialer) Trust(address string, c net.Conn) {
	if name, a, ok := d.chosen(address, c); ok {
		d.memory.trust(name, a)
	}
}

// chosen is the address that Dial has chosen for c, and the name that memory has it under.
func (d *Dialer) chosen(address string, c net.Conn) (name string, a netip.Addr, ok bool) {
	network, name, err := ParseAddress(address)
	to, isTCP := c.RemoteAddr().(*net.TCPAddr)
	if err != nil || network != "tcp" || !isTCP || d.Via(address) != "" {
		return "", netip.Addr{}, false
	}
	return name, to.AddrPort().Addr().Unmap(), true
}

// DialUDP opens a socket for a name server at address, an IP address with port: marked and protected
// as connections are, never through a proxy.
func (d *Dialer) DialUDP(ctx context.Context, address netip.AddrPort) (*net.UDPConn, error) {
	nd := net.Dialer{ControlContext: d.control(false)}
	c, err := nd.DialContext(ctx, "udp", address.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// DialAllowed is Dial, without a proxy, for an address that is not trusted: of those that a name has it connects only to such
// for which allow has no error. It is asked last of all, about the very address, so that no answer of the DNS gets around it.
// Unix sockets are refused.
func (d *Dialer) DialAllowed(ctx context.Context, address string, allow func(netip.AddrPort) error) (Conn, error) {
	network, name, err := ParseAddress(address)
	if err == nil && network != "tcp" {
		err = fmt.Errorf("address %q: it is no address of TCP", address)
	}
	if err != nil {
		return nil, err
	}
	own := d.Clone() // what worked for others says nothing about what is allowed
	own.allow = allow
	return own.direct(ctx, network, name)
}

func (d *Dialer) resolver() Resolver {
	if d.Resolver == nil {
		return net.DefaultResolver
	}
	return d.Resolver
}

// Via is the address of the proxy through which Dial goes to address; empty: it goes there directly, or nowhere.
func (d *Dialer) Via(address string) string {
	network, name, err := ParseAddress(address)
	if err != nil || network == "unix" || d.Proxy == nil {
		return ""
	}
	via, err := d.Proxy(name)
	if err != nil || via == nil {
		return ""
	}
	return proxyAddress(via)
}

// Through adds to err, of a handshake on a connection that Dial made to address, the proxy that it goes through,
// which may have answered in place of the other side.
func (d *Dialer) Through(address string, err error) error {
	via := d.Via(address)
	if via == "" {
		return err
	}
	return &ProxyError{Proxy: via, Connected: true, Err: err}
}

// direct dials without a proxy; only names need a race.
func (d *Dialer) direct(ctx context.Context, network, name string) (Conn, error) {
	if network == "unix" {
		return d.connect(ctx, network, name, false)
	}
	host, port, err := net.SplitHostPort(name)
	if err != nil {
		return nil, err
	}
	if _, err := netip.ParseAddr(host); err == nil || host == "" {
		return d.connect(ctx, network, name, d.FastOpen)
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	return d.race(ctx, host, uint16(number))
}

// connect dials one address, which needs no lookup.
func (d *Dialer) connect(ctx context.Context, network, address string, fastOpen bool) (Conn, error) {
	nd := net.Dialer{KeepAliveConfig: dialKeepAlive, ControlContext: d.control(fastOpen)}
	c, err := nd.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return c.(Conn), nil // *net.TCPConn or *net.UnixConn
}

// dialKeepAlive is what package net sets, save the number of probes, which is the system's: on Linux nine as well, unless it was changed.
var dialKeepAlive = net.KeepAliveConfig{Enable: true, Count: -1}

// control prepares a socket before it is connected.
func (d *Dialer) control(fastOpen bool) func(context.Context, string, string, syscall.RawConn) error {
	return func(ctx context.Context, network, address string, raw syscall.RawConn) error {
		if network == "unix" {
			return nil
		}
		if err := d.allows(address); err != nil {
			return err
		}
		return withDescriptor(raw, func(fd uintptr) error {
			if strings.HasPrefix(network, "tcp") {
				inlineUrgent(fd)
			}
			if fastOpen {
				connectFastOpen(fd)
			}
			if d.Fwmark != 0 {
				if err := setFwmark(fd, d.Fwmark); err != nil {
					return err
				}
			}
			if d.ProtectPath != "" {
				return protect(ctx, fd, d.ProtectPath)
			}
			return nil
		})
	}
}

// allows asks allow about an address with port.
func (d *Dialer) allows(address string) error {
	if d.allow == nil {
		return nil
	}
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	return d.allow(at)
}

// interruptible runs step, which reads and writes c, and makes it fail when ctx ends.
// After an error c is of no use.
func interruptible(ctx context.Context, c net.Conn, step func() error) error {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.SetDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	err := step()
	if !stop() {
		<-interrupted
		return context.Cause(ctx)
	}
	return err
}
