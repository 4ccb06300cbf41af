//go:build unix

package faults

import (
	"os"
	"path/filepath"
	"testing"

	"raimon/internal/acmetest"
)

// tokenFile is where the answer to ca's challenge for name is stored.
func tokenFile(dir string, ca *acmetest.CA, name string) string {
	return filepath.Join(dir, "acme", folderOf(ca), "challenge_tokens", name+".json")
}

// challenged starts raimons and returns when a challenge waits for being looked at, which it does for good.
func challenged(t testing.TB, s setup, by *acmetest.CA) *edge {
	t.Helper()
	e := s.start(t) // and is not made reachable
	eventually(t, func() error {
		_, err := os.Stat(tokenFile(s.storage, by, name))
		return err
	})
	return e
}

func TestEndWhileChallenged(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	challenged(t, setup{cas: []*acmetest.CA{ca}, storage: t.TempDir()}, ca).nothingLeft(t)
}

// The CA that has challenged the killed edge is not asked again.
func TestKilledWhileChallenged(t *testing.T) {
	t.Parallel()
	first, second := acmetest.New(t, acmetest.Config{}), acmetest.New(t, acmetest.Config{})
	s := setup{cas: []*acmetest.CA{first, second}, storage: t.TempDir()}
	first.Fail(acmetest.RateLimited(0))
	challenged(t, s, second).kill(t)

	first.Mend()
	e := s.start(t)
	first.TLSALPN01.To(e.Address)
	e.servedSoon(t, name)
	e.nothingLeft(t)
	if len(first.Issued()) != 1 {
		t.Error("the certificate is not the first CA's: then this test tests something else")
	}
}

// An edge is killed when the CA has looked, but before it knows: the next one is not challenged.
func TestCARemembersTheName(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{ReuseAuthorizations: 100})
	dir, _ := prepared(t, ca, "")
	if err := os.RemoveAll(filepath.Join(dir, "certificates")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tokenFile(dir, ca, name), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	challenges := ca.Requests(acmetest.Challenge)

	e := setup{cas: []*acmetest.CA{ca}, storage: dir}.start(t)
	e.servedSoon(t, name)
	e.nothingLeft(t)
	if n := ca.Requests(acmetest.Challenge) - challenges; n > 0 {
		t.Errorf("%d challenges: then this test tests something else", n)
	}
}
