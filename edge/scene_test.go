package edge

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

const scenePatience = 20 * time.Second

// scene is an edge that runs, with an admin beside it.
type scene struct {
	t       testing.TB
	ca      *tunneltest.CA
	server  *Server
	config  *Config
	admin   *Admin
	address string // of the edge
	url     string // of the admin
	log     *lockedBuffer
	client  *http.Client
	end     context.CancelFunc // of the edge
	still   bool               // nobody measures but the test
}

// newScene has the sites a.test, with the tunnels /tunnel (to an echo), /nowhere and /not-for-you, and raw.test, which is
// one tunnel to an echo. Tweak may change what there is before it starts; nil changes nothing.
func newScene(t testing.TB, tweak func(*scene)) *scene {
	t.Helper()
	tunneltest.NoLeaks(t)
	s := &scene{t: t, ca: tunneltest.NewCA(t), log: new(lockedBuffer)}
	recent := NewRecentLog(slog.NewJSONHandler(s.log, nil))
	logger := slog.New(recent)
	s.server = &Server{Log: logger, Metrics: NewMetrics()}
	echo := tunneltest.Echo(t)
	s.config = &Config{
		Listeners: []Listener{{Address: "127.0.0.1:0"}},
		Sites: []*Site{
			{Names: []string{"a.test"}, Certificate: s.certificate("a.test"), Routes: []*Route{
				{Path: "/tunnel?key=hush-hush", Target: echo},
				{Path: "/nowhere", Target: closedPort(t)},
				{Path: "/not-for-you", Target: echo, Access: Access{From: nil}},
				{Path: "/narrow", Target: echo, Limit: 1},
			}},
			{Names: []string{"raw.test"}, Certificate: s.certificate("raw.test"), Raw: &Route{Target: echo}},
			{Names: []string{"none.test"}, Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return s.certificate("none.test")(nil)
			}},
		},
		Drain: -1,
	}
	s.admin = &Admin{Server: s.server, Metrics: s.server.Metrics, Recent: recent, Log: logger, Version: "v1.2.3-test"}
	if tweak != nil {
		tweak(s)
	}
	if err := s.server.Apply(t.Context(), s.config); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	s.end = end
	var running sync.WaitGroup
	t.Cleanup(func() { end(); running.Wait() })
	running.Go(func() {
		if err := s.server.Run(ctx); err != nil {
			t.Errorf("edge: %v", err)
		}
	})
	s.address = s.server.Listeners()[s.config.Listeners[0].Address].Addr().String()
	s.url = s.serve(s.admin)
	return s
}

// serve runs an admin until the test ends, and returns its URL.
func (s *scene) serve(a *Admin) string {
	s.t.Helper()
	l := tunneltest.Listen(s.t)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	if s.still {
		server := &http.Server{Handler: a.Handler()}
		go server.Serve(l)
		context.AfterFunc(ctx, func() { ended <- server.Close() })
	} else {
		go func() { ended <- a.Serve(ctx, l) }()
	}
	transport := &http.Transport{}
	s.client = &http.Client{Transport: transport, Timeout: scenePatience}
	s.t.Cleanup(func() {
		transport.CloseIdleConnections()
		stop()
		if err := <-ended; err != nil {
			s.t.Errorf("admin: %v", err)
		}
	})
	return "http://" + l.Addr().String()
}

func (s *scene) certificate(name string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c := s.ca.Issue(s.t, name)
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c, nil }
}

// get returns what the admin answers.
func (s *scene) get(path string) (status int, body string) {
	s.t.Helper()
	r, err := s.client.Get(s.url + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return r.StatusCode, string(text)
}

// metrics are the series of the admin, by name and labels.
func (s *scene) metrics() map[string]float64 {
	s.t.Helper()
	status, body := s.get("/metrics")
	if status != 200 {
		s.t.Fatalf("metrics: status %d: %s", status, body)
	}
	all := make(map[string]float64)
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(strings.TrimSpace(line[at+1:]), 64)
		if err != nil {
			s.t.Fatalf("metrics: line %q: %v", line, err)
		}
		all[line[:at]] = value
	}
	return all
}

// metric waits until a series has a value.
func (s *scene) metric(series string, want float64) {
	s.t.Helper()
	var got float64
	ok := s.eventually(func() bool {
		got = s.metrics()[series]
		return got == want
	})
	if !ok {
		s.t.Errorf("%s is %v, want %v", series, got, want)
	}
}

func (s *scene) eventually(ok func() bool) bool {
	for deadline := time.Now().Add(scenePatience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// dial opens a tunnel; without a path one of a site without HTTP. Close it.
func (s *scene) dial(name, path string) (tunnel.Conn, error) {
	s.t.Helper()
	bare, err := net.Dial("tcp", s.address)
	if err != nil { // a limit
		return nil, err
	}
	layers := tunnel.Transport{&tunnel.TLS{ClientConfig: &tls.Config{RootCAs: s.ca.Pool, ServerName: name}}}
	if path != "" {
		layers = append(layers, &tunnel.WebSocket{Host: name, Path: path})
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), scenePatience)
	defer cancel()
	c, err := layers.Client(ctx, bare.(tunnel.Conn))
	if err != nil {
		bare.Close()
	}
	return c, err
}

// open is dial for tunnels that come about. It is closed when the test ends, if it is not before.
func (s *scene) open(name, path string) tunnel.Conn {
	s.t.Helper()
	c, err := s.dial(name, path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// finish ends a tunnel to an echo, as both sides want it.
func (s *scene) finish(c tunnel.Conn) {
	s.t.Helper()
	err := c.CloseWrite()
	if err == nil {
		_, err = io.Copy(io.Discard, readerOf(c))
	}
	if err != nil {
		s.t.Error(err)
	}
	c.Close()
}

// echo sends size bytes and gets them back. The tunnel stays open.
func (s *scene) echo(c tunnel.Conn, size int) {
	s.t.Helper()
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		sent <- err
	}()
	c.SetReadDeadline(time.Now().Add(scenePatience))
	_, err := io.CopyN(io.Discard, readerOf(c), int64(size))
	if err := errors.Join(err, <-sent); err != nil {
		s.t.Error(err)
	}
}

// carried waits until that many bytes are counted, each way.
func (s *scene) carried(want int64) {
	s.t.Helper()
	var sent, received int64
	ok := s.eventually(func() bool {
		sent, received = 0, 0
		for _, t := range s.server.Traffic() {
			sent += t.Sent
			received += t.Received
		}
		return sent == want && received == want
	})
	if !ok {
		s.t.Errorf("counted are %d bytes and %d, want %d", sent, received, want)
	}
}

// readerOf hides what a Conn can do beside Read.
func readerOf(c tunnel.Conn) io.Reader { return struct{ io.Reader }{c} }

// closedPort is an address at which nobody listens.
func closedPort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// lockedBuffer is a bytes.Buffer for many goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var errNoCertificate = errors.New("the CA has not answered yet")
