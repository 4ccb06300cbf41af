package edge

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

func forOCSP(template *x509.Certificate) {
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning}
}

type stapleTest struct {
	data []byte
	want string // in the warning; empty if it is stapled
}

// stapleTests returns responses for the site.
func stapleTests(t testing.TB, s *site) map[string]stapleTest {
	t.Helper()
	now := time.Now()
	respond := func(change func(*ocsp.Response)) []byte {
		t.Helper()
		response := good(s.leaf)
		change(&response)
		return s.ca.respond(t, response)
	}
	delegate := func(ca *authority, change func(*ocsp.Response), options ...func(*x509.Certificate)) []byte {
		t.Helper()
		key := newKey(t)
		cert := ca.issue(t, "responder", key.Public(), options...)
		response := good(s.leaf)
		response.Certificate = cert
		change(&response)
		der, err := ocsp.CreateResponse(s.ca.cert, cert, response, key)
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
	otherIssuer, err := ocsp.CreateResponse(other.cert, s.ca.cert, good(s.leaf), s.ca.key)
	if err != nil {
		t.Fatal(err)
	}

	return map[string]stapleTest{
		"good":                 {valid, ""},
		"PEM":                  {pem.EncodeToMemory(&pem.Block{Type: "OCSP RESPONSE", Bytes: valid}), ""},
		"no next update":       {respond(func(r *ocsp.Response) { r.NextUpdate = time.Time{} }), ""},
		"clock a little ahead": {respond(func(r *ocsp.Response) { r.ThisUpdate = now.Add(time.Minute) }), ""},
		"issuer enclosed":      {respond(func(r *ocsp.Response) { r.Certificate = s.ca.cert }), ""},
		"delegate":             {delegate(s.ca, same, forOCSP), ""},

		"empty":       {nil, "the file is empty"},
		"garbage":     {[]byte("garbage!!"), "neither PEM nor DER"},
		"cut":         {valid[:len(valid)/2], "asn1"},
		"certificate": {s.leaf.Raw, "a certificate, not an OCSP response"},
		"try later":   {ocsp.TryLaterErrorResponse, "try later"},
		"of another certificate": {
			respond(func(r *ocsp.Response) { r.SerialNumber = big.NewInt(7) }), "no response matching the supplied certificate",
		},
		"signature":            {badSignature, `signature of "CN=Test CA"`},
		"of another CA":        {other.respond(t, good(s.leaf)), `signature of "CN=Test CA"`},
		"of a namesake":        {namesake.respond(t, good(s.leaf)), `signature of "CN=Test CA"`},
		"for another CA":       {otherIssuer, "about a certificate of another issuer"},
		"expired":              {respond(func(r *ocsp.Response) { r.NextUpdate = now.Add(-time.Minute) }), "not valid after"},
		"future":               {respond(func(r *ocsp.Response) { r.ThisUpdate = now.Add(time.Hour) }), "not valid before"},
		"unknown":              {respond(func(r *ocsp.Response) { r.Status = ocsp.Unknown }), "does not know the certificate"},
		"revoked":              {respond(func(r *ocsp.Response) { r.Status = ocsp.Revoked; r.RevokedAt = now }), "the certificate is revoked"},
		"delegate revokes":     {delegate(s.ca, func(r *ocsp.Response) { r.Status = ocsp.Revoked }, forOCSP), "the certificate is revoked"},
		"delegate's EKU":       {delegate(s.ca, same), "not for OCSP signing"},
		"delegate of other":    {delegate(other, same, forOCSP), "not from the issuer"},
		"delegate of namesake": {delegate(namesake, same, forOCSP), `responder "CN=responder": x509`},
		"delegate expired": {
			delegate(s.ca, same, forOCSP, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) }), "not valid after",
		},
		"delegate too early": {
			delegate(s.ca, same, forOCSP, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }), "not valid before",
		},
	}
}

// Whatever the response is, the certificate is served.
func TestStaple(t *testing.T) {
	s := newSite(t, t.TempDir(), true)
	for name, test := range stapleTests(t, s) {
		t.Run(name, func(t *testing.T) {
			write(t, s.OCSP, test.data)
			s.load(t)
			s.wantName(t, "one.example")
			s.wantStaple(t, test.want == "")
			if test.want == "" {
				s.want(t, "certificate taken up")
				return
			}
			lines := s.take()
			if len(lines) != 2 || !strings.Contains(lines[1], "without an OCSP staple") ||
				!strings.Contains(strings.ReplaceAll(lines[1], `\"`, `"`), test.want) {
				t.Errorf("logged %q, want a second line with %q", lines, test.want)
			}
			if loud := strings.Contains(lines[1], "level=ERROR"); loud != strings.Contains(name, "revoke") {
				t.Errorf("logged %q", lines[1])
			}
		})
	}
}

func TestStapleMissing(t *testing.T) {
	s := newSite(t, t.TempDir(), false)
	s.OCSP = filepath.Join(t.TempDir(), "missing.der")
	s.load(t)
	s.wantName(t, "one.example")
	s.wantStaple(t, false)
	s.want(t, "certificate taken up", "missing.der")
}

func TestStapleIssuer(t *testing.T) {
	s := newSite(t, t.TempDir(), true)
	bystander := newAuthority(t, "Bystander CA").cert
	tests := map[string]struct {
		chain []byte
		want  bool
	}{
		"next":        {certPEM(s.leaf, s.ca.cert), true},
		"further":     {certPEM(s.leaf, bystander, s.ca.cert), true},
		"missing":     {certPEM(s.leaf), false},
		"another one": {certPEM(s.leaf, bystander), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			write(t, s.Cert, test.chain)
			s.load(t)
			s.wantStaple(t, test.want)
			if test.want {
				s.want(t, "certificate taken up")
			} else {
				s.want(t, "certificate taken up", "use fullchain.pem")
			}
		})
	}
	t.Run("itself", func(t *testing.T) {
		write(t, s.Cert, certPEM(s.ca.cert))
		write(t, s.Key, keyPEM(t, s.ca.key))
		write(t, s.OCSP, s.ca.respond(t, good(s.ca.cert)))
		s.load(t)
		s.wantStaple(t, true)
	})
}

// Time is asked at every handshake: a response from before our clock was set is stapled once it is.
func TestStapleLifetime(t *testing.T) {
	now := time.Now()
	for name, test := range map[string]struct {
		staple ocspStaple
		at     time.Time
		want   bool
	}{
		"within":         {ocspStaple{from: now, until: now.Add(time.Hour)}, now, true},
		"skew":           {ocspStaple{from: now, until: now.Add(time.Hour)}, now.Add(-ocspSkew), true},
		"beyond skew":    {ocspStaple{from: now, until: now.Add(time.Hour)}, now.Add(-ocspSkew - 1), false},
		"last moment":    {ocspStaple{from: now, until: now.Add(time.Hour)}, now.Add(time.Hour - 1), true},
		"next update":    {ocspStaple{from: now, until: now.Add(time.Hour)}, now.Add(time.Hour), false},
		"no next update": {ocspStaple{from: now}, now.AddDate(100, 0, 0), true},
	} {
		if got := test.staple.check(test.at) == nil; got != test.want {
			t.Errorf("%s: stapled %v, want %v", name, got, test.want)
		}
	}
}

func FuzzStaple(f *testing.F) {
	s := newSite(f, f.TempDir(), false)
	for _, test := range stapleTests(f, s) {
		f.Add(test.data)
	}
	chain := []*x509.Certificate{s.leaf, s.ca.cert}
	f.Fuzz(func(t *testing.T, data []byte) {
		staple, err := parseStaple(data, chain)
		if (err == nil) != (staple != nil) {
			t.Fatalf("staple %v and error %v", staple, err)
		}
		if err != nil {
			return
		}
		response, err := ocsp.ParseResponseForCert(staple.der, s.leaf, nil)
		if err != nil || response.Status != ocsp.Good {
			t.Fatalf("took %v, error %v", response, err)
		}
	})
}
