package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"raimon/storage"
)

// From a storage that may only be read, values are read; the error of a Store says where and why.
func TestReadOnlyRoot(t *testing.T) {
	root := t.TempDir()
	f := &storage.File{Root: root}
	if err := f.Store(ctx, "a/key", []byte("value")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"a", "."} {
		if err := os.Chmod(filepath.Join(root, path), 0o500); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(filepath.Join(root, path), 0o700) })
	}
	asNobody(t, root, func() {
		if got, err := f.Load(ctx, "a/key"); err != nil || string(got) != "value" {
			t.Errorf("load: %q, %v", got, err)
		}
		_, tryErr := f.TryLock(ctx, "name")
		for verb, err := range map[string]error{
			"store": f.Store(ctx, "a/key", []byte("new")), "new folder": f.Store(ctx, "b/key", nil),
			"delete": f.Delete(ctx, "a/key"), "lock": f.Lock(ctx, "name"), "try lock": tryErr,
		} {
			if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), root) {
				t.Errorf("%s: %v, want fs.ErrPermission and the root named", verb, err)
			}
		}
	})
}

// asNobody calls do without the powers of root, to whom no folder is read-only: this thread alone
// goes by another user at the file system, and ends with do.
func asNobody(t testing.TB, root string, do func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		do()
		return
	}
	const nobody = 65534
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, nobody, nobody))
	})
	if err == nil {
		err = os.Chmod(filepath.Dir(root), 0o755) // testing made it 0700
	}
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread must not be used again
		if err := unix.Setfsuid(nobody); err != nil {
			t.Error(err)
			return
		}
		do()
	}()
	<-done
}

func TestFullAndReadOnlyDisk(t *testing.T) {
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("mounting a small tmpfs needs root: ", err)
	}
	defer func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	}()
	f := &storage.File{Root: root}
	old := bytes.Repeat([]byte("old\n"), 10<<8)
	if err := f.Store(ctx, "a/key", old); err != nil {
		t.Fatal(err)
	}
	err := f.Store(ctx, "a/key", make([]byte, 1<<20))
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), root) {
		t.Errorf("store: %v, want ENOSPC and the root named", err)
	}
	wantTree(t, root, "a", "a/key")
	for n := 0; f.Store(ctx, fmt.Sprintf("fill/%d", n), make([]byte, 4096)) == nil; n++ {
	}
	if got, err := f.Load(ctx, "a/key"); err != nil || !bytes.Equal(got, old) {
		t.Errorf("load: %d bytes, %v, want the old value", len(got), err)
	}
	if err := f.Lock(ctx, "name"); err != nil {
		t.Error(err)
	} else if err := f.Unlock(ctx, "name"); err != nil {
		t.Error(err)
	}
	if err := f.Delete(ctx, "fill"); err != nil {
		t.Error(err)
	}
	if err := f.Store(ctx, "a/key", []byte("new")); err != nil {
		t.Errorf("after some was deleted: %v", err)
	}

	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Load(ctx, "a/key"); err != nil || string(got) != "new" {
		t.Errorf("read-only: load: %q, %v", got, err)
	}
	for verb, err := range map[string]error{
		"store": f.Store(ctx, "a/key", nil), "delete": f.Delete(ctx, "a/key"), "delete folder": f.Delete(ctx, "a"), "lock": f.Lock(ctx, "name"),
	} {
		if !errors.Is(err, syscall.EROFS) {
			t.Errorf("read-only: %s: %v, want EROFS", verb, err)
		}
	}
	if err := f.Delete(ctx, "missing"); err != nil {
		t.Errorf("read-only: delete of a missing key: %v, want no error", err)
	}
}

func TestNoDescriptorIsLeftOpen(t *testing.T) {
	f := &storage.File{Root: t.TempDir()}
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip(err)
		}
		return len(entries)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	before := descriptors()
	for range 10 {
		f.Store(ctx, "a/b", []byte("value"))
		f.Store(ctx, "a", nil)
		f.Store(ctx, "a/b/c", nil)
		f.Store(cancelled, "a/b", nil)
		f.Load(ctx, "a/b")
		f.Load(ctx, "a")
		f.Load(ctx, "x")
		f.List(ctx, "", true)
		f.Stat(ctx, "a/b/c")
		f.Lock(ctx, "name")
		f.TryLock(ctx, "name")
		f.Lock(cancelled, "name")
		f.RenewLockLease(ctx, "name", 0)
		os.RemoveAll(filepath.Join(f.Root, ".~locks"))
		f.RenewLockLease(ctx, "name", 0)
		f.Unlock(ctx, "name")
		f.Unlock(ctx, "name")
		f.SetAside(ctx, "a/b")
		f.Delete(ctx, "a")
	}
	// What other tests have left to the garbage collector may be closed meanwhile.
	if after := descriptors(); after > before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}
