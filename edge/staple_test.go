package edge

import (
	"encoding/pem"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Whatever the response is, the certificate is served.
func TestStaple(t *testing.T) {
	s := newSite(t, t.TempDir(), true)
	now := time.Now()
	respond := func(change func(*ocsp.Response)) []byte {
		t.Helper()
		response := good(s.leaf)
		change(&response)
		return s.ca.respond(t, response)
	}
	valid := respond(func(*ocsp.Response) {})
	other := newAuthority(t, "Other CA").respond(t, good(s.leaf))

	for name, test := range map[string]struct {
		data []byte
		want string // in the warning; empty if it is stapled
	}{
		"good":                 {valid, ""},
		"PEM":                  {pem.EncodeToMemory(&pem.Block{Type: "OCSP RESPONSE", Bytes: valid}), ""},
		"PEM after another":    {append(certPEM(s.leaf), pem.EncodeToMemory(&pem.Block{Type: "OCSP RESPONSE", Bytes: valid})...), ""},
		"no next update":       {respond(func(r *ocsp.Response) { r.NextUpdate = time.Time{} }), ""},
		"clock a little ahead": {respond(func(r *ocsp.Response) { r.ThisUpdate = now.Add(time.Minute) }), ""},

		"empty":         {nil, "the file is empty"},
		"garbage":       {[]byte("garbage!!"), "neither PEM nor DER"},
		"cut":           {valid[:len(valid)/2], "asn1"},
		"certificate":   {s.leaf.Raw, "a certificate, not an OCSP response"},
		"of another CA": {other, `signature of "CN=Test CA"`},
		"expired":       {respond(func(r *ocsp.Response) { r.NextUpdate = now.Add(-time.Minute) }), "not valid after"},
		"future":        {respond(func(r *ocsp.Response) { r.ThisUpdate = now.Add(time.Hour) }), "not valid before"},
		"unknown":       {respond(func(r *ocsp.Response) { r.Status = ocsp.Unknown }), "does not know the certificate"},
		"revoked":       {respond(func(r *ocsp.Response) { r.Status = ocsp.Revoked; r.RevokedAt = now }), "the certificate is revoked"},
	} {
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
			if loud := strings.Contains(lines[1], "level=ERROR"); loud != (name == "revoked") {
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
