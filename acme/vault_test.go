package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"raimon/storage"
)

// keyAndChain is what a CA would send for name.
func keyAndChain(t testing.TB, name string) (key, chain []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{name}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	if key, err = certmagic.PEMEncodePrivateKey(private); err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

const pairBase = "certificates/ca/a.example/a.example"

// failing is a storage that takes no certificates while full.
type failing struct {
	Storage
	full atomic.Bool
}

func (f *failing) Store(ctx context.Context, key string, value []byte) error {
	if f.full.Load() {
		return &fs.PathError{Op: "write", Path: key, Err: syscall.ENOSPC}
	}
	return f.Storage.Store(ctx, key, value)
}

func newVault(t testing.TB) (*vault, *failing, string, *strings.Builder) {
	t.Helper()
	dir := t.TempDir()
	backend := &failing{Storage: &storage.File{Root: dir}}
	var log strings.Builder
	return &vault{Storage: backend, log: slog.New(slog.NewTextHandler(&log, nil))}, backend, dir, &log
}

func storeAll(t testing.TB, v *vault, key, chain []byte) {
	t.Helper()
	for _, part := range []struct {
		extension string
		value     []byte
	}{{".crt", chain}, {".key", key}, {".json", []byte(`{"sans":["a.example"]}`)}} {
		if err := v.Store(t.Context(), pairBase+part.extension, part.value); err != nil {
			t.Fatal(err)
		}
	}
}

func wantParts(t testing.TB, v *vault, key, chain []byte) {
	t.Helper()
	for extension, want := range map[string][]byte{".key": key, ".crt": chain, ".json": []byte(`{"sans":["a.example"]}`)} {
		if got, err := v.Load(t.Context(), pairBase+extension); err != nil || string(got) != string(want) {
			t.Errorf("%s: got %q, %v", extension, got, err)
		}
		if !v.Exists(t.Context(), pairBase+extension) {
			t.Errorf("%s does not exist", extension)
		}
	}
}

// Killed or refused before the last part, nothing has changed.
func TestPairIsOneValue(t *testing.T) {
	v, _, dir, _ := newVault(t)
	oldKey, oldChain := keyAndChain(t, "a.example")
	storeAll(t, v, oldKey, oldChain)
	wantParts(t, v, oldKey, oldChain)

	key, chain := keyAndChain(t, "a.example")
	for _, part := range []string{".key", ".crt"} {
		if err := v.Store(t.Context(), pairBase+part, map[string][]byte{".key": key, ".crt": chain}[part]); err != nil {
			t.Fatal(err)
		}
		wantParts(t, v, oldKey, oldChain)
		wantParts(t, &vault{Storage: &storage.File{Root: dir}, log: v.log}, oldKey, oldChain)
	}
	// Certmagic takes back what it could not complete.
	for _, part := range []string{".key", ".crt"} {
		if err := v.Delete(t.Context(), pairBase+part); err != nil {
			t.Fatal(err)
		}
	}
	wantParts(t, v, oldKey, oldChain)

	storeAll(t, v, key, chain)
	wantParts(t, v, key, chain)
	files, err := filepath.Glob(filepath.Join(dir, "certificates/ca/a.example/*"))
	if err != nil || len(files) != 1 || filepath.Base(files[0]) != "a.example.pem" {
		t.Errorf("files: %q, %v", files, err)
	}
}

func TestPairThatDoesNotFitIsRefused(t *testing.T) {
	v, _, _, _ := newVault(t)
	key, chain := keyAndChain(t, "a.example")
	storeAll(t, v, key, chain)
	other, _ := keyAndChain(t, "a.example")
	v.Store(t.Context(), pairBase+".key", other)
	v.Store(t.Context(), pairBase+".crt", chain)
	if err := v.Store(t.Context(), pairBase+".json", []byte("{}")); !errors.Is(err, errPair) {
		t.Errorf("got %v", err)
	}
	wantParts(t, v, key, chain)
}

// A certificate that the disk has no room for is served from memory, and stored later.
func TestFullDisk(t *testing.T) {
	v, backend, dir, log := newVault(t)
	oldKey, oldChain := keyAndChain(t, "a.example")
	storeAll(t, v, oldKey, oldChain)
	backend.full.Store(true)
	key, chain := keyAndChain(t, "a.example")
	storeAll(t, v, key, chain)
	wantParts(t, v, key, chain)
	wantParts(t, &vault{Storage: &storage.File{Root: dir}, log: v.log}, oldKey, oldChain)
	if n := strings.Count(log.String(), "certificate obtained but not stored"); n != 1 {
		t.Errorf("%d lines about it:\n%s", n, log)
	}

	v.save(t.Context(), pairBase)
	backend.full.Store(false)
	v.save(t.Context(), pairBase)
	wantParts(t, &vault{Storage: &storage.File{Root: dir}, log: v.log}, key, chain)
	if !strings.Contains(log.String(), "certificate stored") {
		t.Errorf("no word that it is stored:\n%s", log)
	}
}

// What cannot be read is named, set aside and missing from then on.
func TestDamagedFiles(t *testing.T) {
	key, chain := keyAndChain(t, "a.example")
	other, _ := keyAndChain(t, "a.example")
	whole := string(key) + string(chain) + "-----BEGIN ACME METADATA-----\ne30=\n-----END ACME METADATA-----\n"
	if _, err := parsePair([]byte(whole)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ about, key, load, value string }{
		{"empty", pairBase + ".pem", pairBase + ".key", ""},
		{"cut", pairBase + ".pem", pairBase + ".key", whole[:len(whole)/2]},
		{"no metadata", pairBase + ".pem", pairBase + ".json", string(key) + string(chain)},
		{"another key", pairBase + ".pem", pairBase + ".crt", strings.Replace(whole, string(key), string(other), 1)},
		{"garbage", pairBase + ".pem", pairBase + ".crt", "\x00\xff"},
		{"account", "acme/ca/users/me/me.json", "acme/ca/users/me/me.json", "{"},
		{"account key", "acme/ca/users/me/me.key", "acme/ca/users/me/me.key", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"},
		{"staple", "ocsp/ca/a.example", "ocsp/ca/a.example", "x"},
		{"our account key", "accounts/ca/me.key", "accounts/ca/me.key", "x"},
	} {
		t.Run(test.about, func(t *testing.T) {
			v, _, dir, log := newVault(t)
			if err := v.Storage.Store(t.Context(), test.key, []byte(test.value)); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := v.Load(t.Context(), test.load); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("got %v, want fs.ErrNotExist", err)
				}
			}
			aside, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(test.key)+".corrupt"))
			if err != nil || string(aside) != test.value {
				t.Errorf("set aside: %q, %v", aside, err)
			}
			if n := strings.Count(log.String(), test.key+".corrupt"); n != 1 {
				t.Errorf("it is named %d times:\n%s", n, log)
			}
			if strings.Contains(log.String(), "PRIVATE") {
				t.Errorf("a key is in the log:\n%s", log)
			}
		})
	}
}

func FuzzParsePair(f *testing.F) {
	key, chain := keyAndChain(f, "a.example")
	f.Add([]byte(string(key) + string(chain) + "-----BEGIN ACME METADATA-----\ne30=\n-----END ACME METADATA-----\n"))
	f.Add([]byte(string(chain) + string(key)))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parsePair(data)
		if err == nil && (p.certificate.Leaf == nil || p.certificate.PrivateKey == nil || p.chainPEM == nil || p.metadata == nil) {
			t.Errorf("an incomplete pair: %+v", p)
		}
	})
}
