package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"raimon/edge"
	"raimon/internal/tunneltest"
)

// upstreamSite is a site of which target is the upstream; it returns what has been logged.
func upstreamSite(t testing.TB, target string) (handler http.Handler, logged func() string) {
	t.Helper()
	log := new(record)
	handler, err := edge.Upstream(target, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return handler, log.String
}

// record keeps what is written to it.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// serve runs an upstream and returns its address.
func serve(t testing.TB, l net.Listener, handler http.HandlerFunc) string {
	t.Helper()
	server := &http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-ended; err != http.ErrServerClosed {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// secure makes a client for an edge that speaks TLS, with HTTP/2 or without.
func secure(t testing.TB, ca *tunneltest.CA, h2 bool) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2)
	protocols.SetHTTP2(h2)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool, ServerName: "edge.test"}, Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

// The upstream hears who the client is from us, and not from the client.
func TestUpstreamHeaders(t *testing.T) {
	var got http.Header
	var host, target string
	upstream := serve(t, tunneltest.Listen(t), func(w http.ResponseWriter, r *http.Request) {
		got, host, target = r.Header, r.Host, r.RequestURI
		w.Header().Set("X-Kept", "yes")
		w.Header().Set("Keep-Alive", "timeout=5")
		w.WriteHeader(http.StatusTeapot)
	})
	ca := tunneltest.NewCA(t)
	certificate := ca.Issue(t, "edge.test")
	for _, test := range []struct {
		path string
		cert *tls.Certificate
		want string
	}{{"", nil, "/a%2fb?c;d=e"}, {"/base/", nil, "/base/a%2fb?c;d=e"}, {"", &certificate, "/a%2fb?c;d=e"}} {
		handler, _ := upstreamSite(t, "http://"+upstream+test.path)
		address := run(t, test.cert, &edge.Site{Behind: handler})
		for _, h2 := range []bool{false, true} {
			proto, client := "http", http.DefaultClient
			if test.cert != nil {
				proto, client = "https", secure(t, ca, h2)
			} else if h2 {
				continue
			}
			r, err := http.NewRequest("GET", proto+"://"+address+"/a%2fb?c;d=e", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = "edge.test"
			for _, name := range []string{"X-Forwarded-For", "X_Forwarded_For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "Forwarded", "X-Real-IP", "Proxy-Authorization"} {
				r.Header.Set(name, "forged")
			}
			answer, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusTeapot || answer.Header.Get("X-Kept") != "yes" || answer.Header.Get("Keep-Alive") != "" {
				t.Errorf("got %s, %s", answer.Status, answer.Header)
			}
			if host != "edge.test" || target != test.want {
				t.Errorf("the upstream is asked for %s of %s, want %s of edge.test", target, host, test.want)
			}
			if got.Get("X-Forwarded-For") != "127.0.0.1" || got.Get("X-Forwarded-Proto") != proto || got.Get("X-Forwarded-Host") != "edge.test" || strings.Contains(fmt.Sprint(got), "forged") {
				t.Errorf("%s: the upstream gets %s", proto, got)
			}
		}
	}
}

func TestUpstreamOnUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "web") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "web.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "on a socket, ", r.Host) })
	handler, _ := upstreamSite(t, "unix:"+socket)
	if answer, body := get(t, "GET", run(t, nil, &edge.Site{Behind: handler}), "/"); answer.StatusCode != 200 || body != "on a socket, edge.test" {
		t.Errorf("got %s, %q", answer.Status, body)
	}
}

// An upstream that is down costs a line, not one for each request; so does its return.
func TestUpstreamIsDown(t *testing.T) {
	l := tunneltest.Listen(t)
	upstream := l.Addr().String()
	l.Close()
	handler, logged := upstreamSite(t, "http://"+upstream)
	address := run(t, nil, &edge.Site{Behind: handler})
	for range 5 {
		begin := time.Now()
		if answer, body := get(t, "GET", address, "/"); answer.StatusCode != 502 || body != "Bad Gateway\n" {
			t.Errorf("got %s, %q", answer.Status, body)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("that took %v", took)
		}
	}
	if n := strings.Count(logged(), "\n"); n != 1 || !strings.Contains(logged(), "level=WARN") || !strings.Contains(logged(), upstream) {
		t.Errorf("%d lines: %s", n, logged())
	}
	l, err := net.Listen("tcp", upstream)
	if err != nil {
		t.Skip("the port is gone: ", err)
	}
	serve(t, l, func(w http.ResponseWriter, r *http.Request) {})
	for range 5 {
		if answer, _ := get(t, "GET", address, "/"); answer.StatusCode != 200 {
			t.Errorf("got %s", answer.Status)
		}
	}
	if n := strings.Count(logged(), "\n"); n != 2 || !strings.Contains(logged(), "answers again") {
		t.Errorf("%d lines: %s", n, logged())
	}
}

// A client that breaks off is no outage of the upstream.
func TestUpstreamIsNotBlamedForClients(t *testing.T) {
	begun := make(chan struct{}, 10)
	upstream := serve(t, tunneltest.Listen(t), func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		io.Copy(io.Discard, r.Body)
	})
	handler, logged := upstreamSite(t, "http://"+upstream)
	done := make(chan struct{}, 10)
	address := run(t, nil, &edge.Site{Behind: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { done <- struct{}{} }()
		handler.ServeHTTP(w, r)
	})})
	for _, body := range []string{"Content-Length: 9\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nno chunk\r\n"} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: edge.test\r\n"+body)
		<-begun
		c.Close()
		<-done
	}
	if logged() != "" {
		t.Error(logged())
	}
}

// WebSockets of the website itself pass, in both directions and as often as one likes, and nothing of them stays.
func TestUpstreamWebSocket(t *testing.T) {
	upstream := serve(t, tunneltest.Listen(t), func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" {
			fmt.Fprint(w, "no upgrade: ", r.Header.Get("Upgrade"))
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: its own\r\n\r\n")
		io.Copy(c, rw)
	})
	handler, _ := upstreamSite(t, "http://"+upstream)
	ca := tunneltest.NewCA(t)
	certificate := ca.Issue(t, "edge.test")
	for name, cert := range map[string]*tls.Certificate{"plain": nil, "tls": &certificate} {
		t.Run(name, func(t *testing.T) {
			log := new(record)
			address := run(t, cert, &edge.Site{Behind: edge.AccessLog(log, handler), Routes: routes(t)})
			for range 3 {
				var c net.Conn
				var err error
				if cert == nil {
					c, err = net.Dial("tcp", address)
				} else {
					c, err = tls.Dial("tcp", address, &tls.Config{RootCAs: ca.Pool, ServerName: "edge.test"})
				}
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				// The tenth request of a connection can be one too.
				fmt.Fprint(c, strings.Repeat("GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n", 9))
				answers := bufio.NewReader(c)
				for range 9 {
					if answer, err := http.ReadResponse(answers, nil); err != nil || answer.StatusCode != 200 {
						t.Fatalf("got %v, %v", answer, err)
					} else if _, err := io.Copy(io.Discard, answer.Body); err != nil {
						t.Fatal(err)
					}
				}
				fmt.Fprint(c, strings.Replace(upgradeText, "%s", nobodyPath, 1))
				answer, err := http.ReadResponse(answers, nil)
				if err != nil || answer.StatusCode != 101 || answer.Header.Get("Sec-WebSocket-Accept") != "its own" {
					t.Fatalf("got %v, %v", answer, err)
				}
				fmt.Fprint(c, "through both")
				echo := make([]byte, 12)
				if _, err := io.ReadFull(answers, echo); err != nil || string(echo) != "through both" {
					t.Fatalf("got %q, %v", echo, err)
				}
				c.(interface{ CloseWrite() error }).CloseWrite()
				if rest, err := io.ReadAll(answers); err != nil || len(rest) > 0 {
					t.Errorf("after the end: %q, %v", rest, err)
				}
			}
			deadline := time.Now().Add(10 * time.Second) // a line comes behind its tunnel
			for strings.Count(log.String(), `" 101 `) < 3 && time.Now().Before(deadline) {
				time.Sleep(2 * time.Millisecond)
			}
			if n := strings.Count(log.String(), `" 101 `); n != 3 {
				t.Errorf("%d of 3 in the access log: %s", n, log)
			}
		})
	}
	address := run(t, nil, &edge.Site{Behind: handler})
	if answer, body := get(t, "GET", address, "/", "Connection", "Upgrade, HTTP2-Settings", "Upgrade", "h2c", "HTTP2-Settings", "AAMAAABk"); answer.StatusCode != 200 || body != "no upgrade: " {
		t.Errorf("h2c: got %s, %q", answer.Status, body)
	}
}

// Large bodies pass both ways, and come in pieces as they are sent.
func TestUpstreamLargeBodies(t *testing.T) {
	size := int64(100 << 20)
	if raceEnabled {
		size /= 10
	}
	download := func() io.Reader {
		return io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
	}
	upstream := serve(t, tunneltest.Listen(t), func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/up":
			sum := sha256.New()
			n, err := io.Copy(sum, r.Body)
			fmt.Fprintf(w, "%d %x %v", n, sum.Sum(nil), err)
		case "/down":
			io.Copy(w, download())
		case "/stream":
			control := http.NewResponseController(w)
			control.EnableFullDuplex()
			lines := bufio.NewScanner(r.Body)
			for lines.Scan() {
				fmt.Fprintf(w, "%s!\n", lines.Text())
				control.Flush()
			}
		}
	})
	handler, _ := upstreamSite(t, "http://"+upstream)
	ca := tunneltest.NewCA(t)
	certificate := ca.Issue(t, "edge.test")
	address := run(t, &certificate, &edge.Site{Behind: handler})
	want := sha256.New()
	io.Copy(want, download())
	for _, h2 := range []bool{false, true} {
		client := secure(t, ca, h2)
		answer, err := client.Post("https://"+address+"/up", "application/octet-stream", download())
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || string(text) != fmt.Sprintf("%d %x <nil>", size, want.Sum(nil)) {
			t.Errorf("HTTP/%d up: %s, %v", answer.ProtoMajor, text, err)
		}
		answer, err = client.Get("https://" + address + "/down")
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		_, err = io.Copy(sum, answer.Body)
		answer.Body.Close()
		if err != nil || !bytes.Equal(sum.Sum(nil), want.Sum(nil)) {
			t.Errorf("HTTP/%d down: %x, %v", answer.ProtoMajor, sum.Sum(nil), err)
		}
	}
	// Line by line, as far as HTTP/2 lets both sides talk at once.
	client := secure(t, ca, true)
	body, lines := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "POST", "https://"+address+"/stream", body)
	if err != nil {
		t.Fatal(err)
	}
	go fmt.Fprint(lines, "0\n")
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	answers := bufio.NewReader(answer.Body)
	for n := range 5 {
		if line, err := answers.ReadString('\n'); err != nil || line != fmt.Sprintf("%d!\n", n) {
			t.Fatalf("got %q, %v", line, err)
		}
		fmt.Fprintf(lines, "%d\n", n+1)
	}
	lines.Close()
}
