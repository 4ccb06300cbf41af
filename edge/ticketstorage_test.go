package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"raimon/storage"
)

// Each edge reads the other's tickets at any moment, and both switch at the same one.
func TestTicketEdgesAgree(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) func() KeyStorage{
		"file": func(t *testing.T) func() KeyStorage {
			root := t.TempDir()
			return func() KeyStorage { return &storage.File{Root: root} }
		},
		"memory": func(t *testing.T) func() KeyStorage {
			keys := newFakeStorage()
			return func() KeyStorage { return keys }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := open(t)
				edges := []*keyRing{newKeyRing(t, start()), newKeyRing(t, start()), newKeyRing(t, start())}
				after(time.Second) // who waits for the lock looks again and again
				began, fronts := time.Now(), make(map[ticketSecret]bool)
				for time.Since(began) < 12*24*time.Hour {
					if len(edges) < 5 { // more join at odd hours
						edges = append(edges, newKeyRing(t, start()))
						synctest.Wait()
					}
					front := edges[0].using()[0]
					fronts[front] = true
					for i, edge := range edges {
						if edge.using()[0] != front {
							t.Fatalf("after %v: edge %d encrypts with another secret than the first", time.Since(began), i)
						}
					}
					after(17*time.Minute + 13*time.Second)
				}
				if len(fronts) != 13 { // the first one began an hour before
					t.Errorf("%d secrets in 12 days, want 13", len(fronts))
				}
				for _, edge := range edges {
					edge.want(t)
				}
			})
		})
	}
}

// All of them find at once that there is nothing, or too little: one makes it.
func TestTicketEdgesRace(t *testing.T) {
	root := t.TempDir()
	for round := range 20 {
		var all sync.WaitGroup
		edges := make([]*TicketKeys, 4)
		for i := range edges {
			edges[i] = &TicketKeys{Storage: &storage.File{Root: root}}
			all.Go(func() {
				if err := edges[i].look(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for i, edge := range edges {
			if len(edge.stored) == 0 || !slices.Equal(edge.stored, edges[0].stored) {
				t.Fatalf("round %d: edge %d has other secrets than the first", round, i)
			}
		}
		old := edges[0].stored
		if round%2 == 0 {
			old = old[:1] // the next ones are due
		} else {
			old = ticketList(0) // none is of use
		}
		if err := edges[0].Storage.Store(t.Context(), ticketKey, old.marshal()); err != nil {
			t.Fatal(err)
		}
	}
}

// fakeStorage is a storage of the bubble, with all that may go wrong.
type fakeStorage struct {
	mu     sync.Mutex
	values map[string][]byte
	lock   chan struct{}

	down     error          // what every call returns
	readOnly error          // what calls that write return
	hangs    bool           // until ctx ends
	deaf     chan struct{}  // hangs until it is closed, whatever ctx does
	stores   map[string]int // by key
}

func newFakeStorage() *fakeStorage {
	return &fakeStorage{values: make(map[string][]byte), stores: make(map[string]int), lock: make(chan struct{}, 1)}
}

// set changes what goes wrong.
func (f *fakeStorage) set(change func(*fakeStorage)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeStorage) wrong(ctx context.Context, writes bool) error {
	f.mu.Lock()
	deaf, hangs, down, readOnly := f.deaf, f.hangs, f.down, f.readOnly
	f.mu.Unlock()
	if deaf != nil {
		<-deaf
	}
	if hangs {
		<-ctx.Done()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if writes && readOnly != nil {
		return readOnly
	}
	return down
}

func (f *fakeStorage) Load(ctx context.Context, key string) ([]byte, error) {
	if err := f.wrong(ctx, false); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	value, ok := f.values[key]
	if !ok {
		return nil, fmt.Errorf("load %q: %w", key, fs.ErrNotExist)
	}
	return slices.Clone(value), nil
}

func (f *fakeStorage) Store(ctx context.Context, key string, value []byte) error {
	if err := f.wrong(ctx, true); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if key == ticketKey && len(f.lock) == 0 {
		return errors.New("stored without the lock")
	}
	f.values[key] = slices.Clone(value)
	f.stores[key]++
	return nil
}

func (f *fakeStorage) SetAside(ctx context.Context, key string) (string, error) {
	if err := f.wrong(ctx, true); err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.values[key+".corrupt"] = f.values[key]
	delete(f.values, key)
	return key + ".corrupt", nil
}

func (f *fakeStorage) Lock(ctx context.Context, _ string) error {
	if err := f.wrong(ctx, true); err != nil {
		return err
	}
	select {
	case f.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *fakeStorage) Unlock(ctx context.Context, _ string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case <-f.lock:
		return nil
	default:
		return storage.ErrNotHeld
	}
}

// A storage that is away at start keeps nobody waiting, is said once, and is taken up when it is back.
func TestTicketStorageAwayAtStart(t *testing.T) {
	away := errors.New("connection refused")
	for name, test := range map[string]struct {
		wrong func(*fakeStorage)
		want  string
	}{
		"fails":        {func(f *fakeStorage) { f.down = away }, "connection refused"},
		"hangs":        {func(f *fakeStorage) { f.hangs = true }, "deadline exceeded"},
		"hears nobody": {func(f *fakeStorage) { f.deaf = make(chan struct{}) }, "no answer within 30s"},
		"locked":       {func(f *fakeStorage) { f.lock <- struct{}{} }, "deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys := newFakeStorage()
				keys.set(test.wrong)
				cert, client := ticketCert(t), &ticketHolder{version: tls.VersionTLS13}
				r := newKeyRing(t, keys)
				config := r.server(t, cert, "a.example", "")
				client.resumes(t, config)
				client.keeps = true
				if !client.resumes(t, config) {
					t.Error("did not resume before the storage answered")
				}

				fronts := map[ticketSecret]bool{}
				for range 3 {
					fronts[r.using()[0]] = true
					after(24 * time.Hour)
				}
				if len(fronts) != 3 || !r.isLocal() {
					t.Errorf("%d secrets in 3 days without a storage, want 3; local: %v", len(fronts), r.isLocal())
				}
				r.want(t, test.want)

				keys.set(func(f *fakeStorage) {
					f.down, f.hangs = nil, false
					if f.deaf != nil {
						close(f.deaf)
						f.deaf = nil
					}
					if len(f.lock) > 0 {
						<-f.lock
					}
				})
				after(maxTicketRetry + ticketStorageTimeout)
				if r.isLocal() {
					t.Error("the storage is back and not used")
				}
				if !client.resumes(t, config) {
					t.Error("a ticket from before the storage was back did not resume")
				}
				r.want(t, "works again")
			})
		})
	}
}

// Pauses between tries grow, and end.
func TestTicketStorageRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := &countingStorage{fakeStorage: newFakeStorage()}
		keys.down = errors.New("connection refused")
		newKeyRing(t, keys)
		after(time.Minute)
		if n := keys.loads.Swap(0); n != 6 { // after 0, 1, 3, 7, 15, 31 s
			t.Errorf("%d tries in the first minute, want 6", n)
		}
		after(24 * time.Hour)
		if n := keys.loads.Swap(0); n < 24*6 || n > 24*6+6 {
			t.Errorf("%d tries in a day, want one in ten minutes", n)
		}
		keys.set(func(f *fakeStorage) { f.down = nil })
		after(maxTicketRetry)
		keys.loads.Store(0)
		after(24 * time.Hour)
		if n := keys.loads.Load(); n != 24+1 { // and one more under the lock
			t.Errorf("%d reads in a day, want 25", n)
		}
	})
}

type countingStorage struct {
	*fakeStorage
	loads atomic.Int32
}

func (c *countingStorage) Load(ctx context.Context, key string) ([]byte, error) {
	c.loads.Add(1)
	return c.fakeStorage.Load(ctx, key)
}

// An edge that may only read uses what others store, and says that it is alone once they are gone.
func TestTicketStorageReadOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newFakeStorage()
		writer := newKeyRing(t, keys)
		synctest.Wait()
		reader := newKeyRing(t, readOnlyStorage{keys})
		for range 5 {
			after(24*time.Hour + time.Minute)
			if reader.using()[0] != writer.using()[0] {
				t.Error("the reader has other secrets")
			}
		}
		if reader.isLocal() {
			t.Error("the reader does not use what is stored")
		}
		reader.take() // at the moment when a secret is due, it may look before the writer does

		t.Log("the writer is gone")
		writer.stop()
		after(4 * 24 * time.Hour)
		if !reader.isLocal() {
			t.Error("old secrets still encrypt")
		}
		reader.want(t, "permission denied")
	})
}

// What is there is no file, or none that may be read.
func TestTicketFileOfNoUse(t *testing.T) {
	for name, spoil := range map[string]func(file string) error{
		"folder":     func(file string) error { return os.MkdirAll(filepath.Join(file, "in it"), 0o700) },
		"unreadable": func(file string) error { return os.WriteFile(file, nil, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			if name == "unreadable" && os.Getuid() <= 0 {
				t.Skip("root reads everything, and Windows has no such mode")
			}
			synctest.Test(t, func(t *testing.T) {
				root := t.TempDir()
				if err := spoil(filepath.Join(root, ticketKey)); err != nil {
					t.Fatal(err)
				}
				r := newKeyRing(t, &storage.File{Root: root})
				after(time.Minute)
				r.want(t, `session ticket keys in the storage are damaged, replaced`)
				if r.isLocal() {
					t.Error("no stored secrets")
				}
				if _, err := os.Stat(filepath.Join(root, ticketKey+".corrupt")); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

type readOnlyStorage struct{ *fakeStorage }

func (readOnlyStorage) Lock(context.Context, string) error          { return fs.ErrPermission }
func (readOnlyStorage) Store(context.Context, string, []byte) error { return fs.ErrPermission }

// The disk is read-only, or another's.
func TestTicketFileReadOnly(t *testing.T) {
	if os.Getuid() <= 0 {
		t.Skip("root writes everywhere, and Windows has no such mode")
	}
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		if err := os.Chmod(root, 0o500); err != nil {
			t.Fatal(err)
		}
		r := newKeyRing(t, &storage.File{Root: root})
		after(24 * time.Hour)
		r.want(t, "permission denied")
		if !r.isLocal() {
			t.Error("no local secret")
		}
	})
}

// Storage goes away for a while in the middle of it.
func TestTicketStorageAwayLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newFakeStorage()
		cert, client := ticketCert(t), &ticketHolder{version: tls.VersionTLS13}
		a, b := newKeyRing(t, keys), newKeyRing(t, keys)
		onA, onB := a.server(t, cert, "a.example", ""), b.server(t, cert, "a.example", "")
		after(10 * time.Hour)

		keys.set(func(f *fakeStorage) { f.down = errors.New("connection refused") })
		for range 2 {
			after(23 * time.Hour)
			client.resumes(t, onA)
			if !client.resumes(t, onB) {
				t.Error("the edges do not understand each other while the storage is away for two days")
			}
		}
		if a.isLocal() {
			t.Error("no secrets were stored ahead")
		}
		after(48 * time.Hour)
		if !a.isLocal() {
			t.Error("a secret is used for more than its day")
		}
		client.resumes(t, onA)
		client.keeps = true
		keys.set(func(f *fakeStorage) { f.down = nil })
		after(maxTicketRetry)
		if a.isLocal() || a.using()[0] != b.using()[0] {
			t.Error("the edges do not agree though the storage is back")
		}
		if !client.resumes(t, onA) {
			t.Error("a ticket from the time without storage did not resume")
		}
		for _, r := range []*keyRing{a, b} {
			r.want(t, "connection refused", "works again")
		}
	})
}

// However long the storage is away, what is too old goes.
func TestTicketSecretsEndWithoutStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newFakeStorage()
		r := newKeyRing(t, keys)
		synctest.Wait()
		first := r.using()[0]
		keys.set(func(f *fakeStorage) { f.down = errors.New("connection refused") })
		after(time.Until(first.expiry()) - time.Second)
		if !slices.Contains(r.using(), first) {
			t.Error("a secret has gone before its last ticket")
		}
		after(time.Second)
		if slices.Contains(r.using(), first) {
			t.Error("a secret is still in use after its last ticket")
		}
	})
}

func TestTicketValueDamaged(t *testing.T) {
	for name, spoil := range map[string]func(value []byte) []byte{
		"a bit":          func(value []byte) []byte { value[40] ^= 1; return value },
		"cut":            func(value []byte) []byte { return value[:len(value)/2] },
		"empty":          func([]byte) []byte { return nil },
		"something else": func([]byte) []byte { return []byte("-----BEGIN CERTIFICATE-----") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				keys := newFakeStorage()
				r := newKeyRing(t, keys)
				synctest.Wait()
				before := r.using()
				value, err := keys.Load(t.Context(), ticketKey)
				if err != nil {
					t.Fatal(err)
				}
				spoilt := spoil(slices.Clone(value))
				damage := func(f *fakeStorage) { f.values[ticketKey] = spoilt }

				keys.set(damage)
				after(ticketReread)
				r.want(t, "damaged")
				if !slices.Equal(r.using(), before) {
					t.Error("a running edge did not put back what it has")
				}
				if got, _ := keys.Load(t.Context(), ticketKey); !slices.Equal(got, value) {
					t.Error("the value is not what it was")
				}
				if got, _ := keys.Load(t.Context(), ticketKey+".corrupt"); !slices.Equal(got, spoilt) {
					t.Errorf("set aside %q, want %q", got, spoilt)
				}
				r.stop()

				keys.set(damage)
				again := newKeyRing(t, keys)
				synctest.Wait()
				again.want(t, `level=ERROR msg="session ticket keys in the storage are damaged, replaced"`)
				if again.isLocal() || again.using()[0] == before[0] {
					t.Error("an edge that starts did not make new secrets")
				}
				after(ticketReread)
				again.want(t)

				keys.set(damage)
				keys.set(func(f *fakeStorage) { f.readOnly = fs.ErrPermission })
				after(ticketReread)
				again.want(t, "permission denied")
				if again.isLocal() {
					t.Error("lost its secrets")
				}
			})
		})
	}
}

// After a downgrade, or while half of the edges are upgraded, the value is not ours to replace.
func TestTicketValueNewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newFakeStorage()
		keys.values[ticketKey] = newerTickets()
		r := newKeyRing(t, keys)
		after(24 * time.Hour)
		r.want(t, "newer version")
		if !r.isLocal() || len(keys.stores) != 0 {
			t.Errorf("stored %v", keys.stores)
		}
	})
}

// Who deletes the value makes all tickets worthless.
func TestTicketValueDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newFakeStorage()
		cert, client := ticketCert(t), &ticketHolder{version: tls.VersionTLS13, keeps: true}
		r := newKeyRing(t, keys)
		config := r.server(t, cert, "a.example", "")
		synctest.Wait()
		client.keeps = false
		client.resumes(t, config)
		client.keeps = true
		if !client.resumes(t, config) {
			t.Error("did not resume")
		}
		keys.set(func(f *fakeStorage) { delete(f.values, ticketKey) })
		after(ticketReread)
		if client.resumes(t, config) {
			t.Error("resumed")
		}
		r.want(t)
	})
}

// Who is stopped while writing does not keep the lock.
func TestTicketLockIsFreed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newFakeStorage()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		k := &TicketKeys{Storage: &cancelingStorage{keys, cancel}}
		if err := k.look(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
		if len(keys.lock) != 0 {
			t.Error("the lock is still held")
		}
	})
}

type cancelingStorage struct {
	*fakeStorage
	cancel func()
}

func (c *cancelingStorage) Store(ctx context.Context, key string, value []byte) error {
	c.cancel()
	return c.fakeStorage.Store(ctx, key, value)
}
