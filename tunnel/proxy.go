package tunnel

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
)

// ProxyFromOption returns a function for Dialer.Proxy. What option says:
//
//   - a URL: this proxy, always. Its scheme is http (the default), https, socks5, socks5h or socks
//     (all three SOCKS5); names are resolved by the proxy. User and password may be in it.
//   - off: no proxy.
//   - nothing: what the environment says, read through getenv: https_proxy, else all_proxy, and
//     no_proxy for exceptions, each in lower or upper case. The environment never sends connections
//     to the machine itself (localhost, 127.0.0.0/8, ::1, empty host) through a proxy.
//
// No error shows the URL: it may hold a password.
func ProxyFromOption(option string, getenv func(string) string) (func(address string) (*url.URL, error), error) {
	switch option {
	case "off":
		return func(string) (*url.URL, error) { return nil, nil }, nil
	case "":
		return proxyFromEnvironment(getenv)
	}
	via, err := parseProxy(option)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	return func(string) (*url.URL, error) { return via, nil }, nil
}

func proxyFromEnvironment(getenv func(string) string) (func(address string) (*url.URL, error), error) {
	name := ProxyVariable(getenv)
	if name == "" {
		return func(string) (*url.URL, error) { return nil, nil }, nil
	}
	// httpproxy would take what it cannot parse as "no proxy" and dial past it.
	via, err := parseProxy(getenv(name))
	if err != nil {
		return nil, fmt.Errorf("environment variable %s: %w", name, err)
	}
	choose := (&httpproxy.Config{
		HTTPSProxy: via.String(),
		NoProxy:    cmp.Or(getenv("no_proxy"), getenv("NO_PROXY")),
	}).ProxyFunc()
	return func(address string) (*url.URL, error) {
		if strings.HasPrefix(address, ":") {
			return nil, nil
		}
		return choose(&url.URL{Scheme: "https", Host: strings.ToLower(address)})
	}, nil
}

// ProxyVariable is the variable of the environment that names the proxy; empty: none does.
func ProxyVariable(getenv func(string) string) string {
	for _, name := range []string{"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"} {
		if getenv(name) != "" {
			return name
		}
	}
	return ""
}

// parseProxy leaves out what url.Parse says, which quotes pieces of the URL and so of the password.
func parseProxy(s string) (*url.URL, error) {
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" {
		return nil, errors.New("not a URL; write http://user:password@host:port, and special characters in the password as %40 for @")
	}
	if proxyPort[u.Scheme] == "" {
		return nil, fmt.Errorf("unknown scheme %q; known are http, https, socks5 and socks5h", u.Scheme)
	}
	if _, _, err := ParseAddress(proxyAddress(u)); err != nil {
		return nil, err
	}
	return u, nil
}

// proxyPort is the port of a proxy whose URL names none, by scheme.
var proxyPort = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080", "socks": "1080"}

// proxyAddress is fit for errors and logs: it has no user and no password.
func proxyAddress(via *url.URL) string {
	return net.JoinHostPort(via.Hostname(), cmp.Or(via.Port(), proxyPort[via.Scheme]))
}

// throughProxy connects to address through via. Its errors are *ProxyError.
func (d *Dialer) throughProxy(ctx context.Context, via *url.URL, address string) (Conn, error) {
	failed := func(err error, user *url.Userinfo) error {
		return &ProxyError{Proxy: proxyAddress(via), Credentials: user != nil, Err: err}
	}
	if strings.HasPrefix(address, ":") {
		return nil, failed(fmt.Errorf("address %q: the host is missing", address), nil)
	}
	user, err := d.proxyUser(ctx, via) // first: a proxy would not wait for it
	if err != nil {
		return nil, failed(fmt.Errorf("user and password: %w", err), nil)
	}
	c, err := d.direct(ctx, "tcp", proxyAddress(via))
	if err != nil {
		return nil, failed(err, user)
	}
	stream, err := d.askProxy(ctx, c, via, user, address)
	if err != nil {
		c.Close()
		return nil, failed(err, user)
	}
	return stream, nil
}

// proxyUser is who we are to the proxy; nil: nobody in particular.
func (d *Dialer) proxyUser(ctx context.Context, via *url.URL) (*url.Userinfo, error) {
	if d.ProxyUser == nil {
		return via.User, nil
	}
	return d.ProxyUser(ctx)
}

func (d *Dialer) askProxy(ctx context.Context, c Conn, via *url.URL, user *url.Userinfo, address string) (Conn, error) {
	switch via.Scheme {
	case "socks5", "socks5h", "socks":
		err := interruptible(ctx, c, func() error { return askSOCKS5(c, proxyAddress(via), user, address) })
		if err != nil {
			return nil, fmt.Errorf("SOCKS5 %s: %w", address, err)
		}
		return c, nil
	case "https":
		secure, err := (&TLS{ClientConfig: d.proxyTLS(via.Hostname())}).Client(ctx, c)
		if err != nil {
			return nil, err
		}
		c = secure
	case "http":
	default:
		return nil, fmt.Errorf("unknown scheme %q", via.Scheme)
	}
	var stream Conn
	err := interruptible(ctx, c, func() (err error) {
		stream, err = askHTTP(c, connectHead(address, d.UserAgent, user))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("CONNECT %s: %w", address, err)
	}
	return stream, nil
}

func (d *Dialer) proxyTLS(name string) *tls.Config {
	config := &tls.Config{}
	if d.ProxyTLS != nil {
		config = d.ProxyTLS.Clone()
	}
	config.ServerName = cmp.Or(config.ServerName, name)
	config.NextProtos = []string{"http/1.1"}
	return config
}

// askSOCKS5 asks the proxy at the other end of c for a connection to address (RFC 1928), with user and
// password (RFC 1929) if there is a user. It reads not a byte more than the answer.
func askSOCKS5(c Conn, via string, user *url.Userinfo, address string) error {
	var auth *proxy.Auth
	if user != nil {
		password, _ := user.Password()
		auth = &proxy.Auth{User: user.Username(), Password: password}
	}
	dialer, err := proxy.SOCKS5("tcp", via, auth, dialed{c})
	if err != nil {
		return err
	}
	// What it returns is a wrapper around c; c alone can be spliced. It gets no ctx: when ctx ends, it
	// may say only that a read timed out.
	_, err = dialer.(proxy.ContextDialer).DialContext(context.Background(), "tcp", address)
	var opErr *net.OpError
	if errors.As(err, &opErr) && strings.HasPrefix(opErr.Op, "socks") {
		err = opErr.Err // the rest of it repeats both addresses
	}
	if errors.Is(err, io.EOF) {
		return ErrNoAnswer
	}
	if err == nil {
		return nil
	}
	if reply, found := strings.CutPrefix(err.Error(), "unknown error "); found { // each that RFC 1928, section 6 knows
		return errors.New("the proxy says: " + reply)
	}
	return err
}

// dialed lets package proxy use a connection that is there already.
type dialed struct{ c net.Conn }

func (d dialed) Dial(string, string) (net.Conn, error) { return d.c, nil }

func (d dialed) DialContext(context.Context, string, string) (net.Conn, error) { return d.c, nil }

// withPending returns c itself, or with what r has read ahead of it. An io.Reader on top of c
// hides *net.TCPConn, so it is used only if there is something to keep.
func withPending(c Conn, r *bufio.Reader) Conn {
	if r.Buffered() == 0 {
		return c
	}
	pending, _ := r.Peek(r.Buffered())
	return &readAhead{Conn: c, pending: bytes.Clone(pending)}
}

// readAhead is a Conn of which some bytes have been read already.
type readAhead struct {
	Conn
	pending []byte
}

// ReadAhead returns c with bytes before it that were read from it already, and that Read returns first. It
// keeps them.
func ReadAhead(c Conn, pending []byte) Conn {
	if len(pending) == 0 {
		return c
	}
	return &readAhead{Conn: c, pending: pending}
}

// Read returns the pending bytes first.
func (r *readAhead) Read(b []byte) (int, error) {
	if len(r.pending) == 0 {
		return r.Conn.Read(b)
	}
	n := copy(b, r.pending)
	r.pending = r.pending[n:]
	return n, nil
}

func (r *readAhead) below() Conn { return r.Conn }

// Detach returns what has been read ahead and not yet been returned by Read, which the caller
// owns from now on, and the connection to read the rest from. The readAhead must not be used any more.
func (r *readAhead) Detach() (pending []byte, c Conn) {
	return r.pending, r.Conn
}
