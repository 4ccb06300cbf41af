package edge_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"raimon/edge"
	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// open asks for the tunnel on c, which answers has read from so far, and sends something through it.
func open(t testing.TB, c net.Conn, answers *bufio.Reader) {
	t.Helper()
	fmt.Fprint(c, strings.Replace(upgradeText, "%s", openPath, 1))
	answer, err := http.ReadResponse(answers, nil)
	if err != nil || answer.StatusCode != 101 {
		t.Fatalf("got %v, %v", answer, err)
	}
	fmt.Fprint(c, "\x82\x85\x00\x00\x00\x00hello") // masked with zeros
	echo := make([]byte, 7)
	if _, err := io.ReadFull(answers, echo); err != nil || string(echo) != "\x82\x05hello" {
		t.Fatalf("got %q, %v", echo, err)
	}
}

// The tenth request of a connection may be that for the tunnel.
func TestTunnelAfterTheWebsite(t *testing.T) {
	ca := tunneltest.NewCA(t)
	certificate := ca.Issue(t, "edge.test")
	folder, err := edge.Folder(website(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, cert := range map[string]*tls.Certificate{"plain": nil, "tls": &certificate} {
		t.Run(name, func(t *testing.T) {
			suspects := suspectsOf(t, folder, cert, &tls.Config{RootCAs: ca.Pool, ServerName: "edge.test"})
			c, err := suspects[0].dial()
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			answers := bufio.NewReader(c)
			for n := range 9 {
				target, want := "/docs/", 200
				if n%3 == 0 {
					target, want = lockedPath, 404
				}
				fmt.Fprint(c, strings.Replace(upgradeText, "%s", target, 1))
				answer, err := http.ReadResponse(answers, nil)
				if err != nil || answer.StatusCode != want {
					t.Fatalf("%s: got %v, %v", target, answer, err)
				}
				if _, err := io.Copy(io.Discard, answer.Body); err != nil {
					t.Fatal(err)
				}
			}
			open(t, c, answers)
		})
	}
}

// Whoever has shaken hands for one site does not get another on the same connection (RFC 9110, section 15.5.20).
func TestHostOfAnotherSiteIsMisdirected(t *testing.T) {
	ca := tunneltest.NewCA(t)
	certificate := ca.Issue(t, "edge.test", "other.test", "more.test")
	page := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, text) })
	}
	address := run(t, &certificate, &edge.Site{Names: []string{"edge.test", "*.edge.test"}, Behind: page("edge")},
		&edge.Site{Names: []string{"other.test"}, Behind: page("other"), Routes: routes(t)}, &edge.Site{Behind: page("default")})
	for _, h2 := range []bool{false, true} {
		client := secure(t, ca, h2)
		for host, want := range map[string]int{
			"edge.test": 200, "EDGE.test.:443": 200, "www.edge.test": 200, "unknown.test": 200, "other.test": 421, "Other.Test:443": 421,
		} {
			r, err := http.NewRequest("GET", "https://"+address+openPath, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = host
			answer, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if err != nil || answer.StatusCode != want || want == 200 && string(text) != "edge" {
				t.Errorf("HTTP/%d, %s: got %s, %q, %v, want %d", answer.ProtoMajor, host, answer.Status, text, err, want)
			}
		}
	}
	c, err := tls.Dial("tcp", address, &tls.Config{RootCAs: ca.Pool, ServerName: "edge.test"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, strings.Replace(strings.Replace(upgradeText, "%s", openPath, 1), "edge.test", "other.test", 1))
	if answer, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || answer.StatusCode != 421 {
		t.Errorf("the tunnel of another site: got %v, %v", answer, err)
	}
}

// A head of 1 MB is refused, and costs no memory.
func TestLargeHeadsAreRefused(t *testing.T) {
	ca := tunneltest.NewCA(t)
	certificate := ca.Issue(t, "edge.test")
	plain, secured := run(t, nil, &edge.Site{Routes: routes(t)}), run(t, &certificate, &edge.Site{Routes: routes(t)})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const times = 20
	for range times {
		c, err := net.Dial("tcp", plain)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() // after the memory has been looked at
		c.SetDeadline(time.Now().Add(20 * time.Second))
		go io.Copy(c, io.MultiReader(strings.NewReader("GET "+openPath+" HTTP/1.1\r\nHost: edge.test\r\nX: "), strings.NewReader(strings.Repeat("x", 1<<20))))
		if answer, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || answer.StatusCode != 431 {
			t.Fatalf("got %v, %v", answer, err)
		}
	}
	runtime.ReadMemStats(&after)
	if per := (after.TotalAlloc - before.TotalAlloc) / times; per > 3<<20 { // 1 MB of it is what is sent
		t.Errorf("%d KB allocated for each", per>>10)
	}
	r, err := http.NewRequest("GET", "https://"+secured+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		r.Header.Add("X", strings.Repeat("x", 250<<10))
	}
	transport := secure(t, ca, true).Transport
	if answer, err := transport.RoundTrip(r); err == nil && answer.StatusCode != 431 {
		t.Errorf("HTTP/2: got %s", answer.Status)
	}
}

// How large a head may be is up to the config, for tunnels as for the website, and a reload changes it.
func TestHeaderSize(t *testing.T) {
	var server edge.Server
	config := edge.Config{
		Listeners: []edge.Listener{{Address: "127.0.0.1:0", Plain: true}}, Drain: -1,
		Sites: []*edge.Site{{Routes: routes(t), Behind: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}},
	}
	if err := server.Apply(t.Context(), &config); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	status := func(head string, size int) int {
		t.Helper()
		c, err := net.Dial("tcp", server.Listeners()["127.0.0.1:0"].Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		head = strings.TrimSuffix(head, "\r\n") + "X: "
		go io.WriteString(c, head+strings.Repeat("x", size-len(head)-4)+"\r\n\r\n")
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode
	}
	const page = "GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n"
	tunnel := strings.Replace(upgradeText, "%s", openPath, 1)
	for _, step := range []struct{ limit, size, page, tunnel int }{
		{0, 60 << 10, 200, 101}, {0, 70 << 10, 431, 431},
		{8 << 10, 7 << 10, 200, 101}, {8 << 10, 13 << 10, 431, 431}, // net/http reads 4 KiB ahead
		{200 << 10, 190 << 10, 200, 101},
	} {
		next := config
		next.HeaderSize = step.limit
		if err := server.Apply(t.Context(), &next); err != nil {
			t.Fatal(err)
		}
		if got := status(page, step.size); got != step.page {
			t.Errorf("limit %d: a page with a head of %d bytes: %d, want %d", step.limit, step.size, got, step.page)
		}
		if got := status(tunnel, step.size); got != step.tunnel {
			t.Errorf("limit %d: an upgrade of %d bytes: %d, want %d", step.limit, step.size, got, step.tunnel)
		}
	}
}

// HTTP/2 is bounded: in streams at a time, and for those who open and abandon them as fast as they can.
func TestHTTP2IsBounded(t *testing.T) {
	handling := make(chan struct{}, 10000)
	release := make(chan struct{})
	site := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handling <- struct{}{}
		<-release
	})
	address := run(t, nil, &edge.Site{Behind: site})
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer close(release)
	c.SetDeadline(time.Now().Add(20 * time.Second))
	var flood strings.Builder
	flood.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&flood, c)
	f.WriteSettings()
	for stream := uint32(1); stream < 20000; stream += 2 {
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte("\x82\x86\x84\x41\x01a"), EndHeaders: true, EndStream: true}) // GET http / a
		f.WriteRSTStream(stream, http2.ErrCodeCancel)
	}
	go io.WriteString(c, flood.String())
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("no GOAWAY: %v", err)
		}
		if away, ok := frame.(*http2.GoAwayFrame); ok {
			if away.ErrCode != http2.ErrCodeEnhanceYourCalm {
				t.Errorf("got %s", away.ErrCode)
			}
			break
		}
	}
	if n := len(handling); n > 100 {
		t.Errorf("%d requests at a time", n)
	}
}

// Whoever is too slow with a head, over TLS as well, is gone after the time limit.
func TestSlowHeadsAreCut(t *testing.T) {
	ca := tunneltest.NewCA(t)
	certificate := ca.Issue(t, "edge.test")
	for name, cert := range map[string]*tls.Certificate{"plain": nil, "tls": &certificate} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := &edge.Config{
				Listeners: []edge.Listener{{Address: "127.0.0.1:0", Plain: cert == nil}}, Timeout: 300 * time.Millisecond, Drain: -1,
				Sites: []*edge.Site{{Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil }, Routes: routes(t)}},
			}
			address := runConfig(t, config)
			for _, head := range []string{"", "G", "GET / HTTP/1.1\r\nX: ", "PRI * HTTP/2.0\r\n"} {
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if cert != nil {
					c = tls.Client(c, &tls.Config{RootCAs: ca.Pool, ServerName: "edge.test"})
				}
				c.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := io.WriteString(c, head); err != nil {
					t.Fatal(err)
				}
				stop := make(chan struct{})
				go func() { // a byte now and then does not help
					tick := time.NewTicker(50 * time.Millisecond)
					defer tick.Stop()
					for head != "" {
						select {
						case <-tick.C:
							c.Write([]byte("x"))
						case <-stop:
							return
						}
					}
				}()
				begin := time.Now()
				io.Copy(io.Discard, c)
				close(stop)
				if took := time.Since(begin); took > 5*time.Second {
					t.Errorf("%q: cut after %v", head, took)
				}
			}
		})
	}
}

// A site that the client has to wait for leaves the tunnels beside it alone, and ends with the server.
func TestServerEndsWithVisitors(t *testing.T) {
	begun := make(chan struct{})
	site := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
	})
	server := &edge.Server{}
	config := &edge.Config{Listeners: []edge.Listener{{Address: "127.0.0.1:0", Plain: true}}, Drain: -1,
		Sites: []*edge.Site{{Behind: site, Routes: routes(t)}}, Dial: new(tunnel.Dialer).Dial}
	if err := server.Apply(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	address := server.Listeners()["127.0.0.1:0"].Addr().String()
	waiting, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	fmt.Fprint(waiting, "GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n")
	<-begun
	tunneled, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer tunneled.Close()
	open(t, tunneled, bufio.NewReader(tunneled))
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the server goes on")
	}
}

// Over TLS an answer whose connection ends without a close_notify could have been cut off (RFC 8446, section 6.1).
func TestAnswersEndWithCloseNotify(t *testing.T) {
	ca := tunneltest.NewCA(t)
	certificate := ca.Issue(t, "edge.test")
	address := run(t, &certificate, &edge.Site{Routes: routes(t)})
	for _, request := range []string{"GET / HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "sheer nonsense\r\n\r\n"} {
		bare, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer bare.Close()
		seen := &overheard{Conn: bare}
		c := tls.Client(seen, &tls.Config{RootCAs: ca.Pool, ServerName: "edge.test", MaxVersion: tls.VersionTLS12}) // of which alerts can be told
		c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprint(c, request)
		if answer, err := io.ReadAll(c); err != nil || len(answer) == 0 {
			t.Errorf("%q: got %q, %v", request, answer, err)
		}
		if last := lastRecord(seen.received); last != 21 {
			t.Errorf("%q: the last record has the type %d, want an alert", request, last)
		}
	}
}

// overheard keeps what comes.
type overheard struct {
	net.Conn
	received []byte
}

func (o *overheard) Read(p []byte) (int, error) {
	n, err := o.Conn.Read(p)
	o.received = append(o.received, p[:n]...)
	return n, err
}

// lastRecord is the type of the last TLS record in b (RFC 5246, section 6.2.1).
func lastRecord(b []byte) (last byte) {
	for len(b) >= 5 {
		last = b[0]
		b = b[min(len(b), 5+int(binary.BigEndian.Uint16(b[3:]))):]
	}
	return last
}
