package storage_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"raimon/storage"
	"raimon/storage/storagetest"
)

func TestWatched(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{
		New: func(t testing.TB) string { return t.TempDir() },
		Open: func(root string, _ func() time.Time) (certmagic.Storage, error) {
			return &storage.Watched{Storage: &storage.File{Root: root}, Failed: func(string) {}}, nil
		},
	})
}

// A folder that cannot be one makes everything fail that touches it; what is merely not there does not.
func TestWatchedTellsOfFailures(t *testing.T) {
	folder := t.TempDir()
	broken := filepath.Join(folder, "file")
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var failed []string
	watch := func(root string) *storage.Watched {
		return &storage.Watched{Storage: &storage.File{Root: root}, Failed: func(operation string) {
			mu.Lock()
			defer mu.Unlock()
			failed = append(failed, operation)
		}}
	}
	w := watch(broken)
	if got, want := fmt.Sprint(w), "file:"+broken; got != want {
		t.Errorf("it is called %s, want %s", got, want)
	}
	if err := w.Store(ctx, "a", nil); err == nil {
		t.Error("it stores in a folder that is none")
	}
	if err := w.Lock(ctx, "a"); err == nil {
		t.Error("it locks in a folder that is none")
	}
	if _, err := w.TryLock(ctx, "a"); err == nil {
		t.Error("it locks in a folder that is none")
	}
	if err := w.Unlock(ctx, "not held"); err == nil {
		t.Error("it unlocks what is not locked")
	}
	if want := []string{"store", "lock", "lock", "unlock"}; !slices.Equal(failed, want) {
		t.Errorf("told of %q, want %q", failed, want)
	}
	if err := storage.Check(ctx, w); err == nil {
		t.Error("the check of a broken storage went well")
	}

	failed = nil
	w = watch(filepath.Join(folder, "good"))
	if _, err := w.Load(ctx, "missing"); err == nil {
		t.Error("there is a value")
	}
	if _, err := w.Stat(ctx, "missing"); err == nil {
		t.Error("there is a value")
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := w.Store(cancelled, "a", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("store after the end: %v", err)
	}
	for range 2 {
		if err := storage.Check(ctx, w); err != nil {
			t.Errorf("check: %v", err)
		}
	}
	if len(failed) > 0 {
		t.Errorf("told of %q, where nothing failed", failed)
	}
}
