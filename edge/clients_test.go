package edge

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// client issues a certificate for a client, and its key.
func (a *authority) client(t testing.TB, name string, options ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key := newKey(t)
	options = append([]func(*x509.Certificate){func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}}, options...)
	leaf := a.issue(t, name, key.Public(), options...)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// list signs a revocation list in DER, good for 24 hours. An option changes the template.
func (a *authority) list(t testing.TB, revoked []*x509.Certificate, options ...func(*x509.RevocationList)) []byte {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(24 * time.Hour)}
	for _, cert := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: time.Now().Add(-time.Hour)})
	}
	for _, option := range options {
		option(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func listPEM(lists ...[]byte) (all []byte) {
	for _, der := range lists {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return all
}

// newClients makes Clients whose files hold these CAs and lists. No lists means no file for them.
func newClients(t testing.TB, lists []byte, authorities ...*authority) (*Clients, *logLines) {
	t.Helper()
	lines := new(logLines)
	dir := t.TempDir()
	c := &Clients{CA: filepath.Join(dir, "ca.pem"), Interval: time.Second, Log: slog.New(slog.NewTextHandler(lines, nil))}
	write(t, c.CA, authoritiesPEM(authorities...))
	if lists != nil {
		c.CRL = filepath.Join(dir, "crl.pem")
		write(t, c.CRL, lists)
	}
	return c, lines
}

func authoritiesPEM(authorities ...*authority) (all []byte) {
	for _, a := range authorities {
		all = append(all, certPEM(a.cert)...)
	}
	return all
}

func (c *Clients) load(t testing.TB) {
	t.Helper()
	if err := c.Load(); err != nil {
		t.Fatal(err)
	}
}

// state is what a handshake that c asked for leaves behind when the client shows these certificates; the error
// is that of the handshake.
func (c *Clients) state(shown ...*x509.Certificate) (*tls.ConnectionState, error) {
	config := new(tls.Config)
	c.configure(config, c.current())
	state := &tls.ConnectionState{PeerCertificates: shown}
	if len(shown) > 0 {
		between := x509.NewCertPool()
		for _, cert := range shown[1:] {
			between.AddCert(cert)
		}
		var err error
		state.VerifiedChains, err = shown[0].Verify(x509.VerifyOptions{
			Roots: config.ClientCAs, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		if err != nil {
			return nil, err
		}
	}
	return state, config.VerifyConnection(*state)
}

func (c *Clients) want(t testing.TB, want error, shown ...*x509.Certificate) {
	t.Helper()
	if _, err := c.state(shown...); !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func TestClientsWithoutAny(t *testing.T) {
	var none *Clients
	config := new(tls.Config)
	none.configure(config, none.current())
	if config.ClientAuth != tls.NoClientCert || config.VerifyConnection != nil || none.policy() != "" || none.check(nil) != nil {
		t.Error("nil asks for something")
	}
}

// Before there were files to load nobody is let in; nor by the roots of the system.
func TestClientsNotLoaded(t *testing.T) {
	ca := newAuthority(t, "CA")
	for _, required := range []bool{false, true} {
		c, _ := newClients(t, nil, ca)
		c.Required = required
		config := new(tls.Config)
		c.configure(config, c.current())
		if config.ClientCAs == nil || !config.ClientCAs.Equal(x509.NewCertPool()) {
			t.Error("not an empty pool")
		}
		if _, err := c.state(ca.client(t, "alice").Leaf); err == nil {
			t.Error("a certificate is good")
		}
		if got := c.check(&tls.ConnectionState{}); (got != nil) != required {
			t.Errorf("required %v: without a certificate: %v", required, got)
		}
	}
}

func TestClientsRequired(t *testing.T) {
	ca := newAuthority(t, "CA")
	for required, auth := range map[bool]tls.ClientAuthType{false: tls.VerifyClientCertIfGiven, true: tls.RequireAndVerifyClientCert} {
		c, _ := newClients(t, nil, ca)
		c.Required = required
		c.load(t)
		config := new(tls.Config)
		c.configure(config, c.current())
		if config.ClientAuth != auth {
			t.Errorf("required %v: asks as in %v", required, config.ClientAuth)
		}
		c.want(t, nil, ca.client(t, "alice").Leaf)
		if _, err := c.state(newAuthority(t, "CA").client(t, "mallory").Leaf); err == nil {
			t.Error("a certificate of another CA is good")
		}
		if err := c.check(nil); required != errors.Is(err, ErrNoClientCert) {
			t.Errorf("required %v: without TLS: %v", required, err)
		}
	}
}

func TestClientsPolicy(t *testing.T) {
	one, two := newAuthority(t, "one"), newAuthority(t, "two")
	policy := func(required bool, lists []byte, authorities ...*authority) string {
		c, _ := newClients(t, lists, authorities...)
		c.Required = required
		c.load(t)
		return c.policy()
	}
	base := policy(false, nil, one)
	if base == "" || base == policy(true, nil, one) || base == policy(false, nil, two) || base == policy(false, nil, one, two) {
		t.Error("different policies have the same name")
	}
	if base != policy(false, listPEM(one.list(t, nil)), one) || base != policy(false, nil, one, one) {
		t.Error("the list, or the same CA again, makes another policy")
	}
	if policy(true, nil, one, two) != policy(true, nil, two, one) {
		t.Error("the order of the CAs makes another policy")
	}
	unloaded, _ := newClients(t, nil, one)
	if unloaded.policy() == base || unloaded.policy() == "" {
		t.Error("without CAs the policy is that with, or none")
	}
}

func TestRevocation(t *testing.T) {
	root := newAuthority(t, "root")
	key := newKey(t)
	middle := &authority{key: key, cert: root.issue(t, "middle", key.Public(), func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.ExtKeyUsage, c.DNSNames = true, true, nil, nil
		c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	})}
	namesake := newAuthority(t, "root")
	alice, bob := root.client(t, "alice").Leaf, root.client(t, "bob").Leaf
	deep := middle.client(t, "deep").Leaf
	sameSerial := namesake.client(t, "dave", func(c *x509.Certificate) { c.SerialNumber = alice.SerialNumber }).Leaf

	c, lines := newClients(t, listPEM(root.list(t, []*x509.Certificate{alice})), root, namesake)
	c.load(t)
	lines.want(t, "revoked=1")
	c.want(t, ErrRevoked, alice)
	c.want(t, nil, bob)
	c.want(t, nil, deep, middle.cert)
	c.want(t, nil, sameSerial)

	t.Log("a CA between")
	c, _ = newClients(t, listPEM(root.list(t, nil), root.list(t, []*x509.Certificate{middle.cert})), root)
	c.load(t)
	c.want(t, ErrRevoked, deep, middle.cert)
	c.want(t, nil, bob)

	t.Log("the list of a CA between, which is trusted for itself; DER")
	c, _ = newClients(t, slices.Concat(root.list(t, []*x509.Certificate{bob}), middle.list(t, []*x509.Certificate{deep})), middle, root)
	c.load(t)
	c.want(t, ErrRevoked, deep, middle.cert)
	c.want(t, ErrRevoked, deep)
	c.want(t, ErrRevoked, bob)
	c.want(t, nil, alice)

	t.Log("a CA that its own list revokes; its namesake stays")
	c, _ = newClients(t, root.list(t, []*x509.Certificate{root.cert}), root, namesake)
	c.load(t)
	c.want(t, ErrRevoked, alice)
	c.want(t, nil, sameSerial)
}

// critical makes an extension of a list that has to be understood.
func critical(t testing.TB, id asn1.ObjectIdentifier, value any) func(*x509.RevocationList) {
	t.Helper()
	der, err := asn1.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return func(l *x509.RevocationList) {
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: id, Critical: true, Value: der})
	}
}

func TestRevocationListsRefused(t *testing.T) {
	ca, other, namesake := newAuthority(t, "CA"), newAuthority(t, "other"), newAuthority(t, "CA")
	alice := []*x509.Certificate{ca.client(t, "alice").Leaf}
	good := ca.list(t, alice)
	damaged := bytes.Clone(good)
	damaged[len(damaged)-1] ^= 1
	type onlyUsers struct {
		OnlyUsers bool `asn1:"tag:1"`
	}
	type indirect struct {
		Indirect bool `asn1:"tag:4"`
	}
	for name, test := range map[string]struct {
		data       []byte
		want, hint string
	}{
		"expired": {ca.list(t, nil, func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}),
			"list 1: of CN=CA: expired at ", "current list"},
		"of a stranger":   {listPEM(good, other.list(t, alice)), "list 2: of CN=other: it is of none of the client CAs", "of the file of CAs"},
		"of a namesake":   {namesake.list(t, alice), "list 1: of CN=CA: the client CA of this name has not signed it", ""},
		"damaged":         {damaged, "has not signed it", ""},
		"cut short":       {good[:len(good)-10], "crl.pem: ", ""},
		"half behind one": {slices.Concat(good, good[:40]), "list 2: cut short", ""},
		"garbage":         {[]byte("no list"), "crl.pem: neither PEM nor DER", ""},
		"empty":           {[]byte{}, "crl.pem: the file is empty", ""},
		"a certificate":   {certPEM(ca.cert), "a certificate, not a revocation list", ""},
		"a delta":         {ca.list(t, nil, critical(t, oidDeltaCRLIndicator, 1)), "a delta list", "complete list"},
		"indirect":        {ca.list(t, nil, critical(t, oidIssuingDistributionPoint, indirect{true})), "an indirect list", ""},
		"odd":             {ca.list(t, nil, critical(t, oidIssuingDistributionPoint, 1)), "issuing distribution point", ""},
		"unknown":         {ca.list(t, nil, critical(t, asn1.ObjectIdentifier{1, 2, 3}, 1)), "critical extension 1.2.3", ""},
		"unknown entry": {ca.list(t, alice, func(l *x509.RevocationList) {
			l.RevokedCertificateEntries[0].ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 4}, Critical: true, Value: []byte{5, 0}}}
		}), "critical extension 1.2.4", ""},
		"too many":  {bytes.Repeat(good, maxRevocationLists+1), "more than 64 lists", ""},
		"too large": {make([]byte, maxRevocationFile+1), "larger than 4194304 bytes", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, lines := newClients(t, test.data, ca)
			err := c.Load()
			wantError(t, err, test.want)
			var hinted interface{ Hint() string }
			if test.hint != "" && (!errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), test.hint)) {
				t.Errorf("no hint with %q: %v", test.hint, err)
			}
			lines.want(t)
			if _, err := c.state(ca.client(t, "bob").Leaf); err == nil {
				t.Error("a certificate is good though nothing was loaded")
			}
		})
	}
	c, _ := newClients(t, ca.list(t, alice, critical(t, oidIssuingDistributionPoint, onlyUsers{true})), ca)
	c.load(t)
	c.want(t, ErrRevoked, alice...)
}

func TestClientCAsRefused(t *testing.T) {
	ca := newAuthority(t, "CA")
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"a key":    {keyPEM(t, ca.key), "ca.pem: a private key, not a certificate"},
		"a client": {append(certPEM(ca.cert), certPEM(ca.client(t, "alice", func(c *x509.Certificate) { c.BasicConstraintsValid = true }).Leaf)...), `certificate 2 ("alice") is not that of a CA`},
		"garbage":  {[]byte("garbage"), "client CA "},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := newClients(t, nil, ca)
			write(t, c.CA, test.data)
			err := c.Load()
			wantError(t, err, test.want)
		})
	}
	c := &Clients{CA: filepath.Join(t.TempDir(), "none")}
	if err := c.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want fs.ErrNotExist", err)
	}
}

func TestClientsWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := newAuthority(t, "one"), newAuthority(t, "two")
		alice, bob := one.client(t, "alice").Leaf, two.client(t, "bob").Leaf
		c, lines := newClients(t, listPEM(one.list(t, nil)), one)
		c.load(t)
		lines.want(t, "client CAs taken up")
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go c.Watch(ctx)
		looks := func(d time.Duration) {
			time.Sleep(d)
			synctest.Wait()
		}
		before, err := c.state(alice)
		if err != nil {
			t.Fatal(err)
		}
		policy := c.policy()

		t.Log("a list revokes, also who is in already")
		replace(t, c.CRL, listPEM(one.list(t, []*x509.Certificate{alice})))
		looks(2 * time.Second)
		lines.want(t, "revoked=1")
		c.want(t, ErrRevoked, alice)
		if err := c.check(before); !errors.Is(err, ErrRevoked) {
			t.Errorf("an open connection: %v", err)
		}
		if c.policy() != policy {
			t.Error("the list made another policy")
		}

		t.Log("a list of somebody else is refused, and a missing one")
		write(t, c.CRL, listPEM(two.list(t, nil)))
		looks(10 * time.Second)
		os.Remove(c.CRL)
		looks(10 * time.Second)
		lines.want(t, "refused, what is in use stays", "refused, what is in use stays")
		c.want(t, ErrRevoked, alice)

		t.Log("an expired list says what it said, with one warning")
		write(t, c.CRL, listPEM(one.list(t, []*x509.Certificate{alice}, func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(time.Hour) })))
		looks(2 * time.Second)
		lines.want(t, "client CAs taken up")
		looks(3 * time.Hour)
		lines.want(t, "revocation list has expired")
		c.want(t, ErrRevoked, alice)
		c.want(t, nil, one.client(t, "carol").Leaf)

		t.Log("other CAs")
		write(t, c.CRL, listPEM(two.list(t, nil)))
		write(t, c.CA, authoritiesPEM(two))
		looks(3 * time.Second)
		lines.want(t, "client CAs taken up")
		c.want(t, nil, bob)
		if err := c.check(before); !errors.Is(err, ErrUnknownCA) {
			t.Errorf("an open connection of the CA that is gone: %v", err)
		}
		if c.policy() == policy {
			t.Error("other CAs, and the same policy")
		}
	})
}

// A connection does not outlive the certificate that it was opened with.
func TestClientsExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t, "CA")
		c, _ := newClients(t, nil, ca)
		c.load(t)
		state, err := c.state(ca.client(t, "alice", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) }).Leaf)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		if err := c.check(state); !errors.Is(err, ErrUnknownCA) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzRevocations(f *testing.F) {
	ca := newAuthority(f, "CA")
	good := ca.list(f, []*x509.Certificate{ca.client(f, "alice").Leaf})
	for _, seed := range [][]byte{nil, good, listPEM(good, good), good[:30], certPEM(ca.cert), ca.list(f, nil, critical(f, oidIssuingDistributionPoint, 1))} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		lists, err := parseRevocations(data, []*x509.Certificate{ca.cert}, time.Now())
		if (err == nil) != (len(lists) > 0) {
			t.Errorf("%d lists, %v", len(lists), err)
		}
		for _, l := range lists {
			if l.issuer != ca.cert {
				t.Error("a list of nobody")
			}
		}
	})
}
