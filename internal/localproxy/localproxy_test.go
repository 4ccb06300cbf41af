package localproxy

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

const (
	connected = "HTTP/1.1 200 Connection established\r\n\r\n"
	succeeded = "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
)

// failed is a SOCKS5 reply with code.
func failed(code byte) string { return string(reply(code)) }

// basic is the value of a Proxy-Authorization header.
func basic(login string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(login)) }

var (
	open   = &Layer{}
	locked = &Layer{User: "ann", Password: "p:w"}
)

// requests are what programs say first. Heard is what they get, to the first line where it is HTTP; with a target that
// is after Answer(nil).
var requests = []struct {
	name   string
	layer  *Layer
	sent   string
	target string // empty: refused
	heard  string
	err    string // part of it
}{
	// SOCKS5, as programs send it
	{"IPv4", open, "\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50", "192.0.2.1:80", "\x05\x00" + succeeded, ""},
	{"IPv6", open, "\x05\x01\x00\x05\x01\x00\x04\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x01\xbb", "[2001:db8::1]:443", "\x05\x00" + succeeded, ""},
	{"IPv4 in IPv6", open, "\x05\x01\x00\x05\x01\x00\x04" + strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x01\x00\x50", "192.0.2.1:80", "\x05\x00" + succeeded, ""},
	{"name", open, socksName("Example.com", 443), "Example.com:443", "\x05\x00" + succeeded, ""},
	{"name of 255", open, socksName(strings.Repeat("a", 255), 65535), strings.Repeat("a", 255) + ":65535", "\x05\x00" + succeeded, ""},
	{"name that is an address", open, socksName("::1", 80), "[::1]:80", "\x05\x00" + succeeded, ""},
	{"several methods", open, "\x05\x03\x00\x01\x02\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50", "192.0.2.1:80", "\x05\x00" + succeeded, ""},
	{"a password that nobody asks for", open, "\x05\x01\x02\x01\x01u\x01p\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50", "192.0.2.1:80", "\x05\x02\x01\x00" + succeeded, ""},
	{"password", locked, "\x05\x02\x00\x02\x01\x03ann\x03p:w\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50", "192.0.2.1:80", "\x05\x02\x01\x00" + succeeded, ""},
	// and as it is refused
	{"wrong password", locked, "\x05\x01\x02\x01\x03ann\x03p:x", "", "\x05\x02\x01\x01", "socks5 greeting: login: the user or the password is wrong"},
	{"wrong user", locked, "\x05\x01\x02\x01\x03bob\x03p:w", "", "\x05\x02\x01\x01", "socks5 greeting: login"},
	{"empty login", locked, "\x05\x01\x02\x01\x00\x00", "", "\x05\x02\x01\x01", "socks5 greeting: login"},
	{"login of another version", locked, "\x05\x01\x02\x02\x03ann\x03p:w", "", "\x05\x02\x01\x01", "socks5 greeting: login: version 2"},
	{"no password offered", locked, "\x05\x01\x00", "", "\x05\xff", "socks5 greeting: the program offers no user and password"},
	{"only GSSAPI", open, "\x05\x01\x01", "", "\x05\xff", "socks5 greeting"},
	{"no methods", open, "\x05\x00", "", "\x05\xff", "socks5 greeting"},
	{"BIND", open, "\x05\x01\x00\x05\x02\x00\x01\xc0\x00\x02\x01\x00\x50", "", "\x05\x00" + failed(7), "socks5 request: command 2 (BIND) is not served"},
	{"UDP ASSOCIATE", open, "\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00", "", "\x05\x00" + failed(7), "(UDP ASSOCIATE)"},
	{"command 9", open, "\x05\x01\x00\x05\x09\x00\x01\xc0\x00\x02\x01\x00\x50", "", "\x05\x00" + failed(7), "command 9"},
	{"type of address", open, "\x05\x01\x00\x05\x01\x00\x02", "", "\x05\x00" + failed(8), "type of address 2"},
	{"version in the request", open, "\x05\x01\x00\x04\x01\x00\x01", "", "\x05\x00" + failed(1), "version 4"},
	{"port 0", open, "\x05\x01\x00\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x00", "", "\x05\x00" + failed(1), `port "0"`},
	{"empty name", open, socksName("", 80), "", "\x05\x00" + failed(1), "host is missing"},
	{"blank in a name", open, socksName("a b", 80), "", "\x05\x00" + failed(1), `the host "a b" has ' ' in it`},
	{"line in a name", open, socksName("a\r\nHost:b", 80), "", "\x05\x00" + failed(1), `has '\r' in it`},
	{"NUL in a name", open, socksName("a\x00b", 80), "", "\x05\x00" + failed(1), `has '\x00' in it`},
	{"name with its port", open, socksName("a:80", 80), "", "\x05\x00" + failed(1), "has ':' in it"},
	{"name in brackets", open, socksName("[::1]", 80), "", "\x05\x00" + failed(1), "has '[' in it"},
	{"other script", open, socksName("müller.example", 80), "", "\x05\x00" + failed(1), "has 'ü' in it"},
	{"not UTF-8", open, socksName("\xff\xfe", 80), "", "\x05\x00" + failed(1), "in it"},
	{"zone", open, socksName("fe80::1%lo", 80), "", "\x05\x00" + failed(1), "zone"},
	{"unix", open, socksName("unix", 80), "", "\x05\x00" + failed(1), "unix"},
	// Neither
	{"SOCKS4", open, "\x04\x01\x00\x50\xc0\x00\x02\x01user\x00", "", "\x00\x5b\x00\x00\x00\x00\x00\x00", "socks4 request: version 4 is not spoken"},
	{"SOCKS4a", open, "\x04\x01\x00\x50\x00\x00\x00\x01\x00a.example\x00", "", "\x00\x5b\x00\x00\x00\x00\x00\x00", "socks4 request"},
	{"TLS", open, "\x16\x03\x01\x02\x00\x01\x00", "", "", "proxy request: the program speaks TLS to its proxy"},
	{"garbage", open, "\x00\x01\x02\x03", "", "", "proxy request: it is neither SOCKS5 nor HTTP"},
	{"empty line", open, "\r\n", "", "", "neither"},
	// CONNECT
	{"CONNECT", open, "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", "example.com:443", connected, ""},
	{"CONNECT as of nc", open, "CONNECT 192.0.2.1:22 HTTP/1.0\r\n\r\n", "192.0.2.1:22", connected, ""},
	{"CONNECT to IPv6", open, "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: x\r\n\r\n", "[2001:db8::1]:443", connected, ""},
	{"CONNECT with a password", locked, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: " + basic("ann:p:w") + "\r\n\r\n", "a:1", connected, ""},
	{"CONNECT with a password that nobody asks for", open, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic x\r\n\r\n", "a:1", connected, ""},
	{"CONNECT once more with a password", locked, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\nCONNECT a:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: " + basic("ann:p:w") + "\r\n\r\n",
		"a:1", "HTTP/1.1 407 Proxy Authentication Required\r\n", ""},
	{"CONNECT without a password", locked, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 407 Proxy Authentication Required\r\n", "http proxy request: login: none came"},
	{"CONNECT with a wrong password", locked, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nProxy-Authorization: " + basic("ann:px") + "\r\n\r\n", "", "HTTP/1.1 407 Proxy Authentication Required\r\n", "login: the user or the password is wrong"},
	{"CONNECT with a Bearer", locked, "CONNECT a:1 HTTP/1.0\r\nProxy-Authorization: Bearer x\r\n\r\n", "", "HTTP/1.1 407 Proxy Authentication Required\r\n", "login"},
	{"CONNECT without a port", open, "CONNECT example.com HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "host:port"},
	{"CONNECT to a URL", open, "CONNECT http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "http proxy request"},
	{"CONNECT to a path", open, "CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "http proxy request"},
	{"CONNECT to port 0", open, "CONNECT a:0 HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", `port "0"`},
	{"CONNECT to port 65536", open, "CONNECT a:65536 HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", `port "65536"`},
	{"CONNECT to unix", open, "CONNECT unix:1 HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "unix"},
	{"CONNECT to 256 bytes", open, "CONNECT " + strings.Repeat("a", 256) + ":1 HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "256 bytes"},
	{"CONNECT with a body", open, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "", "HTTP/1.1 400 Bad Request\r\n", "no body"},
	// Other requests
	{"GET a URL", open, "GET http://example.com/a HTTP/1.1\r\nHost: example.com\r\n\r\n", "example.com:80", "", ""},
	{"GET a URL with a port", open, "GET http://[::1]:8080 HTTP/1.1\r\nHost: x\r\n\r\n", "[::1]:8080", "", ""},
	{"GET of a web page", open, "GET / HTTP/1.1\r\nHost: 127.0.0.1:1080\r\nOrigin: http://evil.example\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "no web server"},
	{"GET of a web page, password or not", locked, "GET / HTTP/1.1\r\nHost: 127.0.0.1:1080\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "no web server"},
	{"POST of a web page", open, "POST /\x05\x01\x00 HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "not HTTP/1.1"},
	{"POST with a request in it", open, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 42\r\n\r\nCONNECT a:1 HTTP/1.1\r\nHost: a\r\nX-Y: 12345\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "no web server"},
	{"preflight", open, "OPTIONS / HTTP/1.1\r\nHost: a\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: PUT\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "no web server"},
	{"OPTIONS *", open, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "no web server"},
	{"path that looks like a host", open, "GET //example.com/ HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "no web server"},
	{"https", open, "GET https://example.com/ HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 501 Not Implemented\r\n", "only http"},
	{"no host", open, "GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "host is missing"},
	{"user in the URL", open, "GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "user in the URL"},
	{"HTTP/2", open, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "", "HTTP/1.1 505 HTTP Version Not Supported\r\n", "not HTTP/1.1"},
	{"HTTP/0.9", open, "GET /\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "not HTTP/1.1"},
	{"ssh", open, "SSH-2.0-x\r\n\r\n", "", "HTTP/1.1 400 Bad Request\r\n", "not HTTP/1.1"},
	{"a long head", open, "GET http://a/ HTTP/1.1\r\nX: " + strings.Repeat("x", maxHead) + "\r\n\r\n", "", "HTTP/1.1 431 Request Header Fields Too Large\r\n", "longer than 65536"},
}

// socksName is a greeting and a request that go together.
func socksName(name string, port uint16) string {
	return "\x05\x01\x00\x05\x01\x00\x03" + string([]byte{byte(len(name))}) + name + string([]byte{byte(port >> 8), byte(port)})
}

// program is one end of a connection whose other end is a Layer's.
type program struct {
	*net.TCPConn
	heard *tunneltest.Record
}

// serve lets layer answer a program, by way of wrap.
func serve(t testing.TB, layer *Layer, wrap func(tunnel.Conn) tunnel.Conn) (program, chan result) {
	t.Helper()
	dialed, accepted := tunneltest.Pair(t)
	dialed.SetDeadline(time.Now().Add(20 * time.Second))
	results := make(chan result, 1)
	go func() {
		var r result
		r.conn, r.err = layer.Server(context.Background(), wrap(accepted), &r.info)
		if r.err != nil {
			accepted.Close()
		}
		results <- r
	}()
	return program{dialed, tunneltest.NewRecord(dialed)}, results
}

func asItIs(c tunnel.Conn) tunnel.Conn { return c }
func crumbs(c tunnel.Conn) tunnel.Conn { return tunneltest.Crumbs{Conn: c} }

type result struct {
	conn tunnel.Conn
	info tunnel.Info
	err  error
}

func TestRequests(t *testing.T) {
	tunneltest.NoLeaks(t)
	const tail = "what follows\r\n\r\n"
	for _, test := range requests {
		for kind, wrap := range map[string]func(tunnel.Conn) tunnel.Conn{"": asItIs, " byte by byte": crumbs} {
			t.Run(test.name+kind, func(t *testing.T) {
				program, results := serve(t, test.layer, wrap)
				io.WriteString(program, test.sent)
				if test.target != "" {
					io.WriteString(program, tail)
				}
				program.CloseWrite()

				r := <-results
				if test.target == "" {
					checkRefusal(t, r, test.err)
				} else if checkTarget(t, r, test.target) {
					checkTail(t, r.conn, test.sent, tail)
				}

				heard, err := program.heard.Wait()
				if err != io.EOF {
					t.Errorf("the program reads %v, not the end", err)
				}
				checkHeard(t, string(heard), test.heard)
			})
		}
	}
}

func checkRefusal(t *testing.T, r result, want string) {
	t.Helper()
	if r.err == nil {
		t.Fatalf("taken for a request for %s", r.info.Target)
	}
	if !strings.Contains(r.err.Error(), want) || strings.Contains(r.err.Error(), "p:w") {
		t.Errorf("got error %q, want %q in it, and no password", r.err, want)
	}
}

func checkTarget(t *testing.T, r result, want string) bool {
	t.Helper()
	if r.err != nil || r.info.Target != want {
		t.Errorf("got %q, %v, want %s", r.info.Target, r.err, want)
		return false
	}
	return true
}

// checkTail answers the program and checks that what came behind its request is the stream. What comes behind a
// request for a URL is not.
func checkTail(t *testing.T, c tunnel.Conn, sent, tail string) {
	t.Helper()
	c, err := c.(tunnel.Answering).Answer(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	c.Close()
	if strings.HasPrefix(sent, "GET") {
		if err != nil || !bytes.HasPrefix(got, []byte("GET /")) || !bytes.HasSuffix(got, []byte("Connection: close\r\n\r\n")) {
			t.Errorf("the target gets %q, %v", got, err)
		}
		return
	}
	if err != nil || string(got) != tail {
		t.Errorf("got %q, %v behind the request, want %q", got, err, tail)
	}
}

func checkHeard(t *testing.T, heard, want string) {
	t.Helper()
	if !strings.HasPrefix(want, "HTTP/") {
		if heard != want {
			t.Errorf("the program hears %q, want %q", heard, want)
		}
		return
	}
	if !strings.HasPrefix(heard, want) {
		t.Errorf("the program hears %q, want %q", heard, want)
	}
	if strings.Contains(heard, "Access-Control") {
		t.Errorf("a web page may read %q", heard)
	}
}

func TestHalfARequest(t *testing.T) {
	for _, test := range requests {
		if test.target == "" || len(test.sent) > 400 {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			for n := range len(test.sent) {
				program, results := serve(t, test.layer, asItIs)
				io.WriteString(program, test.sent[:n])
				program.CloseWrite()
				if r := <-results; !errors.Is(r.err, io.EOF) && !errors.Is(r.err, io.ErrUnexpectedEOF) {
					t.Errorf("%q: got %v, %q, want an error about the end", test.sent[:n], r.err, r.info.Target)
				}
				program.Close()
			}
		})
	}
}

func TestSilence(t *testing.T) {
	for _, sent := range []string{"", "\x05", "\x05\x01\x00", "\x05\x01\x00\x05\x01\x00\x03\xff", "CONNECT a:1 HTTP/1.1\r\n"} {
		t.Run(fmt.Sprintf("%q", sent), func(t *testing.T) {
			dialed, accepted := tunneltest.Pair(t)
			io.WriteString(dialed, sent)
			errLate := errors.New("late")
			ctx, cancel := context.WithTimeoutCause(context.Background(), 20*time.Millisecond, errLate)
			defer cancel()
			c, err := open.Server(ctx, accepted, &tunnel.Info{})
			if c != nil || !errors.Is(err, errLate) {
				t.Errorf("got %v, %v, want the cause of the context", c, err)
			}
		})
	}
}

// A reset would overtake the answer.
func TestAnswerArrivesWhereMuchIsUnread(t *testing.T) {
	const connect = "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"
	for name, test := range map[string]struct{ sent, heard string }{
		"refused by us": {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 400 "},
		"socks5":        {socksName("a", 1), "\x05\x00" + failed(5)},
		"http":          {connect, "HTTP/1.1 502 Bad Gateway"},
	} {
		t.Run(name, func(t *testing.T) {
			program, results := serve(t, open, asItIs)
			io.WriteString(program, test.sent)
			program.Write(make([]byte, 300<<10))
			r := <-results
			if r.err == nil {
				if _, err := r.conn.(tunnel.Answering).Answer(syscall.ECONNREFUSED); err != nil {
					t.Error(err)
				}
				r.conn.Close()
			}
			heard, err := program.heard.Wait()
			if err != io.EOF || !strings.HasPrefix(string(heard), test.heard) {
				t.Errorf("the program hears %q, %v, want %q", heard, err, test.heard)
			}
		})
	}
}

func TestReasons(t *testing.T) {
	dial := func(err error) error {
		return fmt.Errorf("edge.example.com: %w", &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)})
	}
	for _, test := range []struct {
		err    error
		socks  byte
		status int
	}{
		{&tunnel.TargetError{Reason: tunnel.ReasonRefused}, 5, 502},
		{&tunnel.TargetError{Reason: tunnel.ReasonUnreachable}, 4, 502},
		{&tunnel.TargetError{Reason: tunnel.ReasonTimeout}, 6, 504},
		{&tunnel.TargetError{Reason: tunnel.ReasonName}, 4, 502},
		{fmt.Errorf("dial: %w", &tunnel.TargetError{Reason: tunnel.ReasonForbidden}), 2, 403},
		{&tunnel.TargetError{Reason: tunnel.ReasonBusy}, 1, 503},
		{&tunnel.TargetError{Reason: "something new"}, 1, 502},
		{dial(syscall.ECONNREFUSED), 5, 502},
		{tunnel.ErrTimeout, 6, 504},
		{context.DeadlineExceeded, 6, 504},
		{&net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", IsNotFound: true}}, 4, 502},
		{errors.New("tls handshake"), 1, 502},
	} {
		t.Run(test.err.Error(), func(t *testing.T) {
			if heard := refusedWith(t, socksName("a.example", 1), test.err); heard != "\x05\x00"+failed(test.socks) {
				t.Errorf("socks5: got %q, want reply %d", heard, test.socks)
			}
			heard := refusedWith(t, "CONNECT a.example:1 HTTP/1.1\r\nHost: a\r\n\r\n", test.err)
			if !strings.HasPrefix(heard, fmt.Sprintf("HTTP/1.1 %d ", test.status)) || !strings.Contains(heard, "a.example:1: ") || strings.Contains(heard, "edge.example") {
				t.Errorf("http: got %q, want %d, the target, and nothing of the edge", heard, test.status)
			}
		})
	}
}

// refusedWith is what a program hears whose request has come to err.
func refusedWith(t *testing.T, sent string, err error) string {
	t.Helper()
	program, results := serve(t, open, asItIs)
	io.WriteString(program, sent)
	r := <-results
	if r.err != nil {
		t.Fatal(r.err)
	}
	program.CloseWrite()
	if _, err := r.conn.(tunnel.Answering).Answer(err); err != nil {
		t.Error(err)
	}
	r.conn.Close()
	heard, err := program.heard.Wait()
	if err != io.EOF {
		t.Errorf("the program reads %v, not the end", err)
	}
	return string(heard)
}

func TestTunnelIsBare(t *testing.T) {
	for _, sent := range []string{socksName("a", 1), "CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"} {
		program, results := serve(t, open, asItIs)
		io.WriteString(program, sent)
		r := <-results
		if r.err != nil {
			t.Fatal(r.err)
		}
		c, err := r.conn.(tunnel.Answering).Answer(nil)
		if _, ok := c.(*net.TCPConn); !ok || err != nil {
			t.Errorf("%q: got a %T, %v, which cannot be spliced", sent, c, err)
		}
	}
}

func TestLogSaysWhatToSet(t *testing.T) {
	for sent, want := range map[string]string{
		"\x04\x01\x00\x50\xc0\x00\x02\x01\x00": "socks5h://",
		"\x16\x03\x01\x02\x00\x01\x00":         "not with https://",
		"\x05\x01\x02\x01\x03ann\x03p:x":       "the user and the password",
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n":    "", // of web pages, as many as they like
	} {
		var log bytes.Buffer
		program, results := serve(t, &Layer{User: "ann", Password: "p:w", Log: slog.New(slog.NewTextHandler(&log, nil))}, asItIs)
		io.WriteString(program, sent)
		program.CloseWrite()
		<-results
		line := log.String()
		if (line == "") != (want == "") || !strings.Contains(line, want) || strings.Contains(line, "p:x") {
			t.Errorf("%q: logged %q, want %q, and no password", sent, line, want)
		}
	}
}

// Whoever was told that the other end is there, and then it is not, must not take that for an end.
func TestNoTunnelAfterAllIsAReset(t *testing.T) {
	program, results := serve(t, open, asItIs)
	io.WriteString(program, socksName("a", 1))
	r := <-results
	if _, err := r.conn.(tunnel.Answering).Answer(nil); err != nil {
		t.Fatal(err)
	}
	if err := r.conn.(interface{ SetLinger(int) error }).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	r.conn.Close()
	if _, err := program.heard.Wait(); !tunnel.IsReset(err) {
		t.Errorf("the program reads %v, not a reset", err)
	}
}

func TestClientIsUnsupported(t *testing.T) {
	if _, err := open.Client(context.Background(), nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v", err)
	}
}

func FuzzServer(f *testing.F) {
	for _, test := range requests {
		f.Add([]byte(test.sent), test.layer == locked)
	}
	f.Fuzz(func(t *testing.T, sent []byte, isLocked bool) {
		layer := open
		if isLocked {
			layer = locked
		}
		program, accepted := tunneltest.PipeSize(1 << 20)
		program.Write(sent[:min(len(sent), 1<<20)])
		program.CloseWrite()
		var info tunnel.Info
		c, err := layer.Server(context.Background(), accepted, &info)
		if err != nil {
			if info.Target != "" {
				t.Errorf("refused, and yet a target: %q", info.Target)
			}
			return
		}
		host, port, err := net.SplitHostPort(info.Target)
		if err != nil || port == "0" || host == "" || len(host) > maxHost || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Errorf("target %q: %v", info.Target, err)
		}
		if !tunnel.IsTarget(info.Target) {
			t.Errorf("no edge takes the target %q", info.Target)
		}
		stream, err := c.(tunnel.Answering).Answer(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(stream)
		if _, isRequest := stream.(*oneRequest); !isRequest && (err != nil || !bytes.HasSuffix(sent, got)) {
			t.Errorf("the stream is %q, %v, after %q", got, err, sent)
		}
	})
}
