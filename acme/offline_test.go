package acme

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"raimon/storage"
)

// storeCertificate stores a certificate of name as if that CA had issued it, and returns the key of the value.
func storeCertificate(t *testing.T, s Storage, ca, name string, notBefore time.Time, lifetime time.Duration) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{name},
		NotBefore: notBefore, NotAfter: notBefore.Add(lifetime)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	metadata := fmt.Sprintf(`{"sans":[%q],"issuer_data":{"url":"https://%s/cert/1","ca":"https://%[2]s/dir","account":"https://%[2]s/account/7"}}`, name, ca)
	var value []byte
	for _, block := range []pem.Block{{Type: "PRIVATE KEY", Bytes: keyDER}, {Type: "CERTIFICATE", Bytes: der}, {Type: metadataBlock, Bytes: []byte(metadata)}} {
		value = append(value, pem.EncodeToMemory(&block)...)
	}
	safe := strings.Replace(name, "*", "wildcard_", 1)
	file := "certificates/" + strings.ReplaceAll(ca, ":", "-") + "-dir/" + safe + "/" + safe + ".pem"
	if err := s.Store(t.Context(), file, value); err != nil {
		t.Fatal(err)
	}
	return file
}

// files are all files below root with their contents.
func files(t *testing.T, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(name)
		all[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestStored(t *testing.T) {
	root := t.TempDir()
	s := &storage.File{Root: root}
	day := 24 * time.Hour
	begin := time.Now().Add(-day).Truncate(time.Second).UTC()
	storeCertificate(t, s, "ca.test", "b.test", begin, 90*day)
	storeCertificate(t, s, "ca.test", "*.a.test", begin, 6*day)
	storeCertificate(t, s, "other.test", "b.test", begin.Add(-100*day), 90*day)
	for key, value := range map[string]string{
		"certificates/ca.test-dir/wildcard_.c.test/wildcard_.c.test.pem": "no PEM",
		"certificates/ca.test-dir/b.test/b.test.pem.corrupt":             "set aside before",
		"certificates/stray.pem":                                         "not where certificates are",
		"ocsp/ca.test-dir/b.test":                                        "no staple",
	} {
		if err := s.Store(t.Context(), key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	before := files(t, root)
	got, err := Stored(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	want := []Status{
		{Name: "*.a.test", Issuer: "https://ca.test/dir", NotBefore: begin, NotAfter: begin.Add(6 * day), NextRenewal: begin.Add(3 * day)},
		{Name: "*.c.test", LastError: "damaged: it is cut off, or no PEM",
			Hint: "the next edge sets certificates/ca.test-dir/wildcard_.c.test/wildcard_.c.test.pem aside and obtains another"},
		{Name: "b.test", Issuer: "https://ca.test/dir", NotBefore: begin, NotAfter: begin.Add(90 * day), NextRenewal: begin.Add(60 * day)},
		{Name: "b.test", Issuer: "https://other.test/dir", NotBefore: begin.Add(-100 * day), NotAfter: begin.Add(-10 * day), NextRenewal: begin.Add(-40 * day)},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	after := files(t, root)
	for name, text := range before {
		if after[name] != text {
			t.Errorf("%s was changed", name)
		}
	}
	if len(after) != len(before) {
		t.Errorf("there are %d files, want the %d from before", len(after), len(before))
	}
}

func TestStoredOfNothing(t *testing.T) {
	for _, root := range []string{t.TempDir(), filepath.Join(t.TempDir(), "nowhere")} {
		if got, err := Stored(t.Context(), &storage.File{Root: root}); err != nil || len(got) > 0 {
			t.Errorf("%s: got %v, %v; want nothing", root, got, err)
		}
	}
}

// What has to be known before a CA is asked.
func TestRevokeStoredChecksFirst(t *testing.T) {
	s := &storage.File{Root: t.TempDir()}
	now := time.Now()
	kept := storeCertificate(t, s, "ca.test", "a.test", now, time.Hour)
	if err := s.Store(t.Context(), "acme/ca.test-dir/users/me/me.json", []byte(`{"status":"valid","location":"https://ca.test/account/8"}`)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, ca string
		want     string // in the error
		hint     string
	}{
		{"b.test", "", `no certificate of "b.test" is stored`, "raimons certs list"},
		{"a.test", LetsEncrypt, "from https://ca.test/dir", "acme-ca="},
		{"a.test", "", "the account that obtained the certificate is not in the storage", "acme/ca.test-dir"},
	} {
		_, err := RevokeStored(t.Context(), Config{Storage: s, CAs: []CA{{Directory: test.ca}}}, test.name)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(hintOf(err), test.hint) {
			t.Errorf("%s of %q: got %v (hint %q), want %q (hint %q)", test.name, test.ca, err, hintOf(err), test.want, test.hint)
		}
	}
	if !s.Exists(t.Context(), kept) {
		t.Error("the certificate is gone")
	}
}

// The CA that cannot be reached has not revoked anything.
func TestRevokeStoredKeepsWhatWasNotRevoked(t *testing.T) {
	root := t.TempDir()
	s := &storage.File{Root: root}
	kept := storeCertificate(t, s, "127.0.0.1:1", "a.test", time.Now(), time.Hour) // tcpmux: nobody has it
	key, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(kept)))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string][]byte{"me.json": []byte(`{"status":"valid","location":"https://127.0.0.1:1/account/7"}`), "me.key": key} {
		if err := s.Store(t.Context(), "acme/127.0.0.1-1-dir/users/me/"+name, value); err != nil {
			t.Fatal(err)
		}
	}
	_, err = RevokeStored(t.Context(), Config{Storage: s, CAs: []CA{{}}}, "a.test")
	var f *Failure
	if !errors.As(err, &f) || strings.Contains(f.Fix, "by itself") {
		t.Errorf("got %v (hint %q), want a Failure that promises nothing", err, hintOf(err))
	}
	if !s.Exists(t.Context(), kept) {
		t.Error("the certificate is gone")
	}
}

func TestOnce(t *testing.T) {
	for fix, want := range map[string]string{
		"may this machine connect to it? it is tried again, by itself":                 "may this machine connect to it?",
		"rate-limited until noon: it is tried again then, by itself; another CA would": "rate-limited until noon; another CA would",
		"the CA has a problem: it is tried again, by itself":                           "the CA has a problem",
		"too many failures: it is tried again later, by itself; for experiments":       "too many failures; for experiments",
		"check its A record": "check its A record",
	} {
		if got := once(&Failure{Fix: fix}).Fix; got != want {
			t.Errorf("%q becomes %q, want %q", fix, got, want)
		}
	}
}
