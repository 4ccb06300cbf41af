package edge

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"os"
	"path/filepath"
	"runtime"
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

func TestSelfSignedFileKeepsItsPin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new", "selfsigned.pem")
	first, err := SelfSignedFile(file, "edge.example.com")
	if err != nil {
		t.Fatal(err)
	}
	second, err := SelfSignedFile(file, "edge.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if Pin(first.Leaf) != Pin(second.Leaf) {
		t.Error("the second start has another pin")
	}
	if runtime.GOOS != "windows" {
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the file with the key has mode %v, %v, want 0600", info.Mode(), err)
		}
	}
	wildcard := filepath.Join(t.TempDir(), "wildcard.pem")
	first, _ = SelfSignedFile(wildcard, "*.example.com")
	if second, err = SelfSignedFile(wildcard, "*.example.com"); err != nil || Pin(first.Leaf) != Pin(second.Leaf) {
		t.Errorf("wildcard: the second start has another pin, %v", err)
	}
	other, err := SelfSignedFile(file, "other.example.com")
	if err != nil || other.Leaf.VerifyHostname("other.example.com") != nil {
		t.Errorf("a file for another name: got %v, %v", other.Leaf.DNSNames, err)
	}
}

func TestSelfSignedFileLeavesWhatItCannotRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "selfsigned.pem")
	if err := os.WriteFile(file, []byte("somebody's notes"), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, err := SelfSignedFile(file, "edge.example.com")
	if cert == nil || err == nil {
		t.Errorf("got %v, %v, want a certificate for now and an error", cert, err)
	}
	if got, _ := os.ReadFile(file); string(got) != "somebody's notes" {
		t.Errorf("the file now holds %q", got)
	}
}
