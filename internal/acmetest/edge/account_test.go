package edge_test

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"raimon/internal/acmetest"
)

// One account for all certificates and all starts, with the address that the user gave.
func TestAccount(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	storage := t.TempDir()
	for n, names := range []string{"a.test,b.test", "a.test,b.test", "a.test,b.test,c.test"} {
		e := start(t, ca, "email=me@example.com;storage="+storage+";acme="+names)
		ca.TLSALPN01.To(e.tunnels)
		for name := range strings.SplitSeq(names, ",") {
			e.shows(t, ca, name)
		}
		e.wantQuiet(t)
		e.end(t)
		if issued, want := len(ca.Issued()), []int{2, 2, 3}[n]; issued != want {
			t.Errorf("%d certificates after start %d, want %d", issued, n+1, want)
		}
	}
	accounts := ca.Accounts()
	if len(accounts) != 1 || !slices.Equal(accounts[0].Contact, []string{"mailto:me@example.com"}) {
		t.Errorf("accounts: %+v", accounts)
	}
}

// A crash at any time does not make another account.
func TestAccountSurvivesKill(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	storage := t.TempDir()
	ca.Fail(acmetest.Hang(), acmetest.NewOrder)
	e := start(t, ca, "acme=a.test;storage="+storage)
	eventually(t, func() error {
		if ca.Requests(acmetest.NewOrder) == 0 {
			return fmt.Errorf("no order yet")
		}
		return nil
	})
	e.kill(t)
	ca.Mend()
	e = start(t, ca, "acme=a.test;storage="+storage)
	ca.TLSALPN01.To(e.tunnels)
	e.shows(t, ca, "a.test")
	if n := len(ca.Accounts()); n != 1 {
		t.Errorf("%d accounts, want 1", n)
	}
	e.wantQuiet(t)
}

func TestExternalAccount(t *testing.T) {
	t.Parallel()
	key := base64.RawURLEncoding.EncodeToString([]byte("a key of exactly thirty-two byte"))
	wrong := base64.RawURLEncoding.EncodeToString([]byte("another one of thirty-two bytes!"))
	ca := acmetest.New(t, acmetest.Config{ExternalAccounts: map[string]string{"kid-1": key}})

	for _, test := range []struct{ name, option, hint string }{
		{"missing", "", "eab=kid:key"},
		{"wrong key", ";eab=kid-1:" + wrong, "eab="},
		{"unknown kid", ";eab=kid-2:" + key, "eab="},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t, ca, "acme=a.test"+test.option)
			ca.TLSALPN01.To(e.tunnels)
			e.wantAlert(t, "a.test", notYet)
			if failure := e.failure(t); !strings.Contains(failure.Hint, test.hint) {
				t.Errorf("log: %+v", failure)
			}
			if log := e.Log.String(); strings.Contains(log, wrong) || strings.Contains(log, key) {
				t.Error("the key is in the log")
			}
		})
	}
	if n := len(ca.Accounts()); n != 0 {
		t.Errorf("%d accounts, want none", n)
	}

	e := start(t, ca, "acme=a.test;eab=kid-1:"+key)
	ca.TLSALPN01.To(e.tunnels)
	e.shows(t, ca, "a.test")
	if accounts := ca.Accounts(); len(accounts) != 1 || !accounts[0].Bound {
		t.Errorf("accounts: %+v", accounts)
	}
}

func TestKeyTypes(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	for keyType, is := range map[string]func(*x509.Certificate) bool{
		"p256": func(c *x509.Certificate) bool { return curveBits(c) == 256 },
		"p384": func(c *x509.Certificate) bool { return curveBits(c) == 384 },
		"rsa2048": func(c *x509.Certificate) bool {
			key, ok := c.PublicKey.(*rsa.PublicKey)
			return ok && key.Size() == 256
		},
	} {
		t.Run(keyType, func(t *testing.T) {
			name := keyType + ".test"
			e := start(t, ca, "acme="+name+";key-type="+keyType)
			ca.TLSALPN01.To(e.tunnels)
			if leaf := e.shows(t, ca, name); !is(leaf) {
				t.Errorf("the key is %T", leaf.PublicKey)
			}
			e.wantQuiet(t)
		})
	}
	// Pebble takes no such keys, and neither do public CAs.
	e := start(t, ca, "acme=a.test;key-type=ed25519")
	ca.TLSALPN01.To(e.tunnels)
	e.wantAlert(t, "a.test", notYet)
	if failure := e.failure(t); !strings.Contains(failure.Hint, "key-type=") {
		t.Errorf("log: %+v", failure)
	}
}

func curveBits(c *x509.Certificate) int {
	key, ok := c.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return 0
	}
	return key.Curve.Params().BitSize
}

func TestProfile(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{Profiles: map[string]acmetest.Profile{
		"classic": {Validity: 90 * 24 * time.Hour}, "brief": {Validity: time.Hour}, "briefer": {Validity: time.Minute},
	}})
	for profile, want := range map[string]time.Duration{"brief": time.Hour, "briefer": time.Minute} {
		e := start(t, ca, "acme=a.test;profile="+profile)
		ca.TLSALPN01.To(e.tunnels)
		leaf := e.shows(t, ca, "a.test")
		if got := leaf.NotAfter.Sub(leaf.NotBefore) + time.Second; got != want {
			t.Errorf("%s: valid for %v, want %v", profile, got, want)
		}
	}
	e := start(t, ca, "acme=a.test;profile=shortlived")
	e.wantAlert(t, "a.test", notYet)
	if failure := e.failure(t); !strings.Contains(failure.Hint, "profile=") {
		t.Errorf("log: %+v", failure)
	}
}

// The certificate of an IP address is shown to clients that name no server, as all do that dial an address.
func TestIPAddress(t *testing.T) {
	t.Parallel()
	for _, challenge := range []string{"TLS-ALPN-01", "HTTP-01"} {
		t.Run(challenge, func(t *testing.T) {
			t.Parallel()
			ca := acmetest.New(t, acmetest.Config{Profiles: map[string]acmetest.Profile{"shortlived": {Validity: 160 * time.Hour}}})
			e := start(t, ca, "acme=a.test,127.0.0.1;profile=shortlived;http=127.0.0.1:0")
			if challenge == "HTTP-01" {
				ca.HTTP01.To(e.web)
				ca.TLSALPN01.To(nobody)
			} else {
				ca.HTTP01.To(nobody)
				ca.TLSALPN01.To(e.tunnels)
			}
			// Go's client sends no name for an address, and verifies that the certificate has it.
			leaf := e.shows(t, ca, "127.0.0.1")
			if len(leaf.IPAddresses) != 1 || !leaf.IPAddresses[0].Equal(net.IPv4(127, 0, 0, 1)) || len(leaf.DNSNames) != 0 {
				t.Errorf("names %v, %v", leaf.IPAddresses, leaf.DNSNames)
			}
			e.shows(t, ca, "a.test")
			e.wantQuiet(t)
		})
	}
}

// Another email is another account, and a CA lets no account replace another's certificate (RFC 9773, section 5).
func TestRenewalByAnotherAccount(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{Profiles: brief})
	storage := t.TempDir()
	var first *x509.Certificate
	for _, email := range []string{"me@example.com", "you@example.com"} {
		e := start(t, ca, "acme=a.test;profile=brief;storage="+storage+";email="+email)
		ca.TLSALPN01.To(e.tunnels)
		if first == nil {
			first = e.shows(t, ca, "a.test")
			e.end(t)
			continue
		}
		eventually(t, func() error {
			if e.shows(t, ca, "a.test").Equal(first) {
				return errors.New("not renewed")
			}
			return nil
		})
		e.wantQuiet(t)
	}
	if accounts := ca.Accounts(); len(accounts) != 2 {
		t.Errorf("accounts: %+v", accounts)
	}
}
