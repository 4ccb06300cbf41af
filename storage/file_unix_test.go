//go:build unix

package storage_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"raimon/storage"
)

func TestPrivateWhateverTheUmask(t *testing.T) {
	for _, mask := range []int{0, 0o022, 0o277, 0o777} {
		dir := t.TempDir()
		old := syscall.Umask(mask)
		f := &storage.File{Root: filepath.Join(dir, "new", "root")}
		storeErr := f.Store(ctx, "a/b/key", []byte("value"))
		lockErr := f.Lock(ctx, "name")
		syscall.Umask(old)
		if storeErr != nil || lockErr != nil {
			t.Errorf("umask %04o: %v, %v", mask, storeErr, lockErr)
			continue
		}
		for _, path := range tree(t, dir) {
			info := lstat(t, filepath.Join(dir, path))
			want := os.FileMode(0o600)
			if info.IsDir() {
				want = 0o700
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("umask %04o: %s has mode %04o, want %04o", mask, path, got, want)
			}
		}
		if err := f.Unlock(ctx, "name"); err != nil {
			t.Error(err)
		}
	}
}

// A backup unpacked under a common umask shows its keys to everybody: not for long.
func TestValuesAreClosedToOthers(t *testing.T) {
	root := t.TempDir()
	if err := os.Chmod(root, 0o750); err != nil {
		t.Fatal(err)
	}
	f := &storage.File{Root: root}
	loaded, stored := filepath.Join(root, "loaded"), filepath.Join(root, "stored")
	write(t, loaded)
	write(t, stored)
	if _, err := f.Load(ctx, "loaded"); err != nil {
		t.Error(err)
	}
	if err := f.Store(ctx, "stored", nil); err != nil {
		t.Error(err)
	}
	for _, file := range []string{loaded, stored} {
		if mode := lstat(t, file).Mode().Perm(); mode != 0o600 {
			t.Errorf("%s has mode %04o, want 0600", file, mode)
		}
	}
	if mode := lstat(t, root).Mode().Perm(); mode != 0o750 {
		t.Errorf("the root has mode %04o, want the 0750 that the administrator gave it", mode)
	}
}

// The file of a writer that lives is left alone.
func TestOthersWriteMeanwhile(t *testing.T) {
	root := t.TempDir()
	name := filepath.Join(root, ".~new-ALIVE")
	write(t, name)
	alive, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	if err := syscall.Flock(int(alive.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	f := &storage.File{Root: root}
	if err := f.Store(ctx, "a", nil); err != nil {
		t.Fatal(err)
	}
	wantTree(t, root, ".~new-ALIVE", "a")
	alive.Close()
	if err := f.Store(ctx, "a", nil); err != nil {
		t.Fatal(err)
	}
	wantTree(t, root, "a")
}

// What a command run as root creates, the edge that runs as another user can use.
func TestRootGivesToTheOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const nobody = 65534
	root := t.TempDir()
	if err := os.Chown(root, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	f := &storage.File{Root: root}
	if err := f.Store(ctx, "a/b/key", []byte("value")); err != nil {
		t.Fatal(err)
	}
	if err := f.Lock(ctx, "name"); err != nil {
		t.Fatal(err)
	}
	for _, path := range tree(t, root) {
		stat := lstat(t, filepath.Join(root, path)).Sys().(*syscall.Stat_t)
		if stat.Uid != nobody || stat.Gid != nobody {
			t.Errorf("%s belongs to %d:%d, want %d:%[4]d", path, stat.Uid, stat.Gid, nobody)
		}
	}
	if err := f.Unlock(ctx, "name"); err != nil {
		t.Error(err)
	}
}

func lstat(t testing.TB, path string) os.FileInfo {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info
}
