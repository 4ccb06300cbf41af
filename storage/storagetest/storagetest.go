// Package storagetest is the suite that every storage backend passes.
//
// A backend's test is one call to Run. Parts of the suite need other processes, to kill and to stop
// them: the test binary starts itself again for the test that called Run, and Run, reached there a
// second time, obeys orders from standard input instead of testing. No flag and no TestMain is needed;
// what that test does before it calls Run is done in each of those processes too.
//
//	func TestFile(t *testing.T) {
//		storagetest.Run(t, storagetest.Backend{
//			New:  func(t testing.TB) string { return t.TempDir() },
//			Open: func(root string, _ func() time.Time) (certmagic.Storage, error) { return &storage.File{Root: root}, nil },
//		})
//	}
package storagetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
)

// Backend is a kind of storage.
type Backend struct {
	// New prepares a storage with nothing in it and returns its address; t.Cleanup takes it away.
	// It is called in the test's own process only, so a database server is started here.
	New func(t testing.TB) (address string)
	// Open opens the storage at an address, in any process, as often as it is called. What it
	// returns is closed if it is an io.Closer. now is the clock, for a backend that reads one.
	Open func(address string, now func() time.Time) (certmagic.Storage, error)
	// Lease is how long a lock outlives a holder that was killed, or that stands still. Zero
	// says that the death of a holder frees its lock at once, and that standing still does not.
	Lease time.Duration
}

// The longest that anything takes which does not wait for a lease.
const patience = 20 * time.Second

// Run tests the backend.
func Run(t *testing.T, b Backend) {
	if address := os.Getenv(childEnv); address != "" {
		os.Exit(b.obey(address, os.Stdin, os.Stdout))
	}
	s := &suite{Backend: b, test: t.Name()}
	for _, part := range []struct {
		name string
		test func(*suite, *testing.T)
	}{
		{"values", (*suite).values},
		{"keys", (*suite).keys},
		{"missing", (*suite).missing},
		{"list", (*suite).list},
		{"similar prefixes", (*suite).similarPrefixes},
		{"delete", (*suite).delete},
		{"stat", (*suite).stat},
		{"refused keys", (*suite).refusedKeys},
		{"cancelled", (*suite).cancelled},
		{"concurrent", (*suite).concurrent},
		{"deleted meanwhile", (*suite).deletedMeanwhile},
		{"killed in store", (*suite).killedInStore},
		{"lock excludes", (*suite).lockExcludes},
		{"lock names", (*suite).lockNames},
		{"lock waits", (*suite).lockWaits},
		{"unlock by another", (*suite).unlockByAnother},
		{"goroutines race", (*suite).goroutinesRace},
		{"processes race", (*suite).processesRace},
		{"clocks apart", (*suite).clocksApart},
		{"holder outlives lease", (*suite).holderOutlivesLease},
		{"holder killed", (*suite).holderKilled},
		{"holder stopped", (*suite).holderStopped},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(s, t) })
	}
}

type suite struct {
	Backend
	test string // the name of the test that called Run
}

func (s *suite) open(t testing.TB, address string) certmagic.Storage {
	t.Helper()
	return s.openAt(t, address, time.Now)
}

func (s *suite) openAt(t testing.TB, address string, now func() time.Time) certmagic.Storage {
	t.Helper()
	st, err := s.Open(address, now)
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := st.(io.Closer); ok {
		t.Cleanup(func() { c.Close() })
	}
	return st
}

func (s *suite) fresh(t testing.TB) certmagic.Storage {
	t.Helper()
	return s.open(t, s.New(t))
}

// limited returns a context with a deadline that only a test that fails reaches.
func limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func store(t testing.TB, st certmagic.Storage, key string, value []byte) {
	t.Helper()
	if err := st.Store(limited(t), key, value); err != nil {
		t.Fatal(err)
	}
}

func wantValue(t testing.TB, st certmagic.Storage, key string, want []byte) {
	t.Helper()
	got, err := st.Load(limited(t), key)
	if err != nil {
		t.Error(err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("%s: loaded %s, want %s", key, brief(got), brief(want))
	}
}

func wantMissing(t testing.TB, st certmagic.Storage, key string) {
	t.Helper()
	ctx := limited(t)
	if v, err := st.Load(ctx, key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load %s: %s, %v, want fs.ErrNotExist", key, brief(v), err)
	}
	if info, err := st.Stat(ctx, key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat %s: %+v, %v, want fs.ErrNotExist", key, info, err)
	}
	if st.Exists(ctx, key) {
		t.Errorf("%s exists", key)
	}
}

func wantList(t testing.TB, st certmagic.Storage, prefix string, recursive bool, want ...string) {
	t.Helper()
	got, err := st.List(limited(t), prefix, recursive)
	if err != nil {
		t.Error(err)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("list %q, recursive %v:\n got %q\nwant %q", prefix, recursive, got, want)
	}
}

// uniform makes values of which no part of one can be taken for another.
func uniform(letter byte, size int) []byte { return bytes.Repeat([]byte{letter}, size) }

func brief(b []byte) string {
	if len(b) > 20 {
		return string(b[:20]) + "…"
	}
	return string(b)
}
