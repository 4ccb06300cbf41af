package edge_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"raimon/internal/acmetest"
	"raimon/internal/commandtest"
	"raimon/tunnel"
)

// visit opens a tunnel over TLS, wants back what it sends, and returns what the edge has shown. An empty
// name sends none; nil roots trust anybody.
func visit(address, name string, roots *x509.CertPool) (tls.ConnectionState, error) {
	network := "tcp"
	if filepath.IsAbs(address) {
		network = "unix"
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandtest.Patience)
	defer cancel()
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer raw.Close()
	deadline, _ := ctx.Deadline()
	raw.SetDeadline(deadline)
	c := tls.Client(raw, &tls.Config{ServerName: name, RootCAs: roots, InsecureSkipVerify: roots == nil})
	if err := c.Handshake(); err != nil {
		return tls.ConnectionState{}, err
	}
	return c.ConnectionState(), echoed(c)
}

// echoed wants back what it sends, and ends the tunnel.
func echoed(c tunnel.Conn) error {
	const want = "hello through the tunnel"
	if _, err := io.WriteString(c, want); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err == nil && string(got) != want {
		err = fmt.Errorf("got %q back, want %q", got, want)
	}
	return err
}

// shows returns the certificate that e has for name, which must be of ca.
func (e *raimons) shows(t testing.TB, ca *acmetest.CA, name string) *x509.Certificate {
	t.Helper()
	state, err := visit(e.tunnels, name, ca.IssuingRoot.Pool)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return state.PeerCertificates[0]
}

// What clients are told where there is no certificate (RFC 8446, section 6.2).
const (
	unknownName = "remote error: tls: unrecognized name" // and never will be
	notYet      = "remote error: tls: internal error"
)

// wantAlert wants that the edge refuses a handshake for name, and says so.
func (e *raimons) wantAlert(t testing.TB, name, alert string) {
	t.Helper()
	if _, err := visit(e.tunnels, name, nil); err == nil || err.Error() != alert {
		t.Errorf("%s: %v, want %s", name, err, alert)
	}
}

// eventually calls try until it returns nil, for as long as a test has patience.
func eventually(t testing.TB, try func() error) {
	t.Helper()
	deadline := time.After(commandtest.Patience)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-deadline:
			t.Fatal(err)
		}
	}
}

// crowd are clients that use an edge all the time.
type crowd struct {
	mu      sync.Mutex
	visits  int
	good    time.Time     // end of the first good visit
	failed  []error       // since then
	slowest time.Duration // of those that began since then
	serials map[string]bool

	stop context.CancelFunc
	all  sync.WaitGroup
}

// gather lets a crowd visit address until disperse.
func gather(t testing.TB, address, name string, roots *x509.CertPool) *crowd {
	ctx, stop := context.WithCancel(context.Background())
	c := &crowd{serials: map[string]bool{}, stop: stop}
	t.Cleanup(c.disperse)
	for range 3 {
		c.all.Go(func() {
			pace := time.NewTicker(10 * time.Millisecond)
			defer pace.Stop()
			for {
				begun := time.Now()
				state, err := visit(address, name, roots)
				c.note(state, err, begun)
				select {
				case <-ctx.Done():
					return
				case <-pace.C:
				}
			}
		})
	}
	return c
}

func (c *crowd) note(state tls.ConnectionState, err error, begun time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		if c.visits > 0 {
			c.failed = append(c.failed, err)
		}
		return
	}
	if c.visits == 0 {
		c.good = time.Now()
	}
	if begun.After(c.good) {
		c.slowest = max(c.slowest, time.Since(begun))
	}
	c.visits++
	c.serials[state.PeerCertificates[0].SerialNumber.String()] = true
}

// disperse ends all visits; the fields may be read afterwards.
func (c *crowd) disperse() {
	c.stop()
	c.all.Wait()
}

// wantHappy wants at least this many visits, and since there was a certificate none that failed or took long.
func (c *crowd) wantHappy(t testing.TB, visits int) {
	t.Helper()
	c.disperse()
	t.Logf("%d visits, %d certificates, slowest %v", c.visits, len(c.serials), c.slowest)
	if c.visits < visits {
		t.Errorf("%d visits, want %d at least", c.visits, visits)
	}
	if c.slowest > 5*time.Second {
		t.Errorf("a visit took %v", c.slowest)
	}
	if len(c.failed) > 0 {
		t.Errorf("%d visits failed, the first with: %v", len(c.failed), c.failed[0])
	}
}
