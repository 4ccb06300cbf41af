// Package acme obtains certificates from CAs that speak ACME (RFC 8555), and renews them.
//
// Nothing here listens on a public port and no handshake waits for a CA or for storage: challenges are
// answered through Manager.GetCertificate and Manager.HTTPHandler, which the caller puts where CAs reach
// them, and certificates are served from memory.
package acme

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
)

// Config says which certificates a Manager keeps, and how it gets them.
type Config struct {
	// Names are DNS names, wildcards and IP addresses; each gets a certificate of its own.
	// ParseName makes them.
	Names []string
	// Allow decides on names beside Names, in the handshake that asks for one: no error means yes,
	// ErrNotAllowed no, any other that nobody has decided. It must be safe for many goroutines. Without
	// Allow there are no other names.
	Allow func(ctx context.Context, name string) error

	// CAs are tried in order; none means Let's Encrypt.
	CAs []CA
	// Email is told to the CAs as the contact of the account; empty means none.
	Email string
	// Profile is what CAs call the kind of certificate; empty means their usual one.
	Profile string
	// KeyType is one of KeyTypes; empty means p256.
	KeyType string

	// HTTP says that HTTPHandler is reached on port 80 of the names (HTTP-01).
	HTTP bool
	// TLS says that GetCertificate is reached on port 443 of the names (TLS-ALPN-01).
	TLS bool
	// DNS answers DNS-01; where it is set it is the only way.
	DNS acmez.Solver

	// Storage keeps certificates, keys and accounts, perhaps together with other processes.
	Storage Storage
	// Log takes a line for each certificate that is obtained, and for each new reason why one is not.
	// Nil discards them.
	Log *slog.Logger
}

// Storage is what Manager asks of package storage's backends; storagetest says more than these methods.
type Storage interface {
	certmagic.Storage
	certmagic.TryLocker
	certmagic.LockLeaseRenewer
	// SetAside moves what is of no use out of the way, and tells where to.
	SetAside(ctx context.Context, key string) (aside string, err error)
}

// Manager keeps certificates. Make it with New, and let Run run as long as its other methods are used.
type Manager struct {
	config      Config
	log         *slog.Logger
	storage     *vault
	authorities []*authority
	cache       *certmagic.Cache // stays empty; a certmagic.Config needs one
	taken       net.Listener     // keeps certmagic from listening; see occupy
	attempts    chan struct{}    // holds one for each attempt that runs
	lookups     chan struct{}    // holds one for each challenge that is looked for in the storage
	clock       clock
	asked       demand

	mu      sync.RWMutex
	ctx     context.Context // of Run; nil before and after
	wait    sync.WaitGroup  // for keepers
	keepers map[string]*keeper
	demands int // keepers on demand
}

const (
	// A CA takes seconds; the rest is for DNS to spread and for a busy storage.
	attemptTimeout = 10 * time.Minute
	parallel       = 8
	// Strangers cause these; a storage that hangs must not make them many.
	maxLookups = 16
)

// New checks c. Nothing is sent, loaded or stored before Run. Its errors are what a user got wrong:
// they are of type *ConfigError, except where this machine lacks something.
func New(c Config) (*Manager, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if err := c.checkChallenges(); err != nil {
		return nil, err
	}
	m, err := open(c)
	if err != nil {
		return nil, err
	}
	for _, name := range c.Names {
		m.keepers[name] = m.newKeeper(name)
	}
	return m, nil
}

// open makes a Manager that keeps nothing yet.
func open(c Config) (*Manager, error) {
	m := &Manager{
		config:   c,
		log:      cmp.Or(c.Log, slog.New(slog.DiscardHandler)),
		attempts: make(chan struct{}, parallel),
		lookups:  make(chan struct{}, maxLookups),
		clock:    standardClock,
		keepers:  make(map[string]*keeper),
	}
	m.storage = &vault{Storage: c.Storage, log: m.log}
	taken, err := occupy()
	if err != nil {
		return nil, err
	}
	m.taken = taken
	m.openAuthorities()
	return m, nil
}

// occupy takes a loopback port on which nobody is served. Certmagic opens a port for each challenge
// unless somebody is there already, and then leaves the answer to him: pointing it here makes sure
// that it never takes a public port which is ours, or a web server's that restarts just then.
func occupy() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		if l, err = net.Listen("tcp", "[::1]:0"); err != nil {
			return nil, fmt.Errorf("loopback port: %w", err)
		}
	}
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				time.Sleep(time.Second) // out of descriptors; connections wait in the kernel's queue
				continue
			}
			c.Close()
		}
	}()
	return l, nil
}

// Run obtains and renews until ctx ends, and then lets go of what it holds in the storage.
func (m *Manager) Run(ctx context.Context) error {
	defer m.close()
	m.mu.Lock()
	m.ctx = ctx
	for _, k := range m.keepers {
		m.start(k)
	}
	m.mu.Unlock()
	<-ctx.Done()
	m.mu.Lock()
	m.ctx = nil // nothing is started any more
	m.mu.Unlock()
	m.wait.Wait()
	return nil
}

// start is called with mu held. Without Run nothing is kept.
func (m *Manager) start(k *keeper) {
	if ctx := m.ctx; ctx != nil {
		ctx, k.leave = context.WithCancel(ctx)
		m.wait.Go(func() { k.run(ctx) })
	}
}

// SetNames puts other names in the place of Config.Names. Certificates of names that stay are served on without a
// gap; those of names that go remain in the storage. Where a name is wrong the error is of
// type *ConfigError, and nothing changes.
func (m *Manager) SetNames(names []string) error {
	next := m.config
	next.Names, next.CAs = names, slices.Clone(next.CAs)
	if len(names) > 0 {
		if err := next.Check(); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, k := range m.keepers {
		if slices.Contains(next.Names, name) == k.demanded {
			m.dismiss(k) // it goes, or is not only on demand any more
		}
	}
	for _, name := range next.Names {
		if m.keepers[name] == nil {
			m.keepers[name] = m.newKeeper(name)
			m.start(m.keepers[name])
		}
	}
	m.config.Names = next.Names
	return nil
}

// dismiss ends the keeping of k, if it is still kept. The caller holds mu.
func (m *Manager) dismiss(k *keeper) {
	if m.keepers[k.name] != k {
		return
	}
	delete(m.keepers, k.name)
	if k.demanded {
		m.demands--
	}
	if k.leave != nil {
		k.leave()
	}
	close(k.gone)
}

// names are those of Config.Names that hold at present.
func (m *Manager) names() []string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.config.Names
}

// GetCertificate is for tls.Config: the certificate for hello's server name, the answer to a CA's
// TLS-ALPN-01 probe, or an error. Without a server name it is the certificate of the address that
// the client dialed, else of the first of Names. A name that m does not keep is an ErrUnknownName; the
// error is a *Failure where the certificate could not be obtained so far.
func (m *Manager) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if IsProbe(hello) {
		return m.challengeCertificate(hello)
	}
	k := m.find(m.helloName(hello))
	if k == nil {
		var err error
		if k, err = m.onDemand(hello); err != nil {
			return nil, err
		}
	}
	return k.get(hello.Context())
}

// IsProbe tells whether hello is that of a CA which looks for the answer to TLS-ALPN-01 (RFC 8737, section 3).
func IsProbe(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acmez.ACMETLS1Protocol
}

// Has tells whether name is one of those that m keeps, or is covered by one.
func (m *Manager) Has(name string) bool { return m.find(canonical(name)) != nil }

// OnDemand tells whether names beside Config.Names may be asked for.
func (m *Manager) OnDemand() bool { return m.config.Allow != nil }

// helloName is what hello asks for; empty if m has no name at all.
func (m *Manager) helloName(hello *tls.ClientHelloInfo) string {
	if hello.ServerName != "" {
		return canonical(hello.ServerName)
	}
	if hello.Conn != nil {
		if a, ok := hello.Conn.LocalAddr().(*net.TCPAddr); ok {
			if name := canonical(a.IP.String()); slices.Contains(m.names(), name) {
				return name
			}
		}
	}
	if names := m.names(); len(names) > 0 {
		return names[0]
	}
	return ""
}

func (m *Manager) find(name string) *keeper {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if k := m.keepers[name]; k != nil {
		return k
	}
	if _, parent, ok := strings.Cut(name, "."); ok {
		return m.keepers["*."+parent]
	}
	return nil
}

// challengeCertificate asks certmagic, which also knows of challenges that another process on the same
// storage has begun.
func (m *Manager) challengeCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if hello.ServerName == "" {
		return nil, errors.New("a TLS-ALPN-01 probe without a name")
	}
	done, ok := m.lookUp(hello.ServerName)
	if !ok {
		return nil, errBusy
	}
	defer done()
	var errs []error
	for _, a := range m.authorities {
		cert, err := a.certmagic.GetCertificateWithContext(hello.Context(), hello)
		if err == nil {
			return cert, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

var errBusy = errors.New("too many challenges are looked for in the storage")

// lookUp takes a place for a look into the storage, if the challenge of name is not our own, and tells
// whether there was one. Done gives it back.
func (m *Manager) lookUp(name string) (done func(), ok bool) {
	if _, ours := certmagic.GetACMEChallenge(name); ours {
		return func() {}, true
	}
	select {
	case m.lookups <- struct{}{}:
		return func() { <-m.lookups }, true
	default:
		return nil, false
	}
}

// HTTPHandler answers HTTP-01 challenges and leaves all other requests to next.
func (m *Manager) HTTPHandler(next http.Handler) http.Handler {
	challenges := next
	for _, a := range slices.Backward(m.authorities) {
		challenges = a.issuer.HTTPChallengeHandler(challenges)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !certmagic.LooksLikeHTTPChallenge(r) {
			next.ServeHTTP(w, r)
			return
		}
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		done, ok := m.lookUp(host)
		if !ok {
			http.Error(w, errBusy.Error(), http.StatusServiceUnavailable)
			return
		}
		defer done()
		challenges.ServeHTTP(w, r)
	})
}

// Status is what is known of one certificate.
type Status struct {
	Name string `json:"name"`
	// Issuer is the directory of the CA, or empty while there is no certificate.
	Issuer    string    `json:"issuer,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	// NextRenewal is when the next attempt is planned.
	NextRenewal time.Time `json:"next_renewal,omitzero"`
	// StapleUntil is zero without an OCSP staple.
	StapleUntil time.Time `json:"staple_until,omitzero"`
	// LastError is why the last attempt went wrong; empty when the last one went well.
	LastError string `json:"last_error,omitempty"`
	Hint      string `json:"hint,omitempty"`
}

// Status tells of all certificates, by name.
func (m *Manager) Status() []Status {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]Status, 0, len(m.keepers))
	for _, k := range m.keepers {
		all = append(all, k.report())
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Renew replaces the certificate of name now, and returns when that has been done or has gone wrong. While
// Run does not run it waits until ctx ends, as Revoke and Reload do.
func (m *Manager) Renew(ctx context.Context, name string) error {
	return m.order(ctx, name, order{})
}

// Revoke tells the CA that the certificate of name must not be trusted any more, and obtains another.
// The certificate is served until then.
func (m *Manager) Revoke(ctx context.Context, name string) error {
	return m.order(ctx, name, order{revoke: true})
}

// Reload takes up a newer certificate of name that another process has stored.
func (m *Manager) Reload(ctx context.Context, name string) error {
	return m.order(ctx, name, order{reload: true})
}

func (m *Manager) order(ctx context.Context, name string, o order) error {
	name = canonical(name)
	m.mu.RLock()
	k := m.keepers[name]
	m.mu.RUnlock()
	if k == nil {
		return &ConfigError{Problem: fmt.Sprintf("no certificate is kept for %q", name), Fix: "raimons certs list shows all names"}
	}
	o.done = make(chan error, 1)
	select {
	case k.orders <- o:
	case <-k.gone:
		return &ConfigError{Problem: fmt.Sprintf("no certificate is kept for %q any more", name), Fix: "raimons certs list shows all names"}
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
