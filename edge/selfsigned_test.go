package edge

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

func TestSelfSigned(t *testing.T) {
	long := strings.Repeat("a.", 40) + "example"
	tests := map[string]struct{ verify, commonName string }{
		"example.com":   {"example.com", "example.com"},
		"example.com.":  {"example.com", "example.com"},
		"*.example.com": {"www.example.com", "*.example.com"},
		"192.0.2.1":     {"192.0.2.1", "192.0.2.1"},
		"2001:DB8::1":   {"2001:db8::1", "2001:db8::1"},
		"[2001:db8::1]": {"2001:db8::1", "2001:db8::1"},
		long:            {long, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			cert, err := SelfSigned(name)
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := x509.ParseCertificate(cert.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			roots := x509.NewCertPool()
			roots.AddCert(leaf)
			for _, at := range []time.Time{time.Now().Add(-59 * time.Minute), time.Now().AddDate(9, 0, 0)} {
				_, err := leaf.Verify(x509.VerifyOptions{DNSName: test.verify, Roots: roots, CurrentTime: at})
				if err != nil {
					t.Errorf("at %v: %v", at, err)
				}
			}
			if leaf.Subject.CommonName != test.commonName {
				t.Errorf("common name %q, want %q", leaf.Subject.CommonName, test.commonName)
			}
			if cert.Leaf == nil || leaf.IsCA {
				t.Error("no Leaf, or a CA")
			}
		})
	}
	for _, name := range []string{"", ".", "example.com:443", "https://example.com", "a b", "bücher.example"} {
		if _, err := SelfSigned(name); err == nil {
			t.Errorf("a certificate was made for %q", name)
		}
	}
}

func TestPin(t *testing.T) {
	a, err := SelfSigned("example.com")
	if err != nil {
		t.Fatal(err)
	}
	b, err := SelfSigned("example.com")
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(a.Leaf.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(spki)
	if got, want := Pin(a.Leaf), base64.StdEncoding.EncodeToString(sum[:]); got != want {
		t.Errorf("Pin %q, want %q", got, want)
	}
	if Pin(a.Leaf) == Pin(b.Leaf) {
		t.Error("two keys have one pin")
	}
}
