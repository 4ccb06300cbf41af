package command

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// proxyOf serves each connection with serve, and waits for them all when the test ends.
func proxyOf(t testing.TB, serve func(*net.TCPConn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l.Addr().String()
}

// answers reads the head of a request, says answer and hangs up.
func answers(answer string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		io.WriteString(c, answer)
		c.CloseWrite()
		io.Copy(io.Discard, c)
	}
}

// says answers without waiting for anything, and stays until the client leaves.
func says(answer string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		io.WriteString(c, answer)
		io.Copy(io.Discard, c)
	}
}

// then resets the connection after answer, when the client has said more than its request.
func then(answer string, last func(*net.TCPConn)) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err != nil {
			return
		}
		io.WriteString(c, answer)
		r.ReadByte()
		last(c)
	}
}

func resets(c *net.TCPConn) { c.SetLinger(0) }

// failure is what becomes of a tunnel through the proxy at url.
func failure(t testing.TB, url string, connect tunnel.Transport, timeout time.Duration) error {
	t.Helper()
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), timeout, tunnel.ErrTimeout)
	defer cancel()
	choose, err := tunnel.ProxyFromOption(url, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := &tunnel.Dialer{Proxy: choose}
	const edge = "edge.example.com:443"
	c, err := d.Dial(ctx, edge)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = connect.Client(ctx, c)
	if err == nil {
		t.Fatalf("a tunnel through %s came about", url)
	}
	return d.Through(edge, err)
}

// What a proxy does in place of a connection is told in the error, and the hint says what to do about it.
func TestProxyFailures(t *testing.T) {
	const established = "HTTP/1.1 200 Connection established\r\n\r\n"
	overTLS := tunnel.Transport{&tunnel.TLS{ClientConfig: &tls.Config{ServerName: "edge.example.com"}}}
	overWS := tunnel.Transport{&tunnel.WebSocket{Host: "edge.example.com", Path: "/ws"}}
	required := "HTTP/1.1 407 Proxy Authentication Required\r\n"
	basic := required + "Proxy-Authenticate: Basic realm=\"office\"\r\n"
	page := "Content-Type: text/html\r\nContent-Length: 31\r\n\r\n<html><title>Denied</title>\r\n\r\n\r\n"
	for name, test := range map[string]struct {
		scheme     string // of the proxy, with credentials; empty: http
		serve      func(*net.TCPConn)
		connect    tunnel.Transport
		timeout    time.Duration // zero: long enough
		want, hint string
	}{
		"407":                      {serve: answers(basic + "\r\n"), want: "CONNECT edge.example.com:443: 407 Proxy Authentication Required (it takes Basic)", hint: "asks for a user and a password: proxy-auth=file:"},
		"407 without a kind":       {serve: answers(required + "\r\n"), want: ": 407 Proxy Authentication Required", hint: "proxy-auth="},
		"407 with a page":          {serve: answers(basic + page), want: "(it takes Basic)", hint: "proxy-auth="},
		"407 with half a page":     {serve: answers(basic + "Content-Length: 100000\r\n\r\n<html>"), want: "(it takes Basic)", hint: "proxy-auth="},
		"407 and never closes":     {serve: says(basic + "Content-Length: 100000\r\n\r\n<html>"), want: "(it takes Basic)", hint: "proxy-auth="},
		"407 with credentials":     {scheme: "http://jo:s3cr3t@", serve: answers(basic + "\r\n"), want: "(it takes Basic)", hint: "does not take this user and password"},
		"401 with credentials":     {scheme: "http://jo:s3cr3t@", serve: answers("HTTP/1.1 401 Unauthorized\r\n\r\n"), want: "401 Unauthorized", hint: "does not take this user and password"},
		"407 with NTLM":            {serve: answers(required + "Proxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n"), want: "(it takes Negotiate, NTLM)", hint: "cntlm or px"},
		"407 with NTLM, sent":      {scheme: "http://jo:s3cr3t@", serve: answers(required + "Proxy-Authenticate: NTLM\r\n\r\n"), want: "(it takes NTLM)", hint: "cntlm or px"},
		"407 with NTLM and Basic":  {serve: answers(required + "Proxy-Authenticate: NTLM, Basic realm=x\r\n\r\n"), want: "(it takes NTLM, Basic)", hint: "proxy-auth="},
		"closes":                   {serve: func(c *net.TCPConn) {}, want: "CONNECT edge.example.com:443: ", hint: "hangs up"},
		"closes after the request": {serve: answers(""), want: "closed the connection without an answer", hint: "hangs up"},
		"closes in its answer":     {serve: answers("HTTP/1.1 407 Proxy Auth"), want: "unexpected EOF", hint: "hangs up"},
		"silent":                   {serve: says(""), timeout: 50 * time.Millisecond, want: "CONNECT edge.example.com:443: handshake and dial took too long", hint: "did not answer in time"},
		"403":                      {serve: answers("HTTP/1.1 403 Forbidden\r\n" + page), want: `403 Forbidden (its page: "Denied")`, hint: "port 443 only"},
		"502":                      {serve: answers("HTTP/1.1 502 Bad Gateway\r\n\r\n"), want: "502 Bad Gateway", hint: "could not reach the edge"},
		"503":                      {serve: answers("HTTP/1.1 503 Service Unavailable\r\n\r\n"), want: "503 Service Unavailable", hint: "could not reach the edge"},
		"504":                      {serve: answers("HTTP/1.1 504 Gateway Timeout\r\n\r\n"), want: "504 Gateway Timeout", hint: "could not reach the edge"},
		"login":                    {serve: answers("HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\n\r\n"), want: "302 Found", hint: "in a browser"},
		"511":                      {serve: answers("HTTP/1.1 511 Network Authentication Required\r\n\r\n"), want: "511 Network", hint: "in a browser"},
		"no proxy":                 {serve: answers("HTTP/1.1 405 Method Not Allowed\r\n\r\n"), want: "405 Method Not Allowed", hint: "no proxy, or it does not know CONNECT"},
		"another protocol":         {serve: answers("SSH-2.0-x\r\n"), want: "the answer is not HTTP/1", hint: "of another kind"},
		"no TLS":                   {scheme: "https://", serve: says("HTTP/1.1 400 Bad Request\r\n\r\n"), want: "does not look like a TLS handshake", hint: "http:// in place of https://"},

		"silent after 200":     {serve: then(established, func(c *net.TCPConn) { io.Copy(io.Discard, c) }), connect: overTLS, timeout: 50 * time.Millisecond, want: "took too long", hint: "said that it was connected, and then nothing came"},
		"page after 200":       {serve: then(established, func(c *net.TCPConn) { io.WriteString(c, "HTTP/1.1 200 OK\r\n"+page) }), connect: overTLS, want: "does not look like a TLS handshake", hint: "page to log in"},
		"text after 200":       {serve: then(established, func(c *net.TCPConn) { io.WriteString(c, "<html>\r\n\r\n"); c.CloseWrite(); io.Copy(io.Discard, c) }), connect: overWS, want: "does not answer in HTTP", hint: "page to log in"},
		"reset after 200":      {serve: then(established, resets), connect: overTLS, want: "tls handshake: ", hint: "and then hung up"},
		"reset after 200, ws":  {serve: then(established, resets), connect: overWS, want: "websocket handshake: ", hint: "and then hung up"},
		"close after 200":      {serve: answers(established), connect: overTLS, want: "tls handshake: ", hint: "and then hung up"},
		"no upgrade after 200": {serve: then(established, func(c *net.TCPConn) { io.WriteString(c, "HTTP/1.1 404 Not Found\r\n\r\n") }), connect: overWS, want: "404 Not Found instead of an upgrade", hint: "host= and path="},

		"socks wants a user":         {scheme: "socks5://", serve: says("\x05\xff"), want: "no acceptable authentication methods", hint: "asks for a user and a password"},
		"socks wants another kind":   {scheme: "socks5://jo:s3cr3t@", serve: says("\x05\xff"), want: "no acceptable authentication methods", hint: "GSSAPI"},
		"socks refuses the password": {scheme: "socks5://jo:s3cr3t@", serve: says("\x05\x02\x01\x01"), want: "username/password authentication failed", hint: "does not take this user"},
		"socks has a rule":           {scheme: "socks5://", serve: says("\x05\x00\x05\x02\x00\x01"), want: "not allowed by ruleset", hint: "does not let this through"},
		"socks finds nobody":         {scheme: "socks5://", serve: says("\x05\x00\x05\x05\x00\x01"), want: "connection refused", hint: "could not reach the edge"},
		"socks has no way":           {scheme: "socks5://", serve: says("\x05\x00\x05\x04\x00\x01"), want: "host unreachable", hint: "could not reach the edge"},
		"socks closes":               {scheme: "socks5://", serve: func(c *net.TCPConn) { io.ReadFull(c, make([]byte, 3)) }, want: "without an answer", hint: "hangs up"},
		"socks is none":              {scheme: "socks5://", serve: says("HTTP/1.1 400 Bad Request\r\n\r\n"), want: "unexpected protocol version", hint: "of another kind"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := proxyOf(t, test.serve)
			scheme := test.scheme
			if scheme == "" {
				scheme = "http://"
			}
			err := failure(t, scheme+address, test.connect, test.timeout)
			head := "proxy " + address + ": "
			if test.connect != nil {
				head = "through " + head
			}
			if !strings.HasPrefix(err.Error(), head) || !strings.Contains(err.Error(), test.want) || len(err.Error()) > 300 {
				t.Errorf("got  %v\nwant %s… %s", err, head, test.want)
			}
			if hint := Hint(err); !strings.Contains(hint, test.hint) || test.hint == "" {
				t.Errorf("%v: the hint is %q, want one with %q", err, hint, test.hint)
			}
			if strings.Contains(err.Error(), "s3cr3t") {
				t.Errorf("the password is in %v", err)
			}
		})
	}
}

func TestProxyIsNotThere(t *testing.T) {
	err := failure(t, "http://127.0.0.1:1", nil, 0) // tcpmux: nobody has it
	if hint := Hint(err); !strings.Contains(hint, "nothing listens at the proxy's address") {
		t.Errorf("%v: the hint is %q", err, hint)
	}
}

// A certificate that nobody trusts: of the proxy itself, or of what stands behind it.
func TestProxyWithUnknownCertificate(t *testing.T) {
	ca := tunneltest.NewCA(t)
	config := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "127.0.0.1", "edge.example.com")}}
	shake := func(c *net.TCPConn) {
		if err := tls.Server(c, config).Handshake(); err == nil {
			t.Error("the certificate was trusted")
		}
	}
	proxy := proxyOf(t, shake)
	breaker := proxyOf(t, func(c *net.TCPConn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		shake(c)
	})
	overTLS := tunnel.Transport{&tunnel.TLS{ClientConfig: &tls.Config{ServerName: "edge.example.com"}}}
	for url, want := range map[string]string{"https://" + proxy: "the certificate of an https proxy", "http://" + breaker: "may open TLS and read along"} {
		err := failure(t, url, overTLS, 0)
		var authority *tunnel.AuthorityError
		if hint := Hint(err); !errors.As(err, &authority) || !strings.Contains(hint, want) || !strings.Contains(err.Error(), "the certificate was issued by ") {
			t.Errorf("%s: %v: the hint is %q, want one with %q", url, err, hint, want)
		}
	}
}
