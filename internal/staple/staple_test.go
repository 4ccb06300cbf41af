package staple

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// authority is a throw-away CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-48 * time.Hour),
		NotAfter:              time.Now().Add(1000 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	return &authority{cert: sign(t, template, template, key.Public(), key), key: key}
}

// issue returns a leaf for the key. An option changes the template.
func (a *authority) issue(t testing.TB, public crypto.PublicKey, options ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "leaf"},
		NotBefore:   time.Now().Add(-24 * time.Hour),
		NotAfter:    time.Now().Add(900 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, option := range options {
		option(template)
	}
	return sign(t, template, a.cert, public, a.key)
}

func (a *authority) respond(t testing.TB, response ocsp.Response) []byte {
	t.Helper()
	der, err := ocsp.CreateResponse(a.cert, a.cert, response, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func sign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func good(leaf *x509.Certificate) ocsp.Response {
	return ocsp.Response{
		Status:       ocsp.Good,
		SerialNumber: leaf.SerialNumber,
		ThisUpdate:   time.Now().Add(-time.Hour),
		NextUpdate:   time.Now().Add(24 * time.Hour),
	}
}

func forOCSP(template *x509.Certificate) {
	template.Subject.CommonName = "responder"
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
}

type parseTest struct {
	der  []byte
	want string // in the error of Parse or Check; empty if it is taken
}

// parseTests returns responses for a leaf of ca.
func parseTests(t testing.TB, ca *authority, leaf *x509.Certificate) map[string]parseTest {
	t.Helper()
	now := time.Now()
	respond := func(change func(*ocsp.Response)) []byte {
		t.Helper()
		response := good(leaf)
		change(&response)
		return ca.respond(t, response)
	}
	delegate := func(of *authority, change func(*ocsp.Response), options ...func(*x509.Certificate)) []byte {
		t.Helper()
		key := newKey(t)
		cert := of.issue(t, key.Public(), options...)
		response := good(leaf)
		response.Certificate = cert
		change(&response)
		der, err := ocsp.CreateResponse(ca.cert, cert, response, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	same := func(*ocsp.Response) {}

	other := newAuthority(t, "Other CA")
	namesake := newAuthority(t, "Test CA")
	valid := respond(same)
	badSignature := bytes.Clone(valid)
	badSignature[len(badSignature)-1] ^= 1
	otherIssuer, err := ocsp.CreateResponse(other.cert, ca.cert, good(leaf), ca.key)
	if err != nil {
		t.Fatal(err)
	}

	return map[string]parseTest{
		"good":                 {valid, ""},
		"SHA-256":              {respond(func(r *ocsp.Response) { r.IssuerHash = crypto.SHA256 }), ""},
		"no next update":       {respond(func(r *ocsp.Response) { r.NextUpdate = time.Time{} }), ""},
		"clock a little ahead": {respond(func(r *ocsp.Response) { r.ThisUpdate = now.Add(time.Minute) }), ""},
		"issuer enclosed":      {respond(func(r *ocsp.Response) { r.Certificate = ca.cert }), ""},
		"delegate":             {delegate(ca, same, forOCSP), ""},

		"empty":       {nil, "asn1"},
		"garbage":     {[]byte("garbage!!"), "asn1"},
		"cut":         {valid[:len(valid)/2], "asn1"},
		"certificate": {leaf.Raw, "asn1"},
		"try later":   {ocsp.TryLaterErrorResponse, "try later"},
		"of another certificate": {
			respond(func(r *ocsp.Response) { r.SerialNumber = big.NewInt(7) }), "no response matching the supplied certificate",
		},
		"signature":            {badSignature, `signature of "CN=Test CA"`},
		"of another CA":        {other.respond(t, good(leaf)), `signature of "CN=Test CA"`},
		"of a namesake":        {namesake.respond(t, good(leaf)), `signature of "CN=Test CA"`},
		"for another CA":       {otherIssuer, "about a certificate of another issuer"},
		"expired":              {respond(func(r *ocsp.Response) { r.NextUpdate = now.Add(-time.Minute) }), "not valid after"},
		"future":               {respond(func(r *ocsp.Response) { r.ThisUpdate = now.Add(time.Hour) }), "not valid before"},
		"unknown":              {respond(func(r *ocsp.Response) { r.Status = ocsp.Unknown }), "does not know the certificate"},
		"revoked":              {respond(func(r *ocsp.Response) { r.Status = ocsp.Revoked; r.RevokedAt = now }), "the certificate is revoked"},
		"delegate revokes":     {delegate(ca, func(r *ocsp.Response) { r.Status = ocsp.Revoked }, forOCSP), "the certificate is revoked"},
		"delegate's EKU":       {delegate(ca, same), "not for OCSP signing"},
		"delegate of other":    {delegate(other, same, forOCSP), "not from the issuer"},
		"delegate of namesake": {delegate(namesake, same, forOCSP), `responder "CN=responder": x509`},
		"delegate expired": {
			delegate(ca, same, forOCSP, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) }), "not valid after",
		},
		"delegate too early": {
			delegate(ca, same, forOCSP, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }), "not valid before",
		},
	}
}

func TestParse(t *testing.T) {
	ca := newAuthority(t, "Test CA")
	leaf := ca.issue(t, newKey(t).Public())
	chain := []*x509.Certificate{leaf, ca.cert}
	for name, test := range parseTests(t, ca, leaf) {
		t.Run(name, func(t *testing.T) {
			s, err := Parse(test.der, chain)
			if (s == nil) != (err != nil) {
				t.Fatalf("got %v and %v", s, err)
			}
			if err == nil {
				if !bytes.Equal(s.DER, test.der) {
					t.Error("returned another response")
				}
				err = s.Check(time.Now())
			}
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if got, want := errors.Is(err, ErrRevoked), strings.Contains(name, "revoke"); got != want {
				t.Errorf("revoked: %v, want %v", got, want)
			}
		})
	}
}

func TestParseIssuer(t *testing.T) {
	ca := newAuthority(t, "Test CA")
	leaf := ca.issue(t, newKey(t).Public())
	bystander := newAuthority(t, "Bystander CA").cert
	namesake := newAuthority(t, "Test CA").cert
	der := ca.respond(t, good(leaf))
	for name, test := range map[string]struct {
		der   []byte
		chain []*x509.Certificate
		want  bool
	}{
		"next":        {der, []*x509.Certificate{leaf, ca.cert}, true},
		"further":     {der, []*x509.Certificate{leaf, namesake, bystander, ca.cert}, true},
		"missing":     {der, []*x509.Certificate{leaf}, false},
		"another one": {der, []*x509.Certificate{leaf, bystander}, false},
		"namesake":    {der, []*x509.Certificate{leaf, namesake}, false},
		"itself":      {ca.respond(t, good(ca.cert)), []*x509.Certificate{ca.cert}, true},
	} {
		_, err := Parse(test.der, test.chain)
		if got := err == nil; got != test.want {
			t.Errorf("%s: error %v, want none: %v", name, err, test.want)
		}
		if !test.want && !errors.Is(err, ErrNoIssuer) {
			t.Errorf("%s: error %v, want ErrNoIssuer", name, err)
		}
	}
	if s, err := Parse(der, nil); s != nil || err == nil {
		t.Errorf("without a chain: got %v and %v", s, err)
	}
}

func TestCheck(t *testing.T) {
	now := time.Now()
	for name, test := range map[string]struct {
		staple       Staple
		at           time.Time
		want, lapsed bool
	}{
		"within":         {Staple{From: now, Until: now.Add(time.Hour)}, now, true, false},
		"skew":           {Staple{From: now, Until: now.Add(time.Hour)}, now.Add(-skew), true, false},
		"beyond skew":    {Staple{From: now, Until: now.Add(time.Hour)}, now.Add(-skew - 1), false, false},
		"last moment":    {Staple{From: now, Until: now.Add(time.Hour)}, now.Add(time.Hour - 1), true, false},
		"next update":    {Staple{From: now, Until: now.Add(time.Hour)}, now.Add(time.Hour), false, true},
		"no next update": {Staple{From: now}, now.AddDate(100, 0, 0), true, false},
	} {
		if got := test.staple.Check(test.at) == nil; got != test.want {
			t.Errorf("%s: taken %v, want %v", name, got, test.want)
		}
		if got := test.staple.Lapsed(test.at); got != test.lapsed {
			t.Errorf("%s: lapsed %v, want %v", name, got, test.lapsed)
		}
	}
}

func TestRefresh(t *testing.T) {
	ca := newAuthority(t, "Test CA")
	leaf := ca.issue(t, newKey(t).Public())
	from := time.Now().Add(-time.Hour).Truncate(time.Minute)
	for name, test := range map[string]struct {
		until, delegateUntil, want time.Duration // since from; zero: none
	}{
		"four days":                      {96 * time.Hour, 0, 48 * time.Hour},
		"delegate ends sooner":           {96 * time.Hour, 48 * time.Hour, 24 * time.Hour},
		"open-ended":                     {0, 0, 6 * time.Hour},
		"open-ended, delegate far":       {0, 800 * time.Hour, 6 * time.Hour},
		"open-ended, delegate's is near": {0, 4 * time.Hour, 2 * time.Hour},
	} {
		response, signer, key := good(leaf), ca.cert, ca.key
		response.ThisUpdate, response.NextUpdate = from, time.Time{}
		if test.until != 0 {
			response.NextUpdate = from.Add(test.until)
		}
		if test.delegateUntil != 0 {
			key = newKey(t)
			signer = ca.issue(t, key.Public(), forOCSP, func(c *x509.Certificate) { c.NotAfter = from.Add(test.delegateUntil) })
			response.Certificate = signer
		}
		der, err := ocsp.CreateResponse(ca.cert, signer, response, key)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Parse(der, []*x509.Certificate{leaf, ca.cert})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := s.Refresh().Sub(from); got != test.want {
			t.Errorf("%s: after %v, want %v", name, got, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	ca := newAuthority(f, "Test CA")
	leaf := ca.issue(f, newKey(f).Public())
	for _, test := range parseTests(f, ca, leaf) {
		f.Add(test.der)
	}
	chain := []*x509.Certificate{leaf, ca.cert}
	f.Fuzz(func(t *testing.T, der []byte) {
		s, err := Parse(der, chain)
		if (err == nil) != (s != nil) {
			t.Fatalf("staple %v and error %v", s, err)
		}
		if err != nil {
			return
		}
		response, err := ocsp.ParseResponseForCert(s.DER, leaf, nil)
		if err != nil || response.Status != ocsp.Good {
			t.Fatalf("took %v, error %v", response, err)
		}
	})
}
