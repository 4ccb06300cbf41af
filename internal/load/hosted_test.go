//go:build load && linux

package load

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"raimon/edge"
	"raimon/internal/commandtest"
	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// hostedVariable holds the order of a process that is the edge of a test.
const hostedVariable = "RAIMON_LOAD_EDGE"

// hostedOrder says what such an edge does.
type hostedOrder struct {
	Target  string
	Limits  edge.Limits
	Timeout time.Duration
}

// TestHosted is what the edge of a test runs: a process of its own, so that its memory is its own. It has the sites
// raw.test and ws.test, and pass.test, for whose sake it looks at each ClientHello.
func TestHosted(t *testing.T) {
	if os.Getenv(hostedVariable) == "" {
		t.Skip("it is a part of the tests of hostile clients")
	}
	var order hostedOrder
	if err := json.Unmarshal([]byte(os.Getenv(hostedVariable)), &order); err != nil {
		t.Fatal(err)
	}
	cert := tunneltest.NewCA(t).Issue(t, "raw.test", "ws.test")
	certificate := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }
	to := &edge.Route{Path: "/tunnel", Target: order.Target}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	server := &edge.Server{Log: log}
	const address = "127.0.0.1:0"
	if err := server.Apply(t.Context(), &edge.Config{
		Listeners: []edge.Listener{{Address: address}}, Limits: order.Limits, Timeout: order.Timeout, Level: slog.LevelDebug,
		Sites: []*edge.Site{
			{Names: []string{"raw.test"}, Raw: to, Certificate: certificate},
			{Names: []string{"ws.test"}, Routes: []*edge.Route{to}, Certificate: certificate},
			{Names: []string{"pass.test"}, Pass: order.Target},
		},
	}); err != nil {
		t.Fatal(err)
	}
	log.Info("listening", "address", server.Listeners()[address].Addr().String(), "target", order.Target)
	if err := server.Run(context.Background()); err != nil { // until it is killed
		t.Fatal(err)
	}
}

// hosted is an edge that somebody is hostile to, while a good client goes on opening tunnels.
type hosted struct {
	*commandtest.Process
	before int // KiB resident
}

func startHosted(t testing.TB, limits edge.Limits) *hosted {
	t.Helper()
	order, err := json.Marshal(hostedOrder{Target: tunneltest.Echo(t), Limits: limits, Timeout: hostedTimeout})
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestHosted$", "-test.timeout=20m")
	cmd.Env = append(os.Environ(), hostedVariable+"="+string(order))
	h := &hosted{Process: commandtest.Start(t, cmd)}
	for range 20 { // what is made once is no part of what an attack costs
		if _, err := h.tunnel(goodAddress); err != nil {
			t.Fatal(err)
		}
	}
	h.before = resident(t, h.Process)
	return h
}

const (
	// hostedTimeout limits handshakes.
	hostedTimeout = 4 * time.Second
	// goodAddress is where the good client is; nobody else is there.
	goodAddress = "127.0.0.77"
	// promptly is how long a good client may wait for its tunnel, whatever happens beside it. Attacker, client and edge share
	// the processors here, so one in ten may take longer, but never more than patiently.
	promptly  = time.Second
	patiently = 5 * time.Second
)

// withstands lets attack go on, in another goroutine, and wants every tunnel of a good client promptly, and no more memory
// than limit, in MiB.
func (h *hosted) withstands(t *testing.T, limit int, from []string, attack func(ctx context.Context)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	over := make(chan struct{})
	go func() {
		defer close(over)
		attack(ctx)
	}()
	most := 0
	var all []time.Duration
	for going := true; going; {
		select {
		case <-over:
			going = false // and one more look
		case <-time.After(20 * time.Millisecond):
		}
		for _, address := range from {
			took, err := h.tunnel(address)
			if err != nil || took > patiently {
				t.Errorf("a good tunnel from %s took %v: %v", address, took, err)
			}
			all = append(all, took)
		}
		most = max(most, resident(t, h.Process)-h.before)
	}
	slices.Sort(all)
	usual := all[len(all)*9/10]
	t.Logf("%d good tunnels, nine of ten within %v, the slowest in %v; %d KiB more than the %d before",
		len(all), usual.Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond), most, h.before)
	if usual > promptly {
		t.Errorf("one in ten good tunnels took longer than %v", usual)
	}
	if most > limit<<10 {
		t.Errorf("%d MiB more were used, want at most %d", most>>10, limit)
	}
}

// tunnel opens one from an address, and tells how long it took until an echo was back.
func (h *hosted) tunnel(from string) (time.Duration, error) {
	begin := time.Now()
	c, err := h.dial(from)
	if err != nil {
		return time.Since(begin), err
	}
	defer c.Close()
	c.SetDeadline(begin.Add(10 * promptly))
	layers := tunnel.Transport{
		&tunnel.TLS{ClientConfig: &tls.Config{ServerName: "ws.test", InsecureSkipVerify: true}},
		&tunnel.WebSocket{Host: "ws.test", Path: "/tunnel"},
	}
	stream, err := layers.Client(context.Background(), c)
	if err != nil {
		return time.Since(begin), err
	}
	const said = "hello"
	if _, err := io.WriteString(stream, said); err != nil {
		return time.Since(begin), err
	}
	got := make([]byte, len(said))
	_, err = io.ReadFull(stream, got)
	if err == nil && string(got) != said {
		err = fmt.Errorf("%q came back", got)
	}
	return time.Since(begin), err
}

func (h *hosted) dial(from string) (*net.TCPConn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	c, err := d.Dial("tcp", h.Address)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// tls is a connection to a site, whose handshake is done.
func (h *hosted) tls(from, name string, protos ...string) (*tls.Conn, error) {
	c, err := h.dial(from)
	if err != nil {
		return nil, err
	}
	s := tls.Client(c, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protos})
	c.SetDeadline(time.Now().Add(patience))
	if err := s.Handshake(); err != nil {
		c.Close()
		return nil, err
	}
	return s, nil
}

// crowd runs n times do, and waits for all.
func crowd(n int, do func(n int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { do(i) })
	}
	all.Wait()
}

// awaitEnd waits until the edge ends c, or ctx ends, which is an error.
func awaitEnd(ctx context.Context, c net.Conn) error {
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })()
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("it is still open: %w", err)
	}
	return nil // however it has ended
}
