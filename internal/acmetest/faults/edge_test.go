//go:build unix

package faults

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"raimon/internal/acmetest"
	"raimon/internal/commandtest"
)

// patience is how long a test waits for what has to happen: many times what it takes on an idle machine.
const patience = 20 * time.Second

// name is what most tests get a certificate for.
const name = "edge.example"

// setup is how raimons is started.
type setup struct {
	names   []string       // nil means name
	cas     []*acmetest.CA // in the order in which they are asked
	storage string         // the folder
	listen  string         // empty means a free port
	http    bool           // answer HTTP-01, too
	target  string         // empty means one that nobody has
	more    string         // options
	tuning  *tuning        // nil means the program as users have it
	prepare func(*exec.Cmd)
}

// tuning is what testdata/tuned.go reads.
type tuning struct {
	Ahead, Look, Pause, HTTPTimeout time.Duration
	Unlimited                       bool
}

// edge is a running raimons.
type edge struct {
	*commandtest.Process
	setup
	Address string // of the tunnel
	HTTP    string // where HTTP-01 is answered; empty if it is not
}

var (
	tunnelListens = regexp.MustCompile(`"listening","address":"([^"]+)","target"`)
	httpListens   = regexp.MustCompile(`"listening for http","address":"([^"]+)"`)
)

// start returns when the edge listens.
func (s setup) start(t testing.TB) *edge {
	t.Helper()
	e := &edge{Process: commandtest.Start(t, s.command(t)), setup: s}
	e.Address = e.find(t, tunnelListens)
	if s.http {
		e.HTTP = e.find(t, httpListens)
	}
	return e
}

func (e *edge) find(t testing.TB, pattern *regexp.Regexp) string {
	t.Helper()
	found, err := e.Log.Find(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found[1]
}

func (s setup) command(t testing.TB) *exec.Cmd {
	t.Helper()
	if s.names == nil {
		s.names = []string{name}
	}
	if s.target == "" {
		s.target = "127.0.0.1:1"
	}
	var directories []string
	var roots []byte
	for _, ca := range s.cas {
		directories = append(directories, ca.Directory)
		roots = append(roots, ca.Root.PEM...)
	}
	rootFile := filepath.Join(openDir(t), "root.pem")
	if err := os.WriteFile(rootFile, roots, 0o644); err != nil {
		t.Fatal(err)
	}
	web := "off"
	if s.http {
		web = "127.0.0.1:0"
	}
	options := "tls;http=" + web + ";acme=" + strings.Join(s.names, ",") + ";acme-ca=" + strings.Join(directories, ",") +
		";acme-root=" + rootFile + ";storage=" + s.storage + s.more
	cmd := exec.Command(program, cmp.Or(s.listen, "127.0.0.1:0"), s.target, options)
	if s.tuning != nil {
		text, err := json.Marshal(s.tuning)
		if err != nil {
			t.Fatal(err)
		}
		cmd = exec.Command(tunedProgram, cmd.Args[1:]...)
		cmd.Env = append(os.Environ(), "RAIMONS_TUNING="+string(text))
	}
	if s.prepare != nil {
		s.prepare(cmd)
	}
	return cmd
}

// reachable lets the CAs come to the edges, to each in turn.
func reachable(edges ...*edge) {
	var tunnels, webs []string
	for _, e := range edges {
		tunnels = append(tunnels, e.Address)
		if e.http {
			webs = append(webs, e.HTTP)
		}
	}
	for _, e := range edges {
		for _, ca := range e.cas {
			ca.TLSALPN01.To(tunnels...)
			ca.HTTP01.To(webs...)
		}
	}
}

// openDir is a folder that other users can enter; t.TempDir is not.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "faults")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// kill is kill -9.
func (e *edge) kill(t testing.TB) {
	t.Helper()
	p, err := os.FindProcess(e.PID())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	e.Ended(t)
}

// shown is the certificate that the edge shows to who asks for name, whatever it is worth.
func (e *edge) shown(name string) (*x509.Certificate, error) {
	state, err := handshake(e.Address, name)
	if err != nil {
		return nil, err
	}
	return state.PeerCertificates[0], nil
}

func handshake(address, name string) (*tls.ConnectionState, error) {
	dialer := &tls.Dialer{
		NetDialer: &net.Dialer{Timeout: patience},
		Config:    &tls.Config{ServerName: name, InsecureSkipVerify: true}, // who calls verifies
	}
	network := "tcp"
	if filepath.IsAbs(address) {
		network = "unix"
	}
	c, err := dialer.Dial(network, address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	state := c.(*tls.Conn).ConnectionState()
	return &state, nil
}

// serves wants a certificate that clients accept now.
func (e *edge) serves(name string) (*x509.Certificate, error) {
	state, err := handshake(e.Address, name)
	if err != nil {
		return nil, err
	}
	return state.PeerCertificates[0], verify(state.PeerCertificates, name, time.Now(), e.cas...)
}

func verify(chain []*x509.Certificate, name string, now time.Time, cas ...*acmetest.CA) error {
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, ca := range cas {
		roots.AddCert(ca.IssuingRoot.Certificate)
	}
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: intermediates, CurrentTime: now})
	return err
}

// servedSoon waits until the edge serves what clients accept.
func (e *edge) servedSoon(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	var leaf *x509.Certificate
	eventually(t, func() (err error) {
		leaf, err = e.serves(name)
		return err
	})
	return leaf
}

// replacedSoon waits until the edge serves another than old.
func (e *edge) replacedSoon(t testing.TB, name string, old *x509.Certificate) *x509.Certificate {
	t.Helper()
	var leaf *x509.Certificate
	eventually(t, func() (err error) {
		if leaf, err = e.serves(name); err == nil && leaf.Equal(old) {
			err = errors.New("it still serves the old certificate")
		}
		return err
	})
	return leaf
}

// eventually waits until check returns nil.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", patience, err)
		}
	}
}

// atLeast waits until count has come to n.
func atLeast(t testing.TB, n int, what string, count func() int) {
	t.Helper()
	eventually(t, func() error {
		if have := count(); have < n {
			return fmt.Errorf("%d %s, want %d", have, what, n)
		}
		return nil
	})
}

// noErrors wants a log without error lines.
func (e *edge) noErrors(t testing.TB) {
	t.Helper()
	if n := e.Log.Count(`"level":"ERROR"`); n > 0 {
		t.Errorf("%d error lines:\n%s", n, e.Log)
	}
}

// prepared is a storage in which an edge has put a certificate of ca.
func prepared(t testing.TB, ca *acmetest.CA, more string) (dir string, leaf *x509.Certificate) {
	t.Helper()
	dir = t.TempDir()
	e := setup{cas: []*acmetest.CA{ca}, storage: dir, more: more}.start(t)
	reachable(e)
	leaf = e.servedSoon(t, name)
	e.kill(t)
	return dir, leaf
}

// profile names the one kind of certificate that a CA has.
func profile(validity time.Duration) acmetest.Config {
	return acmetest.Config{RejectNonces: -1, Profiles: map[string]acmetest.Profile{"only": {Validity: validity}}}
}

// terminate is SIGTERM.
func (e *edge) terminate(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(e.PID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}
