package storagetest_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"raimon/storage"
	"raimon/storage/storagetest"
)

const lease = 300 * time.Millisecond

// The suite's demands on leases can be met: a backend whose locks are kept by a server passes.
func TestLeased(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{Lease: lease, New: newServer, Open: openLeased})
}

// brokenEnv says that TestBroken is to run, and to fail.
const brokenEnv = "RAIMON_STORAGETEST_BROKEN"

func TestBroken(t *testing.T) {
	if os.Getenv(brokenEnv) == "" {
		t.Skip("for TestSuiteFindsFaults")
	}
	for name, broken := range brokenBackends {
		t.Run(name, func(t *testing.T) { storagetest.Run(t, broken.Backend) })
	}
}

// Each promise that is broken is found by the part of the suite that is there for it.
func TestSuiteFindsFaults(t *testing.T) {
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, broken := range brokenBackends {
		t.Run(name, func(t *testing.T) {
			part := fmt.Sprintf("TestBroken/%s/%s", name, broken.part)
			cmd := exec.Command(binary, "-test.v", "-test.run=^"+strings.ReplaceAll(part, "/", "$/^")+"$")
			cmd.Env = append(os.Environ(), brokenEnv+"=1")
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: "+part+" ") {
				t.Errorf("%s did not fail: %v\n%s", part, err, out)
			}
		})
	}
}

var brokenBackends = map[string]struct {
	part string
	storagetest.Backend
}{
	"written_in_place":  {"killed_in_store", files(func(f *storage.File) certmagic.Storage { return inPlace{f} })},
	"no_context":        {"cancelled", files(func(f *storage.File) certmagic.Storage { return deaf{f} })},
	"loose_prefix":      {"similar_prefixes", files(func(f *storage.File) certmagic.Storage { return loosePrefix{f} })},
	"lock_of_process":   {"processes_race", files(func(f *storage.File) certmagic.Storage { return &mutexes{File: f} })},
	"unlock_by_anybody": {"unlock_by_another", files(func(f *storage.File) certmagic.Storage { return unlocker{f} })},
	"lock_outlives":     {"holder_killed", storagetest.Backend{New: newServer, Open: openLeased}},
	"lease_not_renewed": {"holder_outlives_lease", storagetest.Backend{Lease: lease, New: newServer,
		Open: func(address string, now func() time.Time) (certmagic.Storage, error) {
			st, err := openLeased(address, now)
			if err == nil {
				st.(*leased).lazy = true
			}
			return st, err
		}}},
	"clocks_trusted": {"clocks_apart", storagetest.Backend{Lease: lease, New: newServer,
		Open: func(address string, now func() time.Time) (certmagic.Storage, error) {
			st, err := openLeased(address, now)
			if err == nil {
				st.(*leased).now = now
			}
			return st, err
		}}},
}

func files(breakIt func(*storage.File) certmagic.Storage) storagetest.Backend {
	return storagetest.Backend{
		New: func(t testing.TB) string { return t.TempDir() },
		Open: func(root string, _ func() time.Time) (certmagic.Storage, error) {
			return breakIt(&storage.File{Root: root}), nil
		},
	}
}

type inPlace struct{ *storage.File }

func (s inPlace) Store(_ context.Context, key string, value []byte) error {
	name := filepath.Join(s.Root, key)
	return errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, value, 0o600))
}

type deaf struct{ *storage.File }

func (s deaf) Store(ctx context.Context, key string, value []byte) error {
	return s.File.Store(context.WithoutCancel(ctx), key, value)
}

type loosePrefix struct{ *storage.File }

func (s loosePrefix) Delete(_ context.Context, key string) error {
	names, err := filepath.Glob(filepath.Join(s.Root, key) + "*")
	for _, name := range names {
		err = errors.Join(err, os.RemoveAll(name))
	}
	return err
}

type mutexes struct {
	*storage.File
	mu sync.Mutex
}

func (s *mutexes) Lock(context.Context, string) error   { s.mu.Lock(); return nil }
func (s *mutexes) Unlock(context.Context, string) error { s.mu.Unlock(); return nil }

type unlocker struct{ *storage.File }

func (s unlocker) Unlock(context.Context, string) error {
	return os.RemoveAll(filepath.Join(s.Root, ".~locks"))
}

// leased keeps values in files and locks at a lockServer.
type leased struct {
	*storage.File
	server *rpc.Client
	now    func() time.Time
	lazy   bool // does not renew

	mu      sync.Mutex
	held    map[string]*hold
	renewal sync.WaitGroup
}

type hold struct {
	id      string
	release chan struct{}
}

func newServer(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	server := rpc.NewServer()
	if err := server.RegisterName("Locks", &lockServer{leases: make(map[string]Lease)}); err != nil {
		t.Fatal(err)
	}
	go server.Accept(l)
	return t.TempDir() + "|" + l.Addr().String()
}

func openLeased(address string, _ func() time.Time) (certmagic.Storage, error) {
	root, server, _ := strings.Cut(address, "|")
	client, err := rpc.Dial("tcp", server)
	if err != nil {
		return nil, err
	}
	return &leased{File: &storage.File{Root: root}, server: client, now: time.Now, held: make(map[string]*hold)}, nil
}

func (s *leased) Close() error {
	s.mu.Lock()
	for name, h := range s.held {
		close(h.release)
		delete(s.held, name)
	}
	s.mu.Unlock()
	s.renewal.Wait()
	return s.server.Close()
}

func (s *leased) call(method, name, id string) (ok bool) {
	now := s.now()
	err := s.server.Call("Locks."+method, Lease{Name: name, ID: id, Now: now, Until: now.Add(lease)}, &ok)
	return ok && err == nil
}

func (s *leased) TryLock(ctx context.Context, name string) (bool, error) {
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	h := &hold{id: rand.Text(), release: make(chan struct{})}
	if !s.call("Take", name, h.id) {
		return false, nil
	}
	s.mu.Lock()
	s.held[name] = h
	s.mu.Unlock()
	s.renewal.Go(func() {
		for tick := time.NewTicker(lease / 3); ; {
			select {
			case <-h.release:
				tick.Stop()
				return
			case <-tick.C:
				if !s.lazy {
					s.call("Renew", name, h.id)
				}
			}
		}
	})
	return true, nil
}

func (s *leased) Lock(ctx context.Context, name string) error {
	for {
		if ok, err := s.TryLock(ctx, name); ok || err != nil {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *leased) RenewLockLease(_ context.Context, name string, _ time.Duration) error {
	s.mu.Lock()
	h := s.held[name]
	s.mu.Unlock()
	if h == nil || !s.call("Renew", name, h.id) {
		return storage.ErrNotHeld
	}
	return nil
}

func (s *leased) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	h := s.held[name]
	delete(s.held, name)
	s.mu.Unlock()
	if h == nil {
		return storage.ErrNotHeld
	}
	close(h.release)
	if !s.call("Free", name, h.id) {
		return storage.ErrNotHeld
	}
	return nil
}

// lockServer goes by the clocks of its clients, which is a fault unless they have one clock.
type lockServer struct {
	mu     sync.Mutex
	leases map[string]Lease
}

// Lease is exported for net/rpc.
type Lease struct {
	Name, ID   string
	Now, Until time.Time
}

func (s *lockServer) Take(want Lease, ok *bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *ok = want.Now.After(s.leases[want.Name].Until); *ok {
		s.leases[want.Name] = want
	}
	return nil
}

func (s *lockServer) Renew(want Lease, ok *bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *ok = s.leases[want.Name].ID == want.ID; *ok {
		s.leases[want.Name] = want
	}
	return nil
}

func (s *lockServer) Free(want Lease, ok *bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *ok = s.leases[want.Name].ID == want.ID; *ok {
		delete(s.leases, want.Name)
	}
	return nil
}
