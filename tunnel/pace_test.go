package tunnel_test

import (
	"bufio"
	"bytes"
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

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

const bigAnswer = 8 << 20

// slowSite has a page for each way to wait.
func slowSite(ended chan<- error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var err error
		switch r.URL.Path {
		case "/read":
			_, err = io.Copy(io.Discard, r.Body)
		case "/ignore": // the body
		case "/write":
			_, err = w.Write(make([]byte, bigAnswer))
		case "/little": // less than net/http sends before the handler returns
			_, err = w.Write(make([]byte, 2000))
		case "/think":
			time.Sleep(time.Hour)
			err = r.Context().Err()
		case "/work": // think before the answer, and within it
			_, err = io.Copy(w, r.Body)
			time.Sleep(time.Hour)
			fmt.Fprint(w, " ", err, r.Context().Err(), " ")
			time.Sleep(time.Hour)
		}
		if err == nil {
			fmt.Fprint(w, "done")
		}
		ended <- err
	}
}

// host serves slowSite on one end of a connection, with the time limits of w, and returns the other.
func host(w *tunnel.WebSocket) (visitor *tunneltest.PipeConn, handler, session chan error) {
	visitor, accepted := tunneltest.Pipe()
	handler, session = make(chan error, 100), make(chan error, 1)
	w.Match, w.Site = nobody, slowSite(handler)
	f := &tunnel.Forwarder{Accept: tunnel.Transport{w}, Timeout: 10 * time.Second}
	go func() { session <- f.Handle(context.Background(), accepted) }()
	return visitor, handler, session
}

func nobody(*http.Request, *tunnel.Info) bool { return false }

// took is how long it takes until something comes from ch, and what.
func took(ch <-chan error) (time.Duration, error) {
	begin := time.Now()
	err := <-ch
	return time.Since(begin), err
}

// A visitor that stalls is gone after its time, whatever it is that it does not send or take.
func TestStalledVisitorIsCut(t *testing.T) {
	const post = "POST %s HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000\r\n\r\nhalf"
	for name, test := range map[string]struct {
		sent string
		want time.Duration
	}{
		"no head":               {"", 10 * time.Second},
		"half a head":           {"GET / HTTP/1.1\r\nHost: a.te", 10 * time.Second},
		"half a later head":     {"GET / HTTP/1.1\r\nHost: a.test\r\n\r\nGET / HT", 11 * time.Second},
		"idle":                  {"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", time.Minute},
		"half a body":           {fmt.Sprintf(post, "/read"), time.Minute},
		"half a body, unread":   {fmt.Sprintf(post, "/ignore"), time.Minute},
		"half a chunk":          {"POST /read HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", time.Minute},
		"an answer not taken":   {"GET /write HTTP/1.1\r\nHost: a.test\r\n\r\n", time.Minute},
		"answers not taken":     {strings.Repeat("GET /little HTTP/1.1\r\nHost: a.test\r\n\r\n", 70), time.Minute},
		"half a preface":        {"PRI * HTTP/2.0\r\n\r\nS", 10 * time.Second},
		"a preface":             {http2.ClientPreface, 2 * time.Second},
		"HTTP/2, half a head":   {http2Sent(t, "/read", false, true), time.Minute},
		"HTTP/2, half a body":   {http2Sent(t, "/read", true, true), 2 * time.Minute}, // the stream, then the idle connection
		"HTTP/2, not taken":     {http2Sent(t, "/write", true, false), 2 * time.Minute},
		"HTTP/2, little window": {http2Sent(t, "/little", true, false), 2 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				visitor, _, session := host(new(tunnel.WebSocket))
				defer visitor.Close()
				go io.WriteString(visitor, test.sent)
				if name == "idle" || strings.HasPrefix(name, "HTTP/2") { // the connection itself is taken from
					go io.Copy(io.Discard, visitor)
				}
				d, err := took(session)
				if d < test.want-time.Second || d > test.want+2*time.Second {
					t.Errorf("took %v, want %v", d, test.want)
				}
				if test.want >= time.Minute && !errors.Is(err, tunnel.ErrNoTunnel) {
					t.Errorf("it ended with %v", err)
				}
			})
		})
	}
}

// The time between requests and that for bodies and answers are set apart.
func TestTimeForVisitorsIsSet(t *testing.T) {
	set := tunnel.WebSocket{IdleTimeout: 3 * time.Second, BodyTimeout: 20 * time.Second}
	for name, test := range map[string]struct {
		sent string
		want time.Duration
	}{
		"half a later head":   {"GET / HTTP/1.1\r\nHost: a.test\r\n\r\nGET / HT", set.IdleTimeout},
		"idle":                {"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", set.IdleTimeout},
		"half a body":         {"POST /read HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000\r\n\r\nhalf", set.BodyTimeout},
		"half a body, unread": {"POST /ignore HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000\r\n\r\nhalf", set.BodyTimeout},
		"an answer not taken": {"GET /write HTTP/1.1\r\nHost: a.test\r\n\r\n", set.BodyTimeout},
		"HTTP/2, half a body": {http2Sent(t, "/read", true, true), set.BodyTimeout + set.IdleTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				visitor, _, session := host(&tunnel.WebSocket{IdleTimeout: set.IdleTimeout, BodyTimeout: set.BodyTimeout})
				defer visitor.Close()
				go io.WriteString(visitor, test.sent)
				if name != "an answer not taken" {
					go io.Copy(io.Discard, visitor)
				}
				if d, _ := took(session); d < test.want || d > test.want+2*time.Second {
					t.Errorf("took %v, want %v", d, test.want)
				}
			})
		})
	}
}

// http2Sent is a request that does not end, and has a window of a few bytes for its answer.
func http2Sent(t testing.TB, path string, whole, end bool) string {
	t.Helper()
	var out, block bytes.Buffer
	out.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&out, nil)
	e := hpack.NewEncoder(&block)
	for _, field := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", "a.test"}, {":path", path}} {
		if err := e.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10}); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: whole, EndStream: !end}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// Whoever is slow, and a site that thinks for long, are served to the end.
func TestSlowVisitorIsServed(t *testing.T) {
	for name, protocol := range map[string]func(*http.Protocols){
		"HTTP/1.1": func(p *http.Protocols) { p.SetHTTP1(true) },
		"HTTP/2":   func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				visitor, handler, session := host(new(tunnel.WebSocket))
				protocols := new(http.Protocols)
				protocol(protocols)
				transport := &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn, error) { return visitor, nil }}
				for _, test := range []struct {
					path string
					body io.Reader
					want string
				}{
					{"/read", &slowly{pieces: 40}, "done"},
					{"/think", nil, "done"},
					{"/think", strings.NewReader("a body that nobody reads"), "done"},
					{"/work", &slowly{pieces: 10}, "xxxxxxxxxx <nil> <nil> done"},
					{"/write", nil, strings.Repeat("\x00", bigAnswer) + "done"},
				} {
					answer, err := transport.RoundTrip(request(t, "POST", test.path, test.body))
					if err != nil {
						t.Fatalf("%s: %v", test.path, err)
					}
					var got bytes.Buffer
					for err == nil {
						time.Sleep(20 * time.Second)
						_, err = io.CopyN(&got, answer.Body, 64<<10)
					}
					answer.Body.Close()
					if err != io.EOF || got.String() != test.want {
						t.Errorf("%s: %d bytes, %v, want %d", test.path, got.Len(), err, len(test.want))
					}
					if err := <-handler; err != nil {
						t.Errorf("%s: the site says %v", test.path, err)
					}
				}
				transport.CloseIdleConnections()
				<-session
			})
		})
	}
}

// slowly is a body of which a byte comes each 50 s.
type slowly struct{ pieces int }

func (s *slowly) Read(p []byte) (int, error) {
	if s.pieces--; s.pieces < 0 {
		return 0, io.EOF
	}
	time.Sleep(50 * time.Second)
	return copy(p, "x"), nil
}

// Over HTTP/2 one stream that does not go on ends by itself; others, and long thought, are no worse for it.
func TestStalledStreamEndsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		visitor, handler, session := host(new(tunnel.WebSocket))
		conn := &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) { return visitor, nil },
			Protocols:   new(http.Protocols),
		}
		conn.Protocols.SetUnencryptedHTTP2(true)
		silent, hold := io.Pipe()
		defer hold.Close()
		thought := make(chan error, 1)
		go func() {
			answer, err := conn.RoundTrip(request(t, "GET", "/think", nil))
			if err == nil {
				_, err = io.ReadAll(answer.Body)
			}
			thought <- err
		}()
		synctest.Wait() // or the next request would dial as well, and there is one connection only
		go conn.RoundTrip(request(t, "POST", "/read", silent))
		if d, err := took(handler); err == nil || d > 66*time.Second {
			t.Errorf("the body ended after %v with %v", d, err)
		}
		go conn.RoundTrip(request(t, "GET", "/write", nil)) // nobody reads the answer
		if d, err := took(handler); err == nil || d > 66*time.Second {
			t.Errorf("the answer ended after %v with %v", d, err)
		}
		if err := <-thought; err != nil {
			t.Errorf("the stream that took an hour: %v", err)
		}
		if err := <-handler; err != nil {
			t.Errorf("the site thought for an hour: %v", err)
		}
		conn.CloseIdleConnections()
		visitor.Close()
		<-session
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

// A site that takes a connection over keeps it as long as it likes, and then the visit is over.
func TestSiteHijacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		visitor, accepted := tunneltest.Pipe()
		defer visitor.Close()
		site := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			time.Sleep(time.Hour)
			io.WriteString(c, "late")
		})
		f := &tunnel.Forwarder{Accept: tunnel.Transport{&tunnel.WebSocket{Match: nobody, Site: site}}}
		session := make(chan error, 1)
		go func() { session <- f.Handle(t.Context(), accepted) }()
		io.WriteString(visitor, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
		if got, err := bufio.NewReader(visitor).ReadString('e'); got != "late" || err != nil {
			t.Errorf("got %q, %v", got, err)
		}
		if d, _ := took(session); d > time.Second {
			t.Errorf("the visit goes on for %v", d)
		}
	})
}
