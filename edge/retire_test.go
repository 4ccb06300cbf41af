package edge_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"raimon/edge"
	"raimon/internal/tunneltest"
)

const retirePatience = 20 * time.Second

// retiring is a server that tunnels everything that comes without TLS to an echo.
type retiring struct {
	*edge.Server
	ended <-chan error // what Run returns
	stop  func()
}

func startRetiring(t testing.TB, c *edge.Config) *retiring {
	t.Helper()
	s := &retiring{Server: &edge.Server{}}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	if err := s.Apply(ctx, c); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	s.ended, s.stop = ended, cancel
	return s
}

// connect connects to the server's listener at address.
func (s *retiring) connect(t testing.TB, address string) net.Conn {
	t.Helper()
	a := s.Listeners()[address].Addr()
	c, err := net.Dial(a.Network(), a.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(retirePatience))
	return c
}

func (s *retiring) end(t testing.TB) {
	t.Helper()
	select {
	case err := <-s.ended:
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(retirePatience):
		t.Fatal("Run does not return")
	}
}

func echoOnce(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, "still there?"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, len("still there?"))); err != nil {
		t.Fatal(err)
	}
}

func TestRetire(t *testing.T) {
	const address = "127.0.0.1:0"
	config := &edge.Config{
		Listeners: []edge.Listener{{Address: address, Plain: true}},
		Sites:     []*edge.Site{{Raw: &edge.Route{Target: tunneltest.Echo(t)}}},
		Drain:     time.Hour,
	}
	s := startRetiring(t, config)
	where := s.Listeners()[address].Addr().String()
	c := s.connect(t, address)
	echoOnce(t, c)

	s.Retire()

	if late, err := net.Dial("tcp", where); err == nil {
		late.Close()
		t.Error("somebody still listens")
	}
	if err := s.Apply(t.Context(), config); !errors.Is(err, edge.ErrRetired) {
		t.Errorf("Apply: %v, want %v", err, edge.ErrRetired)
	}
	echoOnce(t, c)
	if len(s.ended) > 0 {
		t.Error("Run has returned before the tunnel has ended")
	}
	c.Close()
	s.end(t)
}

// The end of the context counts as ever.
func TestRetireAndEnd(t *testing.T) {
	const address = "127.0.0.1:0"
	s := startRetiring(t, &edge.Config{
		Listeners: []edge.Listener{{Address: address, Plain: true}},
		Sites:     []*edge.Site{{Raw: &edge.Route{Target: tunneltest.Echo(t)}}},
		Drain:     -1,
	})
	echoOnce(t, s.connect(t, address))
	s.Retire()
	s.stop()
	s.end(t)
}

func TestRetireBeforeRun(t *testing.T) {
	s := &edge.Server{}
	err := s.Apply(t.Context(), &edge.Config{Listeners: []edge.Listener{{Address: "127.0.0.1:0", Plain: true}}, Sites: []*edge.Site{{}}})
	if err != nil {
		t.Fatal(err)
	}
	s.Retire()
	if err := s.Run(t.Context()); err != nil {
		t.Error(err)
	}
}

// Who has connected and says nothing is waited for as long as a handshake may take.
func TestRetireWithSilentVisitors(t *testing.T) {
	const address = "127.0.0.1:0"
	s := startRetiring(t, &edge.Config{
		Listeners: []edge.Listener{{Address: address, Plain: true}},
		Sites:     []*edge.Site{{Routes: []*edge.Route{{Path: "/ws", Target: tunneltest.Echo(t)}}}},
		Timeout:   200 * time.Millisecond, Drain: time.Hour,
	})
	silent := s.connect(t, address)
	visitor := s.connect(t, address) // keeps the connection after an answer
	if _, err := io.WriteString(visitor, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := visitor.Read(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	s.Retire()
	s.end(t)
	if _, err := silent.Read(make([]byte, 1)); err == nil {
		t.Error("the silent visitor hears something")
	}
}

func TestRetireKeepsUnixSockets(t *testing.T) {
	dir, err := os.MkdirTemp("", "retire")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	s := startRetiring(t, &edge.Config{
		Listeners: []edge.Listener{{Address: "unix:" + path, Plain: true}},
		Sites:     []*edge.Site{{Raw: &edge.Route{Target: tunneltest.Echo(t)}}},
		Drain:     -1,
	})
	echoOnce(t, s.connect(t, "unix:"+path))
	s.Retire()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the file: %v", err)
	}
	s.stop()
	s.end(t)
}

// Listeners that were handed over are used, also where their address says nothing.
func TestHandedListeners(t *testing.T) {
	const address = "127.0.0.1:0"
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := &edge.Server{Handed: map[string]net.Listener{address: l, "elsewhere": nil}}
	err = s.Apply(t.Context(), &edge.Config{Listeners: []edge.Listener{{Address: address, Plain: true}}, Sites: []*edge.Site{{}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := s.Listeners()[address]; got != l {
		t.Errorf("the server listens at %v, want %v", got.Addr(), l.Addr())
	}
}
