//go:build unix

package faults

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"raimon/internal/acmetest"
)

// randomly returns a source of chance whose seed is in the log.
func randomly(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// stored is the certificate of ca in the storage; fs.ErrNotExist if there is none.
func stored(dir string, ca *acmetest.CA, name string) (*tls.Certificate, error) {
	text, err := os.ReadFile(storedFile(dir, ca, name))
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(text, text) // an error if they do not fit
	return &pair, err
}

// storedFile is where the certificate of ca for name is stored.
func storedFile(dir string, ca *acmetest.CA, name string) string {
	return filepath.Join(dir, "certificates", folderOf(ca), name, name+".pem")
}

// folderOf is what folders of the storage that belong to ca are called.
func folderOf(ca *acmetest.CA) string {
	return strings.NewReplacer("https://", "", ":", "-", "/", "-").Replace(ca.Directory)
}

// nothingLeft ends the edge and wants a clean storage.
func (e *edge) nothingLeft(t testing.TB) {
	t.Helper()
	e.terminate(t)
	if status := e.Ended(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
	if found := leftovers(t, e.storage); len(found) > 0 {
		t.Errorf("left in the storage: %q", found)
	}
}

// leftovers are the files in the storage that do not belong there when nothing is being done.
func leftovers(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || entry.Type() == fs.ModeSocket {
			return err
		}
		key, err := filepath.Rel(dir, file)
		switch {
		case err != nil:
			return err
		case key == "ticket-keys":
		case strings.HasPrefix(key, "accounts/") && strings.HasSuffix(key, ".key"):
		case strings.HasPrefix(key, "certificates/") && strings.HasSuffix(key, ".pem"):
		case strings.HasPrefix(key, "acme/") && strings.Contains(key, "/users/") && !strings.Contains(key, "/.~"):
		default:
			found = append(found, key)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// story is one storage and one CA through a number of kills.
type story struct {
	setup
	ca     *acmetest.CA
	random *rand.Rand
	before *tls.Certificate // what was in the storage at the last look; nil if nothing
	wait   time.Duration    // after which a certificate is due, so that a start renews it
}

// killedOnce starts raimons, kills it a moment later, and looks at what it has left.
func (s *story) killedOnce(t testing.TB, longest time.Duration) {
	t.Helper()
	moment := time.Duration(s.random.Int64N(int64(longest)))
	s.waitUntilDue()
	begin := time.Now()
	e := s.start(t)
	reachable(e)
	if s.before != nil {
		s.servesOldOrNewer(t, e)
	}
	time.Sleep(time.Until(begin.Add(moment))) // the moment of the kill is what is tried out
	e.kill(t)
	s.look(t)
	t.Logf("killed after %v: %v", moment.Round(time.Millisecond), progress(e))
}

func (s *story) waitUntilDue() {
	if s.before != nil {
		time.Sleep(time.Until(s.before.Leaf.NotBefore.Add(s.wait)))
	}
}

// servesOldOrNewer makes the first handshake after a kill.
func (s *story) servesOldOrNewer(t testing.TB, e *edge) {
	t.Helper()
	state, err := handshake(e.Address, name)
	if err != nil {
		t.Fatalf("there was a certificate on the disk, and it is not served: %v\n%s", err, e.Log)
	}
	leaf := state.PeerCertificates[0]
	if leaf.NotBefore.Before(s.before.Leaf.NotBefore) {
		t.Errorf("an older certificate than the one on the disk is served")
	}
	if err := verify(state.PeerCertificates, name, leaf.NotBefore, s.ca); err != nil {
		t.Error(err)
	}
}

func (s *story) look(t testing.TB) {
	t.Helper()
	now, err := stored(s.storage, s.ca, name)
	switch {
	case s.before == nil && errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		t.Fatalf("the certificate in the storage: %v", err)
	case s.before != nil && now.Leaf.NotBefore.Before(s.before.Leaf.NotBefore):
		t.Errorf("the certificate in the storage is older than what was there")
	case s.before == nil, !bytes.Equal(now.Certificate[0], s.before.Certificate[0]):
		if !slices.ContainsFunc(s.ca.Issued(), now.Leaf.Equal) {
			t.Errorf("the certificate in the storage is none of the CA's")
		}
	}
	s.before = now
}

// ends starts raimons a last time and wants everything to be well.
func (s *story) ends(t testing.TB) {
	t.Helper()
	s.waitUntilDue()
	e := s.start(t)
	reachable(e)
	e.Log.Wait(t, `"certificate (obtained|renewed)"`) // which also clears up
	if _, err := e.serves(name); err != nil {
		t.Error(err)
	}
	e.noErrors(t)
	if n := len(s.ca.Accounts()); n != 1 {
		t.Errorf("%d accounts, want one", n)
	}
	e.nothingLeft(t)
}

// progress is how far an edge had come.
func progress(e *edge) string {
	for _, text := range []string{"certificate renewed", "certificate obtained", "certificate loaded"} {
		if e.Log.Count(text) > 0 {
			return text
		}
	}
	return "nothing"
}

const stories, killsEach = 10, 5

func TestKilledWhileObtaining(t *testing.T) {
	t.Parallel()
	longest := issueTime(t)
	for i := range stories {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			ca := acmetest.New(t, acmetest.Config{})
			s := &story{setup: setup{cas: []*acmetest.CA{ca}, storage: t.TempDir()}, ca: ca, random: randomly(t)}
			for range killsEach {
				s.killedOnce(t, longest)
				s.forget(t)
			}
			s.ends(t)
		})
	}
}

// forget takes the certificate away, so that the next start has to obtain one again.
func (s *story) forget(t testing.TB) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(s.storage, "certificates")); err != nil {
		t.Fatal(err)
	}
	s.before = nil
}

func TestKilledWhileRenewing(t *testing.T) {
	t.Parallel()
	longest := issueTime(t)
	for i := range stories {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			// Each start renews at once: in half of the stories because half of the time has run out, in
			// the others because the CA wants it.
			config, wait := acmetest.Config{RenewalWindow: atEveryStart}, time.Duration(0)
			if i%2 == 0 {
				const validity = 8 * time.Second
				config, wait = acmetest.Config{Profiles: profile(validity).Profiles}, validity/2
			}
			ca := acmetest.New(t, config)
			s := &story{setup: setup{cas: []*acmetest.CA{ca}, storage: t.TempDir()}, ca: ca, random: randomly(t), wait: wait}
			first := s.start(t)
			reachable(first)
			eventually(t, func() (err error) {
				s.before, err = stored(s.storage, s.ca, name)
				return err
			})
			first.kill(t)
			for range killsEach {
				s.killedOnce(t, longest)
			}
			s.ends(t)
		})
	}
}

// issueTime is one and a half times what it takes from the start to the certificate now and here.
func issueTime(t testing.TB) time.Duration {
	t.Helper()
	ca := acmetest.New(t, acmetest.Config{})
	begin := time.Now()
	e := setup{cas: []*acmetest.CA{ca}, storage: t.TempDir()}.start(t)
	reachable(e)
	e.servedSoon(t, name)
	d := time.Since(begin) * 3 / 2
	t.Logf("kills come within %v", d)
	return d
}
