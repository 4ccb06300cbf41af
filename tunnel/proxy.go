package tunnel

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
)

// maxProxyHead is how many bytes the head of a proxy's answer may have.
const maxProxyHead = 64 << 10

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
	var via *url.URL
	for _, name := range []string{"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"} {
		value := getenv(name)
		if value == "" {
			continue
		}
		// httpproxy would take what it cannot parse as "no proxy" and dial past it.
		var err error
		if via, err = parseProxy(value); err != nil {
			return nil, fmt.Errorf("environment variable %s: %w", name, err)
		}
		break
	}
	if via == nil {
		return func(string) (*url.URL, error) { return nil, nil }, nil
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

func (d *Dialer) throughProxy(ctx context.Context, via *url.URL, address string) (Conn, error) {
	if strings.HasPrefix(address, ":") {
		return nil, fmt.Errorf("proxy %s: address %q: the host is missing", proxyAddress(via), address)
	}
	c, err := d.direct(ctx, "tcp", proxyAddress(via))
	if err != nil {
		return nil, fmt.Errorf("proxy %s: %w", proxyAddress(via), err)
	}
	stream, err := d.askProxy(ctx, c, via, address)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("proxy %s: %w", proxyAddress(via), err)
	}
	return stream, nil
}

func (d *Dialer) askProxy(ctx context.Context, c Conn, via *url.URL, address string) (Conn, error) {
	switch via.Scheme {
	case "socks5", "socks5h", "socks":
		err := interruptible(ctx, c, func() error { return askSOCKS5(c, via, address) })
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
		stream, err = askHTTP(c, via, address)
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

// askHTTP sends a CONNECT request (RFC 9110, section 9.3.6) over c and reads the head of the answer.
func askHTTP(c Conn, via *url.URL, address string) (Conn, error) {
	if _, err := c.Write(connectHead(via, address)); err != nil {
		return nil, err
	}
	limited := &io.LimitedReader{R: c, N: maxProxyHead}
	r := bufio.NewReader(limited)
	for {
		answer, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
		if err != nil {
			return nil, answerError(err, limited.N == 0)
		}
		switch {
		case answer.StatusCode/100 == 2:
			// Content-Length and Transfer-Encoding mean nothing here: the stream begins after the head.
			return withPending(c, r), nil
		case answer.StatusCode/100 == 1 && answer.StatusCode != http.StatusSwitchingProtocols:
			continue
		}
		return nil, errors.New(printable(answer.Status))
	}
}

// connectHead is one slice, so that it is one write and, with TLS, one record.
func connectHead(via *url.URL, address string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", address, address)
	if via.User != nil {
		password, _ := via.User.Password()
		credentials := via.User.Username() + ":" + password
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(credentials)))
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// answerError keeps errors of the connection and replaces those of the parser, which quote up to
// 64 KiB of what the proxy sent.
func answerError(err error, tooLong bool) error {
	var netErr net.Error
	switch {
	case tooLong:
		return fmt.Errorf("the head of the answer has more than %d bytes", maxProxyHead)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &netErr):
		return fmt.Errorf("read answer: %w", err)
	default:
		return errors.New("the answer is not HTTP/1")
	}
}

// printable makes a proxy's status line fit for a terminal.
func printable(status string) string {
	status = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, status)
	return status[:min(len(status), 200)]
}

// askSOCKS5 asks for a connection to address (RFC 1928) over c, with user and password (RFC 1929)
// if via has them. It reads not a byte more than the answer.
func askSOCKS5(c Conn, via *url.URL, address string) error {
	var auth *proxy.Auth
	if via.User != nil {
		password, _ := via.User.Password()
		auth = &proxy.Auth{User: via.User.Username(), Password: password}
	}
	dialer, err := proxy.SOCKS5("tcp", proxyAddress(via), auth, dialed{c})
	if err != nil {
		return err
	}
	// What it returns is a wrapper around c; c alone can be spliced. It gets no ctx: when ctx ends, it
	// may say only that a read timed out.
	_, err = dialer.(proxy.ContextDialer).DialContext(context.Background(), "tcp", address)
	var opErr *net.OpError
	if errors.As(err, &opErr) && strings.HasPrefix(opErr.Op, "socks") {
		return opErr.Err // the rest of it repeats both addresses
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
