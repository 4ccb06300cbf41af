package tunnel

import (
	"context"
	"crypto/tls"
	"net"
	"net/url"
	"syscall"
	"time"
)

// Dialer opens the connection that a tunnel is built on. The zero value dials directly.
//
// Give ctx a deadline: net.Dialer divides it between the addresses of a name, so that a dead one
// leaves time for the next. Without one, a dead address costs what the system allows, minutes.
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
	FastOpen bool
	// Fwmark is the mark (SO_MARK) of the sockets; zero means none.
	// It needs Linux and CAP_NET_ADMIN.
	Fwmark uint32
	// ProtectPath is the unix socket on which an Android VPN excludes sockets from itself; empty
	// means none.
	ProtectPath string

	resolver *net.Resolver // for tests
}

// Dial connects to address, in the forms of ParseAddress. Names are looked up anew each time, by
// the proxy if there is one. A name's addresses are tried in turn, IPv6 and IPv4 side by side
// (RFC 8305). An error of a proxy, or on the way to it, is a *ProxyError.
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

func (d *Dialer) direct(ctx context.Context, network, name string) (Conn, error) {
	nd := net.Dialer{Resolver: d.resolver, ControlContext: d.control}
	c, err := nd.DialContext(ctx, network, name)
	if err != nil {
		return nil, err
	}
	return c.(Conn), nil // *net.TCPConn or *net.UnixConn
}

func (d *Dialer) control(ctx context.Context, network, _ string, raw syscall.RawConn) error {
	if network == "unix" {
		return nil
	}
	return withDescriptor(raw, func(fd uintptr) error {
		if d.FastOpen {
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
