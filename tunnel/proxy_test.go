package tunnel

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// proxyServer runs serve for every connection it accepts, and waits for them all when the test ends.
func proxyServer(t testing.TB, l net.Listener, serve func(c net.Conn)) {
	t.Helper()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
}

func loopback(t testing.TB) net.Listener {
	t.Helper()
	return listenOn(t, ListenConfig{}, "127.0.0.1:0")[0]
}

// pump copies both ways between the client and target until both have finished.
func pump(client io.Reader, answer Conn, target Conn) {
	var all sync.WaitGroup
	all.Go(func() { io.Copy(target, client); target.CloseWrite() })
	io.Copy(answer, target)
	answer.CloseWrite()
	all.Wait()
}

// connectProxy is an HTTP proxy that knows CONNECT; credentials, if given, as "user:password".
func connectProxy(t testing.TB, l net.Listener, credentials string) {
	t.Helper()
	proxyServer(t, l, func(c net.Conn) {
		r := bufio.NewReader(c)
		request, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if request.Method != http.MethodConnect || request.Host != request.RequestURI {
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			return
		}
		// Request.BasicAuth reads another header.
		request.Header.Set("Authorization", request.Header.Get("Proxy-Authorization"))
		user, password, _ := request.BasicAuth()
		if credentials != "" && user+":"+password != credentials {
			io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 3\r\n\r\nno\n")
			return
		}
		target, err := net.Dial("tcp", request.Host)
		if err != nil {
			io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
			return
		}
		defer target.Close()
		io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
		pump(r, c.(Conn), target.(Conn))
	})
}

// socksProxy is a SOCKS5 proxy; names are the addresses it knows itself.
func socksProxy(t testing.TB, l net.Listener, credentials string, names map[string]string) {
	t.Helper()
	proxyServer(t, l, func(c net.Conn) {
		read := func(n int) []byte {
			b := make([]byte, n)
			io.ReadFull(c, b)
			return b
		}
		methods := read(int(read(2)[1]))
		method := byte(0)
		if credentials != "" {
			method = 2
		}
		if !strings.Contains(string(methods), string(method)) {
			c.Write([]byte{5, 0xff})
			return
		}
		c.Write([]byte{5, method})
		if method == 2 {
			user := read(int(read(2)[1]))
			password := read(int(read(1)[0]))
			if string(user)+":"+string(password) != credentials {
				c.Write([]byte{1, 1})
				return
			}
			c.Write([]byte{1, 0})
		}
		var host string
		switch head := read(4); head[3] {
		case 1:
			host = net.IP(read(4)).String()
		case 3:
			name := read(int(read(1)[0]))
			if host = names[string(name)]; host == "" {
				c.Write([]byte{5, 4, 0, 1, 0, 0, 0, 0, 0, 0}) // host unreachable
				return
			}
		}
		address := net.JoinHostPort(host, strconv.Itoa(int(binary.BigEndian.Uint16(read(2)))))
		target, err := net.Dial("tcp", address)
		if err != nil {
			c.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0}) // refused
			return
		}
		defer target.Close()
		// The target's first bytes may leave in the same segment as the answer.
		c.Write([]byte{5, 0, 0, 1, 127, 0, 0, 1, 0, 0})
		pump(c, c.(Conn), target.(Conn))
	})
}

// cannedProxy reads a request head and answers with these bytes, whatever was asked.
func cannedProxy(t testing.TB, answer string) (address string) {
	t.Helper()
	l := loopback(t)
	proxyServer(t, l, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
			return
		}
		io.WriteString(c, answer)
		c.(Conn).CloseWrite()
		io.Copy(io.Discard, c)
	})
	return l.Addr().String()
}

// through returns a Dialer that uses this proxy for everything.
func through(t testing.TB, option string) *Dialer {
	t.Helper()
	choose, err := ProxyFromOption(option, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &Dialer{Proxy: choose}
}

// throwAwayCertificate returns a self-signed certificate for 127.0.0.1 and the roots to trust it.
func throwAwayCertificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

func TestProxyConnect(t *testing.T) {
	leavesNothing(t)
	target := echoTarget(t)
	l := loopback(t)
	connectProxy(t, l, "jo:p@ss w:rd")

	c, err := through(t, "http://jo:p%40ss%20w%3Ard@"+l.Addr().String()).Dial(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.(*net.TCPConn); !ok {
		t.Errorf("got %T, want a bare *net.TCPConn", c)
	}
	converse(t, c, "")
}

func TestProxyConnectRefused(t *testing.T) {
	leavesNothing(t)
	l := loopback(t)
	connectProxy(t, l, "jo:right")
	address := l.Addr().String()

	_, err := through(t, "http://jo:wr0ng@"+address).Dial(t.Context(), "example.com:443")

	want := "proxy " + address + ": CONNECT example.com:443: 407 Proxy Authentication Required (it takes Basic)"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %v", err, want)
	}

	_, err = through(t, "http://jo:right@"+address).Dial(t.Context(), "127.0.0.1:"+freePort())
	if err == nil || !strings.HasSuffix(err.Error(), "502 Bad Gateway") {
		t.Errorf("got %v, want 502 Bad Gateway", err)
	}
}

func TestProxyConnectOverTLS(t *testing.T) {
	leavesNothing(t)
	certificate, roots := throwAwayCertificate(t)
	l := loopback(t)
	connectProxy(t, tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}}), "")
	d := through(t, "https://"+l.Addr().String())

	if c, err := d.Dial(t.Context(), echoTarget(t)); err == nil {
		c.Close()
		t.Error("an unknown certificate was trusted")
	}
	d.ProxyTLS = &tls.Config{RootCAs: roots}
	c, err := d.Dial(t.Context(), echoTarget(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	converse(t, c, "")
}

// Servers that speak first may be heard together with the proxy's answer.
func TestProxyConnectKeepsWhatFollows(t *testing.T) {
	leavesNothing(t)
	for _, head := range []string{
		"HTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.0 200 Connection established\r\nProxy-Agent: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
	} {
		for _, size := range []int{1, 100, 4096, 200 << 10} {
			greeting := strings.Repeat("\r\n\r\nSSH\x00\xff", size/9+1)[:size]
			d := through(t, cannedProxy(t, head+greeting))
			for _, detached := range []bool{false, true} {
				c, err := d.Dial(t.Context(), "example.com:22")
				if err != nil {
					t.Fatalf("%q: %v", head, err)
				}
				var got []byte
				bare := c
				if detached {
					bare, got = detachPending(c)
					if _, ok := bare.(*net.TCPConn); !ok {
						t.Errorf("%q: below is %T, want *net.TCPConn", head, bare)
					}
				}
				rest, err := io.ReadAll(bare)
				if got = append(got, rest...); err != nil || string(got) != greeting {
					t.Errorf("%q, detached %v: received %d bytes, %v, want %d", head, detached, len(got), err, size)
				}
				c.Close()
			}
		}
	}
}

func detachPending(c Conn) (Conn, []byte) {
	if r, ok := c.(*readAhead); ok {
		pending, bare := r.Detach()
		return bare, pending
	}
	return c, nil
}

// Half of the pending bytes are read, the other half detached.
func TestReadAhead(t *testing.T) {
	r := &readAhead{pending: []byte("abcdef")}
	b := make([]byte, 3)
	if n, err := r.Read(b); n != 3 || err != nil || string(b) != "abc" {
		t.Errorf("Read gave %q, %v", b[:n], err)
	}
	if pending, _ := r.Detach(); string(pending) != "def" {
		t.Errorf("Detach gave %q, want def", pending)
	}
}

func TestProxyConnectBadAnswers(t *testing.T) {
	leavesNothing(t)
	long := strings.Repeat("x", maxProxyHead)
	for _, test := range []struct{ name, answer, want string }{
		{"long line", "HTTP/1.1 200 " + long + "\r\n\r\n", "more than 65536 bytes"},
		{"long header", "HTTP/1.1 200 OK\r\nX: " + long + "\r\n\r\n", "more than 65536 bytes"},
		{"many headers", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: y\r\n", 20000) + "\r\n", "more than 65536 bytes"},
		{"endless 100", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 5000), "more than 65536 bytes"},
		{"cut head", "HTTP/1.1 200 OK\r\nX: y\r\n", "unexpected EOF"},
		{"no answer", "", "unexpected EOF"},
		{"not HTTP", "SSH-2.0-OpenSSH_9.2\r\n", "not HTTP/1"},
		{"101", "HTTP/1.1 101 Switching Protocols\r\n\r\n", "101 Switching Protocols"},
		{"escape sequence", "HTTP/1.1 403 \x1b[31mBlocked\r\n\r\n", ": 403 [31mBlocked"},
	} {
		c, err := through(t, cannedProxy(t, test.answer)).Dial(t.Context(), "example.com:443")
		if err == nil || !strings.Contains(err.Error(), test.want) || len(err.Error()) > 300 {
			t.Errorf("%s: got %v, %v, want an error with %q", test.name, c, err, test.want)
		}
	}
}

// A proxy that answers byte by byte, and one that stops: ctx ends the wait at each step.
func TestProxyEndsWithContext(t *testing.T) {
	leavesNothing(t)
	for scheme, answers := range map[string][]string{
		"http":   {"", "HTTP/1.1 200 OK\r\n"},
		"https":  {"", "\x16\x03\x03"},
		"socks5": {"", "\x05\x00", "\x05\x00\x05\x00\x00\x01"},
	} {
		for _, answer := range answers {
			ctx, cancel := context.WithCancel(t.Context())
			l := loopback(t)
			proxyServer(t, l, func(c net.Conn) {
				c.Read(make([]byte, 1))
				for i := range len(answer) {
					io.WriteString(c, answer[i:i+1])
				}
				cancel()
				io.Copy(io.Discard, c) // until the client hangs up
			})
			c, err := through(t, scheme+"://"+l.Addr().String()).Dial(ctx, "example.com:443")
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s after %q: got %v, %v, want context.Canceled", scheme, answer, c, err)
			}
			cancel()
		}
	}
}

func TestProxyEndsWithDeadline(t *testing.T) {
	leavesNothing(t)
	for _, scheme := range []string{"http", "https", "socks5"} {
		l := loopback(t)
		proxyServer(t, l, func(c net.Conn) { io.Copy(io.Discard, c) })
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := through(t, scheme+"://"+l.Addr().String()).Dial(ctx, "example.com:443")
		cancel()
		var netErr net.Error
		if !errors.As(err, &netErr) || !netErr.Timeout() {
			t.Errorf("%s: got %v, want a timeout", scheme, err)
		}
	}
}

// A deadline for the dial says nothing about the connection.
func TestProxyDeadlineIsLifted(t *testing.T) {
	leavesNothing(t)
	target := echoTarget(t)
	http, socks := loopback(t), loopback(t)
	connectProxy(t, http, "")
	socksProxy(t, socks, "", nil)
	for _, option := range []string{"http://" + http.Addr().String(), "socks5://" + socks.Addr().String()} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		c, err := through(t, option).Dial(ctx, target)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Errorf("%s: after the end of ctx: %v", option, err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("%s: after the end of ctx: %v", option, err)
		}
	}
}

func TestProxySOCKS5(t *testing.T) {
	leavesNothing(t)
	l := loopback(t)
	greet(t, l, "220 welcome\r\n")
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, credentials := range []string{"", "jo:p@ss"} {
		server := loopback(t)
		socksProxy(t, server, credentials, map[string]string{"only-the-proxy-knows.test": "127.0.0.1"})
		user := ""
		if credentials != "" {
			user = "jo:p%40ss@"
		}
		for _, scheme := range []string{"socks5", "socks5h", "socks"} {
			for _, host := range []string{"127.0.0.1", "only-the-proxy-knows.test"} {
				c, err := through(t, scheme+"://"+user+server.Addr().String()).Dial(t.Context(), host+":"+port)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, ok := c.(*net.TCPConn); !ok {
					t.Errorf("got %T, want a bare *net.TCPConn", c)
				}
				converse(t, c, "220 welcome\r\n")
			}
		}
	}
}

func TestProxySOCKS5Refused(t *testing.T) {
	leavesNothing(t)
	open, locked := loopback(t), loopback(t)
	socksProxy(t, open, "", nil)
	socksProxy(t, locked, "jo:right", nil)
	closed := "127.0.0.1:" + freePort()
	for _, test := range []struct{ option, address, want string }{
		{"socks5://" + open.Addr().String(), closed, "connection refused"},
		{"socks5://" + open.Addr().String(), "nobody.test:80", "host unreachable"},
		{"socks5://" + locked.Addr().String(), closed, "no acceptable authentication methods"},
		{"socks5://jo:wr0ng@" + locked.Addr().String(), closed, "authentication failed"},
		{"socks5://" + closed, "nobody.test:80", "refused"},
	} {
		c, err := through(t, test.option).Dial(t.Context(), test.address)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "proxy 127.0.0.1:") {
			t.Errorf("%s: got %v, %v, want an error with %q", test.option, c, err, test.want)
			continue
		}
		if strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("the password is in %v", err)
		}
	}
}

func TestProxyWantsHost(t *testing.T) {
	if _, err := through(t, "http://127.0.0.1:1").Dial(t.Context(), ":443"); err == nil || !strings.Contains(err.Error(), "host is missing") {
		t.Errorf("got %v", err)
	}
}

func TestProxyNotForUnixSockets(t *testing.T) {
	path := t.TempDir() + "/s"
	listenOn(t, ListenConfig{}, "unix:"+path)
	c, err := through(t, "http://127.0.0.1:1").Dial(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestProxyFromOption(t *testing.T) {
	const edge = "edge.example.com:443"
	type environment map[string]string
	for _, test := range []struct {
		option  string
		env     environment
		address string
		want    string
	}{
		{"", nil, edge, ""},
		{"http://a:1", nil, edge, "http://a:1"},
		{"http://a:1", nil, "127.0.0.1:80", "http://a:1"}, // asked for, unlike the environment
		{"a:1", nil, edge, "http://a:1"},
		{"http://a:1", environment{"https_proxy": "http://b:2", "no_proxy": "*"}, edge, "http://a:1"},
		{"off", environment{"https_proxy": "http://b:2"}, edge, ""},

		{"", environment{"https_proxy": "http://b:2"}, edge, "http://b:2"},
		{"", environment{"HTTPS_PROXY": "b:2"}, edge, "http://b:2"},
		{"", environment{"HTTPS_PROXY": "http://B:2", "https_proxy": "http://b:2"}, edge, "http://b:2"},
		{"", environment{"HTTP_PROXY": "http://b:2"}, edge, ""},
		{"", environment{"ALL_PROXY": "socks5h://jo:pw@c:3"}, edge, "socks5h://jo:pw@c:3"},
		{"", environment{"all_proxy": "socks://c:3/"}, edge, "socks://c:3/"},
		{"", environment{"ALL_PROXY": "socks5://c:3", "HTTPS_PROXY": "http://b:2"}, edge, "http://b:2"},

		{"", environment{"HTTPS_PROXY": "http://b:2", "NO_PROXY": "example.com"}, edge, ""},
		{"", environment{"ALL_PROXY": "http://b:2", "no_proxy": ".example.com"}, "EDGE.Example.com:443", ""},
		{"", environment{"ALL_PROXY": "http://b:2", "NO_PROXY": "10.0.0.0/8"}, "10.1.2.3:443", ""},
		{"", environment{"ALL_PROXY": "http://b:2", "NO_PROXY": "10.0.0.0/8"}, "11.1.2.3:443", "http://b:2"},
		{"", environment{"ALL_PROXY": "http://b:2", "NO_PROXY": "edge.example.com:8443"}, edge, "http://b:2"},
		{"", environment{"ALL_PROXY": "http://b:2", "NO_PROXY": "*"}, edge, ""},
		{"", environment{"ALL_PROXY": "http://b:2"}, "localhost:443", ""},
		{"", environment{"ALL_PROXY": "http://b:2"}, "LOCALHOST:443", ""},
		{"", environment{"ALL_PROXY": "http://b:2"}, "127.8.9.10:443", ""},
		{"", environment{"ALL_PROXY": "http://b:2"}, "[::1]:443", ""},
		{"", environment{"ALL_PROXY": "http://b:2"}, "[2001:db8::1]:443", "http://b:2"},
		{"", environment{"ALL_PROXY": "http://b:2"}, ":443", ""},
	} {
		choose, err := ProxyFromOption(test.option, func(name string) string { return test.env[name] })
		if err != nil {
			t.Errorf("%q %v: %v", test.option, test.env, err)
			continue
		}
		via, err := choose(test.address)
		got := ""
		if via != nil {
			got = via.String()
		}
		if err != nil || got != test.want {
			t.Errorf("%q %v %s: got %q, %v, want %q", test.option, test.env, test.address, got, err, test.want)
		}
	}
}

func TestProxyFromOptionErrors(t *testing.T) {
	for _, proxy := range []string{
		"ftp://jo:s3cret@a:1", "socks4://jo:s3cret@a", "http://jo:s3cret@", "http://jo:s3cret/x@a:1",
		"http://jo:s3cret%zz@a:1", "http://jo:s3cret@a:99999", "http://jo:s3cret@a:b", "jo:s3cret@a:1:2", "http://jo:s3cret\x7f@a",
	} {
		for option, env := range map[string]string{proxy: "", "": proxy} {
			choose, err := ProxyFromOption(option, func(string) string { return env })
			if err == nil {
				via, _ := choose("example.com:443")
				t.Errorf("%q is taken for %v", proxy, via)
				continue
			}
			if strings.Contains(err.Error(), "s3c") {
				t.Errorf("the password is in %v", err)
			}
		}
	}
}

func TestProxyDefaultPorts(t *testing.T) {
	for option, want := range map[string]string{
		"http://a": "a:80", "https://a": "a:443", "socks5://a": "a:1080", "http://[::1]": "[::1]:80", "a": "a:80",
	} {
		via, err := parseProxy(option)
		if err != nil || proxyAddress(via) != want {
			t.Errorf("%s: got %v, %v, want %s", option, via, err, want)
		}
	}
}

// A proxy function of somebody's own may return anything.
func TestProxyFunction(t *testing.T) {
	leavesNothing(t)
	l := loopback(t)
	proxyServer(t, l, func(c net.Conn) { io.Copy(io.Discard, c) })
	d := Dialer{Proxy: func(string) (*url.URL, error) { return &url.URL{Scheme: "gopher", Host: l.Addr().String()}, nil }}
	if _, err := d.Dial(t.Context(), "example.com:443"); err == nil || !strings.Contains(err.Error(), "gopher") {
		t.Errorf("got %v", err)
	}
	d.Proxy = func(string) (*url.URL, error) { return nil, net.ErrClosed }
	if _, err := d.Dial(t.Context(), "example.com:443"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v", err)
	}
}
