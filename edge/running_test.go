package edge

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// patience is how long a test waits for what has to happen.
const patience = 20 * time.Second

// running is a Server that runs until its test ends, on one listener.
type running struct {
	*Server
	address string
	log     *lines
	stop    func() // ends Run and waits for it
}

// run starts a server with c, whose listeners and time limits it fills in where there are none. When the test ends no
// place may be taken any more.
func run(t testing.TB, c *Config) *running {
	t.Helper()
	complete(c)
	r := &running{log: &lines{}}
	r.Server = &Server{
		Metrics: NewMetrics(),
		Log:     slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Hint: func(err error) string {
			if h, ok := err.(interface{ Hint() string }); ok {
				return h.Hint()
			}
			return ""
		},
	}
	if err := r.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r.address = r.Listeners()[c.Listeners[0].Address].Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		r.noPlaceIsTaken(t)
	})
	t.Cleanup(r.stop)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", r.log)
		}
	})
	return r
}

func complete(c *Config) {
	if c.Listeners == nil {
		c.Listeners = []Listener{{Address: "127.0.0.1:0"}}
	}
	if c.Drain == 0 {
		c.Drain = -1
	}
}

// noPlaceIsTaken looks at all that is counted, when everything has ended.
func (r *running) noPlaceIsTaken(t testing.TB) {
	t.Helper()
	if r.room.open != 0 {
		t.Errorf("%d connections are still counted", r.room.open)
	}
	for network, client := range r.addresses.all {
		if client.open != 0 || client.undecided.Len() != 0 {
			t.Errorf("%v: %d connections are still counted, %d of them undecided", network, client.open, client.undecided.Len())
		}
	}
	if r.addresses.absent != len(r.addresses.all) {
		t.Errorf("%d addresses are remembered, and %d counted as absent", len(r.addresses.all), r.addresses.absent)
	}
	for name, count := range r.counts {
		if count.taken != 0 || len(count.turns) != 0 {
			t.Errorf("%v: %d tunnels are still counted, %d wait", name, count.taken, len(count.turns))
		}
	}
}

// lines is a log.
type lines struct{ lockedBuffer }

// with are the lines that have all of the words.
func (l *lines) with(words ...string) (found []string) {
	for line := range strings.Lines(l.String()) {
		missing := false
		for _, word := range words {
			missing = missing || !strings.Contains(line, word)
		}
		if !missing {
			found = append(found, line)
		}
	}
	return found
}

// within polls until ok.
func within(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// testSite is a site with a certificate of ca for its names; its clients are those of clientTLS.
func testSite(t testing.TB, ca *tunneltest.CA, names ...string) *Site {
	t.Helper()
	cert := ca.Issue(t, names...)
	return &Site{Names: names, Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }}
}

func clientTLS(ca *tunneltest.CA, name string) *tunnel.TLS {
	return &tunnel.TLS{ClientConfig: &tls.Config{RootCAs: ca.Pool, ServerName: name}}
}

// dialFrom connects to address from a loopback address; it is closed with the test.
func dialFrom(t testing.TB, from, address string) *net.TCPConn {
	t.Helper()
	c, err := connectFrom(from, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func connectFrom(from, address string) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	c, err := d.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// isEcho sends a few bytes through c and wants them back.
func isEcho(c net.Conn) error {
	const said = "anybody there?"
	if _, err := c.Write([]byte(said)); err != nil {
		return err
	}
	got := make([]byte, len(said))
	for n := 0; n < len(got); {
		m, err := c.Read(got[n:])
		n += m
		if err != nil {
			return err
		}
	}
	if string(got) != said {
		return errOther
	}
	return nil
}

type testError string

func (e testError) Error() string { return string(e) }

const errOther = testError("other bytes came back than were sent")
