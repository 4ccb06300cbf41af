package acmetest_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"raimon/internal/acmetest"
)

// patience is how long a test waits for what takes a moment.
const patience = 20 * time.Second

// newClient returns an ACME client with an account at ca.
func newClient(t testing.TB, ca *acmetest.CA) *acme.Client {
	t.Helper()
	c := newStranger(t, ca)
	if _, err := c.Register(t.Context(), &acme.Account{Contact: []string{"mailto:someone@example.com"}}, acme.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	return c
}

// newStranger returns an ACME client without an account.
func newStranger(t testing.TB, ca *acmetest.CA) *acme.Client {
	t.Helper()
	return &acme.Client{
		Key:          newKey(t),
		DirectoryURL: ca.Directory,
		HTTPClient:   newHTTPClient(t, ca),
		RetryBackoff: func(_ int, _ *http.Request, answer *http.Response) time.Duration {
			if answer.StatusCode != http.StatusBadRequest { // a nonce was refused
				return 0
			}
			return time.Millisecond
		},
	}
}

func newHTTPClient(t testing.TB, ca *acmetest.CA) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Root.Pool}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// solver answers challenges of one type where the CA looks for them.
type solver interface {
	challengeType() string
	present(t testing.TB, c *acme.Client, identifier string, challenge *acme.Challenge)
}

// obtain gets a certificate for identifiers.
func obtain(t testing.TB, c *acme.Client, s solver, ids []acme.AuthzID, options ...acme.OrderOption) (*x509.Certificate, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	order, err := c.AuthorizeOrder(ctx, ids, options...)
	if err != nil {
		return nil, err
	}
	for _, url := range order.AuthzURLs {
		if err := authorize(t, ctx, c, s, url); err != nil {
			return nil, err
		}
	}
	chain, _, err := c.CreateCertFromOrder(ctx, order, newRequest(t, ids), true)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(chain[0])
}

// mustObtain gets a certificate for DNS names.
func mustObtain(t testing.TB, c *acme.Client, s solver, names ...string) *x509.Certificate {
	t.Helper()
	certificate, err := obtain(t, c, s, acme.DomainIDs(names...))
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func authorize(t testing.TB, ctx context.Context, c *acme.Client, s solver, url string) error {
	t.Helper()
	authorization, err := c.GetAuthorization(ctx, url)
	if err != nil {
		return err
	}
	if authorization.Status == acme.StatusValid {
		return nil
	}
	for _, challenge := range authorization.Challenges {
		if challenge.Type == s.challengeType() {
			s.present(t, c, authorization.Identifier.Value, challenge)
			if _, err := c.Accept(ctx, challenge); err != nil {
				return err
			}
		}
	}
	// WaitAuthorization by itself asks once a second.
	waitFor(t, "validation", func() bool {
		authorization, err = c.GetAuthorization(ctx, url)
		return err != nil || authorization.Status != acme.StatusPending
	})
	_, err = c.WaitAuthorization(ctx, url)
	return err
}

// waitFor polls.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("%s: not after %v", what, patience)
			return
		}
	}
}

// newRequest is a certificate signing request.
func newRequest(t testing.TB, ids []acme.AuthzID) []byte {
	t.Helper()
	template := &x509.CertificateRequest{}
	for _, id := range ids {
		if id.Type == "ip" {
			template.IPAddresses = append(template.IPAddresses, net.ParseIP(id.Value))
		} else {
			template.DNSNames = append(template.DNSNames, id.Value)
		}
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, template, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return request
}
