package storagetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"raimon/storage"
)

func tryLock(t testing.TB, st certmagic.Storage, name string) bool {
	t.Helper()
	taken, err := st.(certmagic.TryLocker).TryLock(limited(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return taken
}

func lock(t testing.TB, st certmagic.Storage, name string) {
	t.Helper()
	if err := st.Lock(limited(t), name); err != nil {
		t.Fatal(err)
	}
}

func unlock(t testing.TB, st certmagic.Storage, name string) {
	t.Helper()
	if err := st.Unlock(limited(t), name); err != nil {
		t.Error(err)
	}
}

func wantHeld(t testing.TB, st certmagic.Storage, name string) {
	t.Helper()
	if tryLock(t, st, name) {
		t.Errorf("lock %q was granted twice", name)
		unlock(t, st, name)
	}
}

func wantFree(t testing.TB, st certmagic.Storage, name string) {
	t.Helper()
	if !tryLock(t, st, name) {
		t.Errorf("lock %q is not free", name)
		return
	}
	unlock(t, st, name)
}

func wantNotHeld(t testing.TB, verb string, err error) {
	t.Helper()
	if !errors.Is(err, storage.ErrNotHeld) {
		t.Errorf("%s: %v, want storage.ErrNotHeld", verb, err)
	}
}

// staysHeld looks at a lock again and again for as long as d.
func staysHeld(t testing.TB, st certmagic.Storage, name string, d time.Duration) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end) && !t.Failed(); time.Sleep(10 * time.Millisecond) {
		wantHeld(t, st, name)
	}
}

// One lock has one holder, in one process as between any two that have the storage open.
func (s *suite) lockExcludes(t *testing.T) {
	address := s.New(t)
	a, b := s.open(t, address), s.open(t, address)
	for range 3 {
		lock(t, a, "name")
		wantHeld(t, a, "name")
		wantHeld(t, b, "name")
		wantFree(t, b, "other")
		unlock(t, a, "name")
		wantFree(t, b, "name")
	}
	if !tryLock(t, b, "name") {
		t.Fatal("TryLock did not take a free lock")
	}
	wantHeld(t, a, "name")
	unlock(t, b, "name")
}

// Any string is the name of a lock, and different strings are different locks.
func (s *suite) lockNames(t *testing.T) {
	st := s.fresh(t)
	names := []string{
		"issue_cert_*.example.com", "issue_cert_wildcard_.example.com", "register_acme_account_me@example.com",
		"ari_aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE", "ari_aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQye", "storage_clean",
		"", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", `a\b`, "a\x00b", "NUL", "ä", "\xff", "a b",
		strings.Repeat("long", 200), strings.Repeat("long", 200) + "er",
	}
	for _, name := range names {
		lock(t, st, name)
	}
	for _, name := range names {
		wantHeld(t, st, name)
		unlock(t, st, name)
		wantFree(t, st, name)
	}
}

// Lock waits for the holder, but not beyond its context.
func (s *suite) lockWaits(t *testing.T) {
	address := s.New(t)
	a, b := s.open(t, address), s.open(t, address)
	lock(t, a, "name")
	for _, st := range []certmagic.Storage{a, b} {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if err := st.Lock(ctx, "name"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("lock: %v, want context.DeadlineExceeded", err)
		}
		cancel()
		ctx, cancel = context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- st.Lock(ctx, "name") }()
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("lock: %v, want context.Canceled", err)
		}
	}
	granted := make(chan error, 2)
	for _, st := range []certmagic.Storage{a, b} {
		go func() { granted <- errors.Join(st.Lock(limited(t), "name"), st.Unlock(limited(t), "name")) }()
	}
	unlock(t, a, "name")
	for range 2 {
		if err := <-granted; err != nil {
			t.Error(err)
		}
	}
}

// Only the holder frees a lock.
func (s *suite) unlockByAnother(t *testing.T) {
	address := s.New(t)
	a, b := s.open(t, address), s.open(t, address)
	wantNotHeld(t, "unlock of a free lock", a.Unlock(limited(t), "name"))
	lock(t, a, "name")
	wantNotHeld(t, "unlock by another", b.Unlock(limited(t), "name"))
	wantHeld(t, b, "name")
	if r, ok := b.(certmagic.LockLeaseRenewer); ok {
		wantNotHeld(t, "renewal by another", r.RenewLockLease(limited(t), "name", time.Minute))
	}
	if r, ok := a.(certmagic.LockLeaseRenewer); ok {
		if err := r.RenewLockLease(limited(t), "name", time.Minute); err != nil {
			t.Error(err)
		}
	}
	unlock(t, a, "name")
	wantNotHeld(t, "second unlock", a.Unlock(limited(t), "name"))
	wantFree(t, b, "name")
}

func (s *suite) goroutinesRace(t *testing.T) {
	address, file := s.New(t), counter(t)
	shared := s.open(t, address)
	var wg sync.WaitGroup
	for _, st := range []certmagic.Storage{shared, shared, s.open(t, address)} {
		wg.Go(func() {
			for range 50 {
				if err := count(limited(t), st, file); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	wantCount(t, file, 150)
}

func (s *suite) processesRace(t *testing.T) {
	address, file := s.New(t), counter(t)
	a, b := s.start(t, address), s.start(t, address)
	for _, c := range []*child{a, b} { // so that neither is done before the other has started
		c.do(fmt.Sprintf("count %s 1", file))
	}
	order := fmt.Sprintf("count %s 99", file)
	a.send(order)
	b.send(order)
	for _, c := range []*child{a, b} {
		if reply := c.reply(order); reply != "ok" {
			t.Error("child:", reply)
		}
	}
	wantCount(t, file, 200)
}

func counter(t testing.TB) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "counter")
	if strings.ContainsAny(file, " \n") {
		t.Fatalf("%q: the path of the temporary folder has a space in it", file)
	}
	if err := os.WriteFile(file, []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func wantCount(t testing.TB, file string, want int) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != fmt.Sprint(want) {
		t.Errorf("counted to %s, want %d", text, want)
	}
}

// Machines that disagree about the time agree about locks.
func (s *suite) clocksApart(t *testing.T) {
	address := s.New(t)
	fast := s.openAt(t, address, func() time.Time { return time.Now().Add(24 * time.Hour) })
	slow := s.openAt(t, address, func() time.Time { return time.Now().Add(-24 * time.Hour) })
	for _, st := range [][2]certmagic.Storage{{fast, slow}, {slow, fast}} {
		lock(t, st[0], "name")
		staysHeld(t, st[1], "name", 50*time.Millisecond+2*s.Lease)
		unlock(t, st[0], "name")
		wantFree(t, st[1], "name")
	}
}

// A holder that lives keeps its lock without doing anything for it.
func (s *suite) holderOutlivesLease(t *testing.T) {
	if s.Lease == 0 {
		t.Skip("no leases")
	}
	address := s.New(t)
	c := s.start(t, address)
	c.do("lock name")
	staysHeld(t, s.open(t, address), "name", 3*s.Lease)
	c.do("unlock name")
}

// kill -9 frees a lock, at once or when its lease ends.
func (s *suite) holderKilled(t *testing.T) {
	address := s.New(t)
	st := s.open(t, address)
	for range 5 {
		c := s.start(t, address)
		c.do("lock name")
		wantHeld(t, st, "name")
		c.kill()
		// A TryLock, where there are no leases: kill has waited for the end of the process.
		if s.Lease > 0 {
			s.lockWithinLease(t, st, "name")
			unlock(t, st, "name")
		} else {
			wantFree(t, st, "name")
		}
	}
}

func (s *suite) lockWithinLease(t testing.TB, st certmagic.Storage, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*s.Lease+2*time.Second)
	defer cancel()
	if err := st.Lock(ctx, name); err != nil {
		t.Fatal(err)
	}
}

// A holder that stands still loses its lock at the end of the lease and is told when it goes on;
// without leases it keeps it.
func (s *suite) holderStopped(t *testing.T) {
	address := s.New(t)
	st := s.open(t, address)
	c := s.start(t, address)
	c.do("lock name")
	if !c.stop() {
		t.Skip("no SIGSTOP on this system")
	}
	if s.Lease == 0 {
		staysHeld(t, st, "name", time.Second)
		c.goOn()
		c.do("unlock name")
		wantFree(t, st, "name")
		return
	}
	s.lockWithinLease(t, st, "name")
	c.goOn()
	if _, ok := st.(certmagic.LockLeaseRenewer); ok {
		if reply := c.try("renew name"); reply != notHeld {
			t.Errorf("renewal by the former holder: %s, want %s", reply, notHeld)
		}
	}
	if reply := c.try("unlock name"); reply != notHeld {
		t.Errorf("unlock by the former holder: %s, want %s", reply, notHeld)
	}
	wantHeld(t, s.open(t, address), "name")
	unlock(t, st, "name")
}
