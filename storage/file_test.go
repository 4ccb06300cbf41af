package storage_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"raimon/storage"
	"raimon/storage/storagetest"
)

func TestFile(t *testing.T) {
	storagetest.Run(t, storagetest.Backend{
		New: func(t testing.TB) string { return t.TempDir() },
		Open: func(root string, _ func() time.Time) (certmagic.Storage, error) {
			return &storage.File{Root: root}, nil
		},
	})
}

var ctx = context.Background()

func TestRootIsCreatedByWritersOnly(t *testing.T) {
	root := filepath.Join(t.TempDir(), "new", "root")
	f := &storage.File{Root: root}
	if _, err := f.Load(ctx, "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load: %v, want fs.ErrNotExist", err)
	}
	if err := f.Delete(ctx, "a"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(root)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading has created the root: %v", err)
	}
	if err := f.Store(ctx, "a", []byte("value")); err != nil {
		t.Error(err)
	}
}

// A storage that is not there because of a mistake must not look like an empty one.
func TestRootIsNoFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file)
	for _, root := range []string{"", file} {
		f := &storage.File{Root: root}
		_, loadErr := f.Load(ctx, "a")
		_, listErr := f.List(ctx, "", true)
		for verb, err := range map[string]error{
			"load": loadErr, "list": listErr, "store": f.Store(ctx, "a", nil), "lock": f.Lock(ctx, "a"), "delete": f.Delete(ctx, "a"),
		} {
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("root %q: %s: %v, want another error", root, verb, err)
			}
		}
	}
}

func TestLeftoversAreRemoved(t *testing.T) {
	root := t.TempDir()
	dead := filepath.Join(root, "a", ".~new-DEAD")
	write(t, dead)
	write(t, filepath.Join(root, "a", ".~gone-DEAD", "b", "key"))
	f := &storage.File{Root: root}
	if err := f.Store(ctx, "a/b", []byte("value")); err != nil {
		t.Fatal(err)
	}
	wantTree(t, root, "a", "a/b")

	write(t, filepath.Join(root, ".~locks", "ari_old-0123456789abcdef"))
	if err := f.Lock(ctx, "name"); err != nil {
		t.Fatal(err)
	}
	if locks := lockFiles(t, root); len(locks) != 1 || !strings.HasPrefix(filepath.Base(locks[0]), "name-") {
		t.Errorf("lock files: %q, want the one that is held", locks)
	}
	if err := f.Unlock(ctx, "name"); err != nil {
		t.Fatal(err)
	}
	wantTree(t, root, ".~locks", "a", "a/b")
}

// Names that begin with .~ are not for others.
func TestReservedNames(t *testing.T) {
	f := &storage.File{Root: t.TempDir()}
	for _, key := range []string{".~locks/name", ".~locks", "a/.~new-x", ".~"} {
		if err := f.Store(ctx, key, nil); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("store %q: %v, want fs.ErrInvalid", key, err)
		}
		if err := f.Delete(ctx, key); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("delete %q: %v, want fs.ErrInvalid", key, err)
		}
	}
}

func TestSymbolicLinksStayInside(t *testing.T) {
	dir := t.TempDir()
	root, secret := filepath.Join(dir, "root"), filepath.Join(dir, "outside", "secret")
	write(t, secret)
	write(t, filepath.Join(root, "inside", "value"))
	for link, to := range map[string]string{
		"absolute": filepath.Dir(secret), "relative": "../outside", "through": "inside/../../outside", "good": "inside",
	} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Skip(err) // Windows grants this to few
		}
	}
	f := &storage.File{Root: root}
	for _, link := range []string{"absolute", "relative", "through"} {
		_, loadErr := f.Load(ctx, link+"/secret")
		_, statErr := f.Stat(ctx, link+"/secret")
		_, listErr := f.List(ctx, link, true)
		for verb, err := range map[string]error{
			"load": loadErr, "stat": statErr, "list": listErr,
			"store": f.Store(ctx, link+"/new", nil), "replace": f.Store(ctx, link+"/secret", nil), "delete": f.Delete(ctx, link+"/secret"),
		} {
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s: %v, want an error", link, verb, err)
			}
		}
		if err := f.Delete(ctx, link); err != nil { // the link, not what it points to
			t.Error(err)
		}
	}
	wantTree(t, filepath.Dir(secret), "secret")
	if got, err := f.Load(ctx, "good/value"); err != nil || string(got) != "value" {
		t.Errorf("a relative link to the inside: %q, %v", got, err)
	}

	// Store replaces a link; it does not write through it.
	if err := os.Symlink(secret, filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	if err := f.Store(ctx, "link", []byte("new")); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(secret); err != nil || string(got) != "value" {
		t.Errorf("outside: %q, %v", got, err)
	}
}

// Someone tidies up and removes the lock files. Who held one is told, and frees nobody else's lock.
func TestLockFileRemoved(t *testing.T) {
	root := t.TempDir()
	a, b := &storage.File{Root: root}, &storage.File{Root: root}
	steal := func() {
		t.Helper()
		if err := a.Lock(ctx, "name"); err != nil {
			t.Fatal(err)
		}
		for _, file := range lockFiles(t, root) {
			if err := os.Remove(file); err != nil {
				t.Skip(err) // a system that does not remove open files
			}
		}
	}

	steal()
	if taken, err := a.TryLock(ctx, "name"); taken || err != nil {
		t.Errorf("granted twice in one process: %v, %v", taken, err)
	}
	if err := a.Unlock(ctx, "name"); !errors.Is(err, storage.ErrNotHeld) {
		t.Errorf("unlock: %v, want ErrNotHeld", err)
	}

	// Another has it: it stays the other's.
	steal()
	if err := b.Lock(ctx, "name"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.RenewLockLease(ctx, "name", time.Minute); !errors.Is(err, storage.ErrNotHeld) {
			t.Errorf("renew: %v, want ErrNotHeld", err)
		}
	}
	if err := a.Unlock(ctx, "name"); !errors.Is(err, storage.ErrNotHeld) {
		t.Errorf("unlock: %v, want ErrNotHeld", err)
	}
	if taken, err := (&storage.File{Root: root}).TryLock(ctx, "name"); taken || err != nil {
		t.Errorf("granted twice: %v, %v", taken, err)
	}
	if err := b.Unlock(ctx, "name"); err != nil {
		t.Error(err)
	}

	// Nobody has it: told once, then it is held again.
	steal()
	if err := a.RenewLockLease(ctx, "name", time.Minute); !errors.Is(err, storage.ErrNotHeld) {
		t.Errorf("renew: %v, want ErrNotHeld", err)
	}
	if err := a.RenewLockLease(ctx, "name", time.Minute); err != nil {
		t.Error(err)
	}
	if taken, err := b.TryLock(ctx, "name"); taken || err != nil {
		t.Errorf("granted twice: %v, %v", taken, err)
	}
	if err := a.Unlock(ctx, "name"); err != nil {
		t.Error(err)
	}
	if taken, err := b.TryLock(ctx, "name"); !taken || err != nil {
		t.Errorf("not free: %v, %v", taken, err)
	}
}

// A lock folder that cannot be made is an error, not a reason to try for ever.
func TestLockFolderCannotBeMade(t *testing.T) {
	root := t.TempDir()
	if err := os.Symlink("nowhere", filepath.Join(root, ".~locks")); err != nil {
		t.Skip(err)
	}
	f := &storage.File{Root: root}
	if err := f.Lock(ctx, "name"); err == nil {
		t.Error("lock: no error")
	}
	if taken, err := f.TryLock(ctx, "name"); taken || err == nil {
		t.Errorf("try lock: %v, %v, want an error", taken, err)
	}
}

// A root that is removed under a holder counts as the removal of its lock file.
func TestRootRemovedUnderALock(t *testing.T) {
	f := &storage.File{Root: filepath.Join(t.TempDir(), "root")}
	for verb, ask := range map[string]func() error{
		"unlock": func() error { return f.Unlock(ctx, "name") },
		"renew":  func() error { return f.RenewLockLease(ctx, "name", time.Minute) },
	} {
		if _, err := f.TryLock(ctx, "name"); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(f.Root); err != nil {
			t.Skip(err) // a system that does not remove open files
		}
		if err := ask(); !errors.Is(err, storage.ErrNotHeld) {
			t.Errorf("%s: %v, want ErrNotHeld", verb, err)
		}
		f.Unlock(ctx, "name")
	}
}

// Who waited in vain learns for whom.
func TestLockErrorNamesTheHolder(t *testing.T) {
	f := &storage.File{Root: t.TempDir()}
	if err := f.Lock(ctx, "name"); err != nil {
		t.Fatal(err)
	}
	defer f.Unlock(ctx, "name")
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	err := f.Lock(short, "name")
	host, _ := os.Hostname()
	if err == nil || !strings.Contains(err.Error(), "held by process ") || !strings.Contains(err.Error(), host) {
		t.Errorf("%v, want the process and the host %s named", err, host)
	}
}

// Whatever the key, nothing happens outside the root.
func FuzzKeyStaysInside(f *testing.F) {
	for _, key := range []string{"a", "a/b", "..", "../x", "a/../../x", "/x", `..\x`, `C:\x`, "C:x", "a\x00", "", ".", "NUL", "a:b", ".~locks/x"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		dir := t.TempDir()
		s := &storage.File{Root: filepath.Join(dir, "root")}
		if err := s.Lock(ctx, key); err != nil {
			t.Errorf("lock %q: %v", key, err)
		} else if err := s.Unlock(ctx, key); err != nil {
			t.Errorf("unlock %q: %v", key, err)
		}
		if err := s.Store(ctx, key, []byte(key)); err == nil {
			if got, err := s.Load(ctx, key); err != nil || string(got) != key {
				t.Errorf("load %q: %q, %v", key, got, err)
			}
			if err := s.Delete(ctx, key); err != nil {
				t.Error(err)
			}
		}
		outside, err := os.ReadDir(dir)
		if err != nil || len(outside) != 1 || outside[0].Name() != "root" {
			t.Errorf("%q: %v, %v, want the root only", key, outside, err)
		}
	})
}

// write makes a file, and its folders, that anybody may read.
func write(t testing.TB, file string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("value"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tree returns the paths of all files and folders below root.
func tree(t testing.TB, root string) (paths []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, _ fs.DirEntry, err error) error {
		if path != "." {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func wantTree(t testing.TB, root string, want ...string) {
	t.Helper()
	if got := tree(t, root); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("files:\n got %q\nwant %q", got, want)
	}
}

func lockFiles(t testing.TB, root string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, ".~locks", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// What is of no use gets out of the way, whatever it is.
func TestSetAside(t *testing.T) {
	f := &storage.File{Root: t.TempDir()}
	if _, err := f.SetAside(t.Context(), "a/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	for _, value := range []string{"one", "two"} {
		if err := f.Store(t.Context(), "a/b", []byte(value)); err != nil {
			t.Fatal(err)
		}
		aside, err := f.SetAside(t.Context(), "a/b")
		if err != nil || aside != "a/b.corrupt" {
			t.Fatalf("set aside as %q, %v", aside, err)
		}
		if got, err := f.Load(t.Context(), aside); err != nil || string(got) != value {
			t.Errorf("aside: %q, %v, want %q", got, err, value)
		}
		if _, err := f.Load(t.Context(), "a/b"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("still there: %v", err)
		}
	}
	// A folder with something in it, and one that was set aside before.
	for range 2 {
		if err := f.Store(t.Context(), "c/d/e", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := f.SetAside(t.Context(), "c/d"); err != nil {
			t.Fatal(err)
		}
	}
	if !f.Exists(t.Context(), "c/d.corrupt/e") || f.Exists(t.Context(), "c/d") {
		t.Error("the folder is not aside")
	}
	if _, err := f.SetAside(t.Context(), "../x"); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("a key outside: %v", err)
	}
}
