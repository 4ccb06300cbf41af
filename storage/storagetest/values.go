package storagetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	mathrand "math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
)

// A value is what was stored last, of any size and whatever was there before, for everybody.
func (s *suite) values(t *testing.T) {
	address := s.New(t)
	here, elsewhere := s.open(t, address), s.open(t, address)
	for _, size := range []int{0, 10 << 10, 1 << 20, 1, 0} {
		value := make([]byte, size)
		rand.Read(value)
		store(t, here, "a/value", value)
		wantValue(t, here, "a/value", value)
		wantValue(t, elsewhere, "a/value", value)
	}
	store(t, here, "empty", nil)
	wantValue(t, here, "empty", nil)
	if !here.Exists(limited(t), "empty") {
		t.Error("an empty value does not exist")
	}
}

// certmagic's own keys, for names that have what names can have.
func (s *suite) keys(t *testing.T) {
	st := s.fresh(t)
	const ca = "acme-v02.api.letsencrypt.org-directory"
	build := certmagic.StorageKeys
	keys := []string{
		"certificates/acme-v02.api.letsencrypt.org-directory/wildcard_.example.com/wildcard_.example.com.key",
		"acme/" + ca + "/users/default/default.json",
		"acme/" + ca + "/users/me_plus_tls@example.com/me_plus_tls.key",
		"acme/" + ca + "/challenge_tokens/example.com.json",
		"ocsp/example.com-1a2b3c4d",
		"last_clean.json",
		"rw_test_8674665223082153551",
	}
	for _, name := range []string{"*.example.com", "EXAMPLE.org", "2001:db8::1", "192.0.2.1", "xn--bcher-kva.example", ".dot.example", "a b+c.example"} {
		keys = append(keys, build.SiteCert(ca, name), build.SitePrivateKey(ca, name), build.SiteMeta(ca, name))
	}
	keys = append(keys, build.SitePrivateKey(ca, "example.com")+".compromised")
	for _, key := range keys {
		store(t, st, key, []byte(key))
	}
	for _, key := range keys {
		wantValue(t, st, key, []byte(key))
		folder := strings.TrimPrefix(path.Dir(key), ".")
		if listed, err := st.List(limited(t), folder, false); err != nil || !slices.Contains(listed, key) {
			t.Errorf("list %q: %q, %v, want %q in it", folder, listed, err, key)
		}
	}
}

// What is not there is fs.ErrNotExist, except to Delete. Folders have no value, and values nothing below them.
func (s *suite) missing(t *testing.T) {
	st := s.fresh(t)
	check := func(key string) {
		t.Helper()
		wantMissing(t, st, key)
		if keys, err := st.List(limited(t), key, true); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("list %q: %q, %v, want fs.ErrNotExist", key, keys, err)
		}
		if err := st.Delete(limited(t), key); err != nil {
			t.Errorf("delete %s: %v, want no error", key, err)
		}
	}
	check("a")
	check("a/b/c")
	store(t, st, "a/b/c", []byte("value"))
	check("a/x")
	check("a/b/c/d")
	wantValue(t, st, "a/b/c", []byte("value"))
	if v, err := st.Load(limited(t), "a/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load of a folder: %s, %v, want fs.ErrNotExist", brief(v), err)
	}
}

// List returns whole keys, folders too, one level or all.
func (s *suite) list(t *testing.T) {
	st := s.fresh(t)
	for _, key := range []string{"top", "a/1", "a/b/2", "a/b/3", "a/b/c/4", "z/5"} {
		store(t, st, key, []byte(key))
	}
	wantList(t, st, "a", false, "a/1", "a/b")
	wantList(t, st, "a", true, "a/1", "a/b", "a/b/2", "a/b/3", "a/b/c", "a/b/c/4")
	wantList(t, st, "a/b", false, "a/b/2", "a/b/3", "a/b/c")
	wantList(t, st, "a/b/c", true, "a/b/c/4")
	wantList(t, st, "", false, "top", "a", "z")
	wantList(t, st, "", true, "top", "a", "a/1", "a/b", "a/b/2", "a/b/3", "a/b/c", "a/b/c/4", "z", "z/5")

	// Locks are not values.
	if err := st.Lock(limited(t), "name"); err != nil {
		t.Fatal(err)
	}
	defer st.Unlock(limited(t), "name")
	wantList(t, st, "", false, "top", "a", "z")
}

// A prefix ends at a slash, and nothing in it is a wildcard, neither SQL's nor a shell's.
func (s *suite) similarPrefixes(t *testing.T) {
	st := s.fresh(t)
	others := []string{"a/bc/x", "a/b.c/x", "a/b-/x", "a/b_", "a/b%/x", "a/c"}
	for _, key := range append(others, "a/b/x") {
		store(t, st, key, []byte(key))
	}
	wantList(t, st, "a/b", true, "a/b/x")
	for _, prefix := range []string{"a/b", "a/_", "a/%", "a/*", "a/?", "a/[a-z]", "A"} {
		if prefix == "A" && st.Exists(limited(t), prefix) {
			continue // a file system that ignores case
		}
		// Some of these are no file names on Windows.
		if err := st.Delete(limited(t), prefix); err != nil && !errors.Is(err, fs.ErrInvalid) {
			t.Error(err)
		}
	}
	wantMissing(t, st, "a/b/x")
	wantMissing(t, st, "a/b")
	for _, key := range others {
		wantValue(t, st, key, []byte(key))
	}
}

// Delete takes one value, or everything below a prefix, for everybody.
func (s *suite) delete(t *testing.T) {
	address := s.New(t)
	st, elsewhere := s.open(t, address), s.open(t, address)
	for _, key := range []string{"a/1", "a/b/2", "a/b/c/3", "z"} {
		store(t, st, key, []byte(key))
	}
	for _, key := range []string{"a/1", "a"} {
		if err := st.Delete(limited(t), key); err != nil {
			t.Fatal(err)
		}
		wantMissing(t, st, key)
		wantMissing(t, elsewhere, key)
	}
	for _, key := range []string{"a/b", "a/b/2", "a/b/c/3"} {
		wantMissing(t, st, key)
	}
	wantValue(t, st, "z", []byte("z"))
	store(t, st, "a/b/2", []byte("again"))
	wantValue(t, elsewhere, "a/b/2", []byte("again"))
}

func (s *suite) stat(t *testing.T) {
	st := s.fresh(t)
	before := time.Now().Add(-time.Minute) // a server's clock may differ a little
	store(t, st, "a/b/value", uniform('x', 10<<10))
	after := time.Now().Add(time.Minute)

	info, err := st.Stat(limited(t), "a/b/value")
	if err != nil {
		t.Fatal(err)
	}
	if info.Key != "a/b/value" || info.Size != 10<<10 || !info.IsTerminal {
		t.Errorf("value: %+v", info)
	}
	if info.Modified.Before(before) || info.Modified.After(after) {
		t.Errorf("value: modified %v, want between %v and %v", info.Modified, before, after)
	}
	info, err = st.Stat(limited(t), "a/b")
	if err != nil {
		t.Fatal(err)
	}
	if info.Key != "a/b" || info.IsTerminal {
		t.Errorf("folder: %+v", info)
	}
	if !st.Exists(limited(t), "a/b") {
		t.Error("folder does not exist")
	}

	// certmagic takes the account whose folder was modified last.
	store(t, st, "users/first/key", nil)
	store(t, st, "users/second/key", nil)
	first, err1 := st.Stat(limited(t), "users/first")
	second, err2 := st.Stat(limited(t), "users/second")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if second.Modified.IsZero() || second.Modified.Before(first.Modified) {
		t.Errorf("folders: the first was modified %v, the second %v", first.Modified, second.Modified)
	}
}

// Keys that are no clean relative paths are fs.ErrInvalid to all, and change nothing.
func (s *suite) refusedKeys(t *testing.T) {
	st := s.fresh(t)
	store(t, st, "a/b", []byte("value"))
	for _, key := range []string{
		"", ".", "..", "/", "/a", "a/", "a//b", "./a", "a/./b", "a/../b", "../a", "a/../../etc/passwd", "/etc/passwd",
		`a\b`, `..\a`, `C:\a`, "a\x00", "a\x00/../../b", "\xff",
	} {
		ctx := limited(t)
		refused := func(verb string, err error) {
			t.Helper()
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("%s %q: %v, want fs.ErrInvalid", verb, key, err)
			}
		}
		refused("store", st.Store(ctx, key, []byte("evil")))
		refused("delete", st.Delete(ctx, key))
		_, err := st.Load(ctx, key)
		refused("load", err)
		_, err = st.Stat(ctx, key)
		refused("stat", err)
		if st.Exists(ctx, key) {
			t.Errorf("%q exists", key)
		}
		if key != "" { // List takes it for everything
			_, err = st.List(ctx, key, true)
			refused("list", err)
		}
	}
	wantList(t, st, "", true, "a", "a/b")
	wantValue(t, st, "a/b", []byte("value"))
}

// Under a context that has ended nothing happens.
func (s *suite) cancelled(t *testing.T) {
	st := s.fresh(t)
	store(t, st, "a/b", []byte("old"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()

	_, loadErr := st.Load(ctx, "a/b")
	_, statErr := st.Stat(ctx, "a/b")
	_, listErr := st.List(ctx, "a", true)
	taken, tryErr := st.(certmagic.TryLocker).TryLock(ctx, "name")
	if taken {
		t.Error("TryLock took the lock")
	}
	for verb, err := range map[string]error{
		"load": loadErr, "stat": statErr, "list": listErr, "try lock": tryErr,
		"store": st.Store(ctx, "a/b", []byte("new")), "delete": st.Delete(ctx, "a/b"), "lock": st.Lock(ctx, "name"),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", verb, err)
		}
	}
	wantValue(t, st, "a/b", []byte("old"))

	// Unlock frees the lock, or says that it did not and can be called again.
	if err := st.Lock(limited(t), "name"); err != nil {
		t.Fatal(err)
	}
	if err := st.Unlock(ctx, "name"); err != nil {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("unlock: %v, want context.Canceled or nothing", err)
		}
		if err := st.Unlock(limited(t), "name"); err != nil {
			t.Error(err)
		}
	}
	wantFree(t, st, "name")
}

// Whoever reads while others write gets one of the values that were stored, whole.
func (s *suite) concurrent(t *testing.T) {
	address := s.New(t)
	const writers, rounds = 4, 20
	size := func(letter byte) int { return int(letter-'a') * 20_000 }
	store(t, s.open(t, address), "a/b", uniform('b', size('b')))
	var writing, reading sync.WaitGroup
	done := make(chan struct{})
	for i := range writers {
		st, letter := s.open(t, address), byte('a'+i)
		writing.Go(func() {
			for range rounds {
				if err := st.Store(limited(t), "a/b", uniform(letter, size(letter))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 2 {
		st := s.open(t, address)
		reading.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				got, err := st.Load(limited(t), "a/b")
				if err != nil {
					t.Error(err)
					return
				}
				letter := byte('a')
				if len(got) > 0 {
					letter = got[0]
				}
				if !bytes.Equal(got, uniform(letter, size(letter))) {
					t.Errorf("loaded %d bytes %s, which nobody stored", len(got), brief(got))
					return
				}
			}
		})
	}
	writing.Wait()
	close(done)
	reading.Wait()
	wantList(t, s.open(t, address), "a", true, "a/b")
}

// certmagic's cleaner deletes folders in which another process may store at the moment. Either order
// will do; an error will not.
func (s *suite) deletedMeanwhile(t *testing.T) {
	address := s.New(t)
	writer, cleaner := s.open(t, address), s.open(t, address)
	stored := make(chan struct{})
	go func() {
		defer close(stored)
		for range 100 {
			if err := writer.Store(limited(t), "a/b/c", []byte("value")); err != nil {
				t.Error("store:", err)
			}
		}
	}()
	for more := true; more; {
		select {
		case <-stored:
			more = false
		default:
		}
		if err := cleaner.Delete(limited(t), "a"); err != nil {
			t.Error("delete:", err)
		}
		time.Sleep(mathrand.N(5 * time.Millisecond)) // the moment is to be any
	}
	if err := cleaner.Delete(limited(t), "a"); err != nil {
		t.Error("delete:", err)
	}
	wantMissing(t, cleaner, "a")
}

// A writer that is killed leaves the value that was or the one that was to be.
func (s *suite) killedInStore(t *testing.T) {
	address := s.New(t)
	st := s.open(t, address)
	seen := make(map[string]int)
	for range 50 {
		store(t, st, "a/b", oldValue)
		c := s.start(t, address)
		c.do("store a/b")
		time.Sleep(mathrand.N(20 * time.Millisecond)) // not to wait for something: the moment is to be any
		c.kill()
		got, err := st.Load(limited(t), "a/b")
		switch {
		case err != nil:
			t.Error(err)
		case bytes.Equal(got, oldValue):
			seen["old"]++
		case bytes.Equal(got, newValue):
			seen["new"]++
		default:
			t.Errorf("loaded %d bytes %s, want all of the old or of the new value", len(got), brief(got))
		}
		wantList(t, st, "", true, "a", "a/b")
	}
	t.Log("values found:", fmt.Sprint(seen))
}

var (
	oldValue = []byte(strings.Repeat("old\n", 1000))
	newValue = []byte(strings.Repeat("new, and longer\n", 1<<16)) // 1 MiB
)
