package tunnel_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// visited runs an edge with site for one visitor in memory, and returns the visitor's end. Its error comes when it has ended.
func visited(t *testing.T, site http.HandlerFunc) (visitor *tunneltest.PipeConn, ended chan error) {
	visitor, accepted := tunneltest.Pipe()
	ended = make(chan error, 1)
	go func() {
		_, err := (&tunnel.WebSocket{Path: "/tunnel", Site: site}).Server(t.Context(), accepted, &tunnel.Info{Client: accepted.RemoteAddr()})
		accepted.Close()
		ended <- err
	}()
	return visitor, ended
}

// endsWithin wants the connection to end between the two, in the time of the bubble.
func endsWithin(t *testing.T, ended chan error, least, most time.Duration) {
	t.Helper()
	begin := time.Now()
	select {
	case err := <-ended:
		if took := time.Since(begin); took < least || !errors.Is(err, tunnel.ErrNoTunnel) {
			t.Errorf("it ended after %v with %v", took, err)
		}
	case <-time.After(most):
		t.Errorf("it has not ended after %v", most)
	}
}

// A body of which nothing comes, or too little for a site that does not read it, is not waited for.
func TestSlowBodyIsNotKept(t *testing.T) {
	for name, site := range map[string]http.HandlerFunc{
		"unread": http.NotFound,
		"read":   func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				visitor, ended := visited(t, site)
				defer visitor.Close()
				go io.Copy(io.Discard, visitor)
				io.WriteString(visitor, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\nx")
				endsWithin(t, ended, 59*time.Second, 62*time.Second)
			})
		})
	}
}

// An upload that goes on may last, and so may a site that thinks for long, before or after it has read.
func TestLongRequestIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		site := func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			time.Sleep(time.Hour)
			fmt.Fprint(w, n, err, r.Context().Err())
			time.Sleep(time.Hour)
		}
		visitor, ended := visited(t, site)
		defer visitor.Close()
		answers := bufio.NewReader(visitor)
		for range 2 {
			io.WriteString(visitor, "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\n")
			for range 10 {
				time.Sleep(50 * time.Second)
				io.WriteString(visitor, "x")
			}
			answer, err := http.ReadResponse(answers, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(answer.Body); err != nil || string(body) != "10 <nil> <nil>" {
				t.Errorf("the answer is %q, %v", body, err)
			}
		}
		visitor.CloseWrite()
		<-ended
	})
}

// An answer of which nothing is taken is not kept. One of which some is taken now and then is complete in the end.
func TestSlowReaderOfSite(t *testing.T) {
	const size = 4 << 20
	site := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.Repeat("x", size)) }
	const request = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
	t.Run("nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			visitor, ended := visited(t, site)
			defer visitor.Close()
			io.WriteString(visitor, request)
			endsWithin(t, ended, 59*time.Second, 62*time.Second)
		})
	})
	t.Run("a little", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			visitor, ended := visited(t, site)
			defer visitor.Close()
			io.WriteString(visitor, request)
			n := 0
			for b := make([]byte, 64<<10); ; {
				m, err := io.ReadFull(visitor, b)
				n += m
				if err != nil {
					break
				}
				time.Sleep(20 * time.Second)
			}
			if n < size {
				t.Errorf("%d bytes came, want %d", n, size)
			}
			<-ended
		})
	})
}

// Over HTTP/2 one stream that does not go on ends by itself; others, and long thought, are no worse for it.
func TestSlowStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck, begun := make(chan error, 1), make(chan struct{})
		site := func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/body":
				_, err := io.Copy(io.Discard, r.Body)
				stuck <- err
			case "/answer":
				_, err := io.WriteString(w, strings.Repeat("x", 20<<20))
				stuck <- err
			default:
				close(begun)
				time.Sleep(time.Hour)
				io.WriteString(w, "thought")
			}
		}
		visitor, ended := visited(t, site)
		conn := &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) { return visitor, nil },
			Protocols:   new(http.Protocols),
		}
		conn.Protocols.SetUnencryptedHTTP2(true)
		silent, hold := io.Pipe()
		defer hold.Close()
		thought := make(chan error, 1)
		go func() {
			answer, err := conn.RoundTrip(request(t, "GET", "/", nil))
			if err == nil {
				_, err = io.ReadAll(answer.Body)
			}
			thought <- err
		}()
		<-begun // or the next request would dial as well, and there is one connection only
		go conn.RoundTrip(request(t, "POST", "/body", silent))
		begin := time.Now()
		if err := <-stuck; err == nil || time.Since(begin) > 66*time.Second {
			t.Errorf("the body ended after %v with %v", time.Since(begin), err)
		}
		begin = time.Now()
		answer, err := conn.RoundTrip(request(t, "GET", "/answer", nil)) // nobody reads it
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		if err := <-stuck; err == nil || time.Since(begin) > 66*time.Second {
			t.Errorf("the answer ended after %v with %v", time.Since(begin), err)
		}
		if err := <-thought; err != nil {
			t.Errorf("the stream that took an hour: %v", err)
		}
		conn.CloseIdleConnections()
		visitor.Close()
		<-ended
	})
}

func request(t *testing.T, method, path string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(context.Background(), method, "http://a.test"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Whatever was read ahead, and in however many steps, Relay has the bare connection.
func TestNestedReadAhead(t *testing.T) {
	dialed, accepted := tunneltest.Pair(t)
	c := tunnel.ReadAhead(tunnel.ReadAhead(accepted, []byte("b")), []byte("a"))
	far, target := tunneltest.Pair(t)
	relayed := make(chan error, 1)
	go func() {
		_, _, err := tunnel.Relay(t.Context(), c, far, time.Second)
		relayed <- err
	}()
	io.WriteString(dialed, "c")
	dialed.CloseWrite()
	target.CloseWrite()
	if got, err := io.ReadAll(target); err != nil || string(got) != "abc" {
		t.Errorf("%q arrives, %v", got, err)
	}
	if err := <-relayed; err != nil {
		t.Error(err)
	}
}

// A ClientHello in records of one byte is not kept for ever.
func TestPeekHelloIsBounded(t *testing.T) {
	dialed, accepted := tunneltest.Pair(t)
	go func() {
		io.WriteString(dialed, "\x16\x03\x01\x00\x04\x01\x00\xff\x00")
		for range 100_000 {
			if _, err := io.WriteString(dialed, "\x16\x03\x01\x00\x01x"); err != nil {
				return
			}
		}
	}()
	_, _, err := tunnel.PeekHello(t.Context(), accepted, new(tunnel.Info))
	if err == nil || !strings.Contains(err.Error(), "16 KiB") {
		t.Errorf("%v, want that it is too long", err)
	}
	var timeout net.Error
	if errors.As(err, &timeout) {
		t.Error("it ended by a timeout")
	}
}
