package localproxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// startProxy runs a Forwarder with layer that dials what names says of a target, or else the target itself, and
// returns its address.
func startProxy(t testing.TB, layer *Layer, names map[string]string) string {
	t.Helper()
	f := &tunnel.Forwarder{
		Accept: tunnel.Transport{layer},
		Dial: func(ctx context.Context, info *tunnel.Info) (tunnel.Conn, error) {
			address := info.Target
			if known, ok := names[address]; ok {
				address = known
			}
			return new(tunnel.Dialer).Dial(ctx, address)
		},
		Drain: -1,
	}
	l := tunneltest.Listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// startSite is a web server that tells what it was asked. It returns its address.
func startSite(t testing.TB) string {
	t.Helper()
	site := httptest.NewServer(http.HandlerFunc(tellRequest))
	t.Cleanup(site.Close)
	return site.Listener.Addr().String()
}

// tellRequest answers with what a request consists of, a line each.
func tellRequest(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	fmt.Fprintf(w, "%s %s %s\nHost: %s\nbody: %d %v\nclose: %v\nchunked: %v\n", r.Method, r.RequestURI, r.Proto, r.Host, len(body), err, r.Close, len(r.TransferEncoding) > 0)
	delete(r.Header, "Connection") // is told above
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		fmt.Fprintf(w, "%s: %s\n", name, strings.Join(r.Header[name], "; "))
	}
}

func TestForward(t *testing.T) {
	tunneltest.NoLeaks(t)
	proxy := startProxy(t, &Layer{User: "ann", Password: "pw"}, map[string]string{"site.example:80": startSite(t)})
	login := "Proxy-Authorization: " + basic("ann:pw") + "\r\n"
	for name, test := range map[string]struct{ sent, want string }{
		"as browsers do": {
			"GET http://site.example/a%2Fb?c=%20d HTTP/1.1\r\nHost: other.example\r\nProxy-Connection: keep-alive\r\nAccept: x\r\nAccept: y\r\n" + login + "\r\n",
			"GET /a%2Fb?c=%20d HTTP/1.1\nHost: site.example\nbody: 0 <nil>\nclose: true\nchunked: false\nAccept: x; y\n",
		},
		"port, and no path": {
			"GET http://site.example:80?q HTTP/1.1\r\nHost: a\r\n" + login + "\r\n",
			"GET /?q HTTP/1.1\nHost: site.example:80\nbody: 0 <nil>\nclose: true\nchunked: false\n",
		},
		"HTTP/1.0": {
			"GET http://site.example HTTP/1.0\r\n" + login + "\r\n",
			"GET / HTTP/1.0\nHost: site.example\nbody: 0 <nil>\nclose: true\nchunked: false\n",
		},
		"of the whole server": {
			"OPTIONS http://site.example HTTP/1.1\r\nHost: a\r\n" + login + "\r\n",
			"", // net/http answers it itself
		},
		"hop by hop": {
			"GET http://site.example/ HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: 5\r\nX-Hop: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nProxy-X: 1\r\nX-End: 1\r\n" + login + "\r\n",
			"GET / HTTP/1.1\nHost: site.example\nbody: 0 <nil>\nclose: true\nchunked: false\nX-End: 1\n",
		},
		"with a body": {
			"POST http://site.example/ HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n" + login + "\r\n" + strings.Repeat("x", 100000),
			"POST / HTTP/1.1\nHost: site.example\nbody: 100000 <nil>\nclose: true\nchunked: false\nContent-Length: 100000\n",
		},
		"with an empty body": {
			"POST http://site.example/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n" + login + "\r\n",
			"POST / HTTP/1.1\nHost: site.example\nbody: 0 <nil>\nclose: true\nchunked: false\nContent-Length: 0\n",
		},
		"with a body in chunks": {
			"POST http://site.example/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n" + login + "\r\n3;x=y\r\nabc\r\n14000\r\n" + strings.Repeat("x", 0x14000) + "\r\n0\r\nX: y\r\n\r\n",
			"POST / HTTP/1.1\nHost: site.example\nbody: 81923 <nil>\nclose: true\nchunked: true\n",
		},
		"two lengths": { // chunks count (RFC 9112, section 6.3)
			"POST http://site.example/ HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n" + login + "\r\n0\r\n\r\n",
			"POST / HTTP/1.1\nHost: site.example\nbody: 0 <nil>\nclose: true\nchunked: true\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := dialProxy(t, proxy)
			// A second request, perhaps for somebody else, must not get there.
			go io.WriteString(c, test.sent+"GET http://secret.example/ HTTP/1.1\r\nHost: secret.example\r\n\r\n")
			in := bufio.NewReader(c)
			answer, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(answer.Body)
			if err != nil || answer.StatusCode != http.StatusOK || string(got) != test.want {
				t.Errorf("the site was asked\n%s\n%s, %v, want\n%s", got, answer.Status, err, test.want)
			}
			if more, err := io.ReadAll(in); err != nil || len(more) > 0 {
				t.Errorf("another answer: %q, %v", more, err)
			}
		})
	}
}

func dialProxy(t testing.TB, proxy string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", proxy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// An answer without a length ends with the connection: what is cut off must not look complete.
func TestForwardPassesACutOn(t *testing.T) {
	target := tunneltest.Serve(t, func(c *net.TCPConn) {
		bufio.NewReader(c).ReadString('\n')
		io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nhalf")
		c.SetLinger(0)
	})
	c := dialProxy(t, startProxy(t, open, map[string]string{"site.example:80": target}))
	io.WriteString(c, "GET http://site.example/ HTTP/1.1\r\nHost: a\r\n\r\n")
	if got, err := io.ReadAll(c); !tunnel.IsReset(err) {
		t.Errorf("got %q, %v, want a reset", got, err)
	}
}

// A body that is cut short must not look complete to the target.
func TestForwardPassesHalfABodyOn(t *testing.T) {
	for name, head := range map[string]string{"length": "Content-Length: 100\r\n\r\nabc", "chunks": "Transfer-Encoding: chunked\r\n\r\n64\r\nabc"} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			target := tunneltest.Serve(t, func(c *net.TCPConn) {
				_, err := io.Copy(io.Discard, c)
				ended <- err
			})
			c := dialProxy(t, startProxy(t, open, map[string]string{"site.example:80": target}))
			io.WriteString(c, "POST http://site.example/ HTTP/1.1\r\nHost: a\r\n"+head)
			c.(*net.TCPConn).CloseWrite()
			if err := <-ended; !tunnel.IsReset(err) {
				t.Errorf("the target reads %v, want a reset", err)
			}
		})
	}
}

func TestTargetThatIsNotThere(t *testing.T) {
	l := tunneltest.Listen(t)
	nobody := l.Addr().String()
	l.Close()
	proxy := startProxy(t, open, map[string]string{"site.example:80": nobody})
	for sent, want := range map[string]string{
		"GET http://site.example/ HTTP/1.1\r\nHost: a\r\n\r\n":  "HTTP/1.1 502 Bad Gateway\r\n",
		"HEAD http://site.example/ HTTP/1.1\r\nHost: a\r\n\r\n": "HTTP/1.1 502 Bad Gateway\r\n",
		"CONNECT site.example:80 HTTP/1.1\r\nHost: a\r\n\r\n":   "HTTP/1.1 502 Bad Gateway\r\n",
		socksName("site.example", 80):                           "\x05\x00" + failed(5),
	} {
		c := dialProxy(t, proxy)
		io.WriteString(c, sent)
		got, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(got), want) {
			t.Errorf("%q: got %q, %v, want %q", sent, got, err, want)
		}
		if isHead := strings.HasPrefix(sent, "HEAD"); isHead == strings.Contains(string(got), "nobody listens") && want[0] == 'H' {
			t.Errorf("%q: got %q: a text for people is for all but HEAD", sent, got)
		}
	}
}

// Who has asked for nothing yet does not keep a Forwarder from ending.
func TestDrain(t *testing.T) {
	f := &tunnel.Forwarder{Accept: tunnel.Transport{open}, Dial: func(context.Context, *tunnel.Info) (tunnel.Conn, error) { panic("nobody asked") }, Timeout: -1, Drain: time.Minute}
	l := tunneltest.Listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Serve(ctx, l) }()
	c := dialProxy(t, l.Addr().String())
	io.WriteString(c, "\x05\x01\x00")
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil { // is being served
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Serve waits for half a request")
	}
}
