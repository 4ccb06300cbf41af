package edge

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"
)

// Reasons for which a client certificate is refused.
var (
	ErrNoClientCert = errors.New("the client has shown no certificate")
	ErrRevoked      = errors.New("the client's certificate is revoked")
	ErrUnknownCA    = errors.New("the client's certificate is from no CA that counts now, or not valid now")
)

// Clients says which client certificates are asked for in the handshake. Nil asks for none. It takes up new
// files without a restart, for all handshakes from then on, resumed ones too, and for requests on
// connections that are open.
//
// Set the fields, call Load once, then run Watch beside the listeners. Until there were files to load, no
// certificate is good.
type Clients struct {
	// CA is the path of the CAs, PEM or DER. Each of them is trusted for itself, roots and others alike.
	CA string
	// CRL is the path of revocation lists (RFC 5280, section 5), PEM or DER, one behind the other, of at most
	// 4 MiB in all; empty means none. Each has to be signed by one of CA. Lists that cannot be read, are signed by
	// somebody else, or have expired are refused when they are to be taken up. One that expires while it is in
	// use goes on: what it revokes stays revoked, Watch logs a warning, and what was revoked since is
	// let in. A CA without a list revokes nothing.
	CRL string
	// Required refuses the handshake of whoever shows no certificate. Without it, only certificates that are no good do that.
	Required bool
	// Log gets one line for each change taken up or refused; nil means slog.Default.
	Log *slog.Logger
	// Interval is how often Watch looks at the files. A change is taken up at the second look that sees it.
	// Zero means 1 second.
	Interval time.Duration

	inUse atomic.Pointer[clientsInUse]
}

// clientsInUse is never changed: handshakes hold it.
type clientsInUse struct {
	required    bool
	authorities []*x509.Certificate
	pool        *x509.CertPool
	lists       []*revocations
	policy      string
	digest      [sha256.Size]byte // of the files; zero: there were none
	staleLogged atomic.Bool
}

// Load reads the files and goes by them from now on. The error names the file and what is wrong with it;
// fs.ErrNotExist and fs.ErrPermission are kept.
func (c *Clients) Load() error { return c.takeUp(c.read()) }

// Watch looks at the files until ctx ends and takes up what has changed. Files that are wrong, or do not belong
// together, are refused with one line in the log, and what is in use stays.
func (c *Clients) Watch(ctx context.Context) { c.watching().run(ctx, c.Interval, c.warnOfStaleList) }

// configure makes config ask as u says, which current has given. VerifyConnection is called for resumed
// sessions too, unlike VerifyPeerCertificate, and goes by what is in use then.
//
// A session of somebody who is revoked by now ends its handshake; crypto/tls offers no way to say that
// another certificate would do. Clients that use a ticket once, as ours do, soon show one.
func (c *Clients) configure(config *tls.Config, u *clientsInUse) {
	if u == nil {
		return
	}
	config.ClientAuth = tls.VerifyClientCertIfGiven
	if u.required {
		config.ClientAuth = tls.RequireAndVerifyClientCert
	}
	config.ClientCAs = u.pool
	config.VerifyConnection = func(state tls.ConnectionState) error { return c.check(&state) }
}

// policy names what a client has to show, for session tickets: they are good for the same policy only. It
// changes with the CAs and not with the lists, which are looked at each time.
func (c *Clients) policy() string {
	if u := c.current(); u != nil {
		return u.policy
	}
	return ""
}

// current is what handshakes are to go by now; nil where c is.
func (c *Clients) current() *clientsInUse {
	if c == nil {
		return nil
	}
	if u := c.inUse.Load(); u != nil {
		return u
	}
	// Nobody's certificate is good. An empty pool is not nil, which would be the system's roots.
	c.inUse.CompareAndSwap(nil, newClientsInUse(nil, nil, c.Required))
	return c.inUse.Load()
}

// check tells whether a connection is good by what is in use now. Its certificates were verified in its handshake,
// or that of the session that it resumes: so it is enough to see whether a chain still leads
// to a CA that counts, and what the lists say.
func (c *Clients) check(state *tls.ConnectionState) error {
	u := c.current()
	switch {
	case u == nil:
		return nil
	case state == nil || len(state.PeerCertificates) == 0:
		if u.required {
			return ErrNoClientCert
		}
		return nil
	}
	now := time.Now()
	err := ErrUnknownCA
	for _, chain := range state.VerifiedChains {
		switch {
		case !u.leadsHome(chain, now):
		case u.revoked(chain):
			err = ErrRevoked
		default:
			return nil
		}
	}
	return err
}

// leadsHome tells whether chain ends with one of the CAs and is valid.
func (u *clientsInUse) leadsHome(chain []*x509.Certificate, now time.Time) bool {
	if len(chain) == 0 || !slices.ContainsFunc(u.authorities, chain[len(chain)-1].Equal) {
		return false
	}
	return !slices.ContainsFunc(chain, func(cert *x509.Certificate) bool {
		return now.Before(cert.NotBefore) || now.After(cert.NotAfter)
	})
}

func (u *clientsInUse) revoked(chain []*x509.Certificate) bool {
	for n, cert := range chain {
		var issuer *x509.Certificate // nil: only its name is known
		switch {
		case n+1 < len(chain):
			issuer = chain[n+1]
		case bytes.Equal(cert.RawIssuer, cert.RawSubject):
			issuer = cert
		}
		if slices.ContainsFunc(u.lists, func(l *revocations) bool { return l.has(cert, issuer) }) {
			return true
		}
	}
	return false
}

func newClientsInUse(authorities []*x509.Certificate, lists []*revocations, required bool) *clientsInUse {
	u := &clientsInUse{required: required, authorities: authorities, pool: x509.NewCertPool(), lists: lists}
	raw := make([][]byte, 0, len(authorities))
	for _, cert := range authorities {
		u.pool.AddCert(cert)
		raw = append(raw, cert.Raw)
	}
	// The order in the file means nothing, nor does a certificate that stands there twice.
	slices.SortFunc(raw, bytes.Compare)
	raw = slices.CompactFunc(raw, bytes.Equal)
	h := sha256.New()
	fmt.Fprintf(h, "client certificates required=%v\n", required)
	for _, der := range raw {
		sum := sha256.Sum256(der)
		h.Write(sum[:])
	}
	u.policy = hex.EncodeToString(h.Sum(nil))
	return u
}

func (c *Clients) watching() *fileWatch {
	return &fileWatch{
		paths: []string{c.CA, c.CRL},
		read:  c.read,
		inUse: func() (digest [sha256.Size]byte, ok bool) {
			if u := c.inUse.Load(); u != nil && u.digest != digest {
				return u.digest, true
			}
			return digest, false
		},
		takeUp: c.takeUp,
		again:  func() { c.log().Info("client CA files hold what is in use again", "ca", c.CA) },
		refuse: func(err error) {
			if u := c.inUse.Load(); u == nil || len(u.authorities) == 0 {
				c.log().Error("client CA files refused, no client certificate is good", "error", err)
				return
			}
			c.log().Error("client CA files refused, what is in use stays", "error", err)
		},
	}
}

func (c *Clients) read() fileContents {
	files := fileContents{readFile("client CA", c.CA, maxCertificateFile)}
	if c.CRL != "" {
		files = append(files, readFile("revocation lists", c.CRL, maxRevocationFile))
	}
	return files
}

func (c *Clients) takeUp(files fileContents) error {
	now := time.Now()
	authorities, err := parseContent(files[0], parseAuthorities)
	if err != nil {
		return err
	}
	var lists []*revocations
	if len(files) > 1 {
		lists, err = parseContent(files[1], func(data []byte) ([]*revocations, error) {
			return parseRevocations(data, authorities, now)
		})
		if err != nil {
			return err
		}
	}
	next := newClientsInUse(authorities, lists, c.Required)
	next.digest = files.digest()
	c.inUse.Store(next)

	attrs := []any{"ca", c.CA, "authorities", len(authorities)}
	if c.CRL != "" {
		attrs = append(attrs, "crl", c.CRL, "revoked", next.revocations())
	}
	if until, ok := next.listsUntil(); ok {
		attrs = append(attrs, "crl_until", until)
	}
	c.log().Info("client CAs taken up", attrs...)
	for _, cert := range authorities {
		if now.After(cert.NotAfter) {
			c.log().Warn("client CA has expired: none of its certificates is good", "ca", cert.Subject.String(), "not_after", cert.NotAfter)
		}
	}
	return nil
}

func (u *clientsInUse) revocations() (count int) {
	for _, l := range u.lists {
		count += len(l.serials)
	}
	return count
}

// listsUntil is when the first of the lists expires; not ok: never.
func (u *clientsInUse) listsUntil() (first time.Time, ok bool) {
	for _, l := range u.lists {
		if !l.until.IsZero() && (!ok || l.until.Before(first)) {
			first, ok = l.until, true
		}
	}
	return first, ok
}

// warnOfStaleList says once that a list should have been replaced.
func (c *Clients) warnOfStaleList() {
	u := c.inUse.Load()
	if u == nil {
		return
	}
	if until, ok := u.listsUntil(); ok && time.Now().After(until) && !u.staleLogged.Swap(true) {
		c.log().Warn("revocation list has expired: what it revokes stays revoked, what was revoked since is let in",
			"crl", c.CRL, "crl_until", until)
	}
}

func (c *Clients) log() *slog.Logger { return cmp.Or(c.Log, slog.Default()) }

// parseAuthorities returns the CAs of a PEM or DER file.
func parseAuthorities(data []byte) ([]*x509.Certificate, error) {
	certs, err := parseCertificates(data)
	if err != nil {
		return nil, err
	}
	for n, cert := range certs {
		if cert.BasicConstraintsValid && !cert.IsCA {
			return nil, &hintedError{
				fmt.Errorf("certificate %d (%q) is not that of a CA", n+1, certificateNames(cert)[0]),
				"the file holds the CAs that sign the clients' certificates; which of these may in is said by clients = [...]",
			}
		}
	}
	return certs, nil
}
