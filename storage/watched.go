package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/caddyserver/certmagic"
)

// Storage is what every backend is.
type Storage interface {
	certmagic.Storage
	certmagic.TryLocker
	certmagic.LockLeaseRenewer
	// SetAside moves what is of no use out of the way, and tells where to.
	SetAside(ctx context.Context, key string) (aside string, err error)
}

// Watched is a storage of which somebody is told what goes wrong.
type Watched struct {
	Storage
	// Failed is told the operation: load, store, delete, list, stat, lock or unlock. That there is no such
	// value is no failure, and neither is that nobody waits for an answer any more. It must not block.
	Failed func(operation string)
}

// String names the storage behind it.
func (w *Watched) String() string { return fmt.Sprint(w.Storage) }

func (w *Watched) note(operation string, err error) {
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, context.Canceled) {
		w.Failed(operation)
	}
}

// Store implements certmagic.Storage.
func (w *Watched) Store(ctx context.Context, key string, value []byte) error {
	err := w.Storage.Store(ctx, key, value)
	w.note("store", err)
	return err
}

// Load implements certmagic.Storage.
func (w *Watched) Load(ctx context.Context, key string) ([]byte, error) {
	value, err := w.Storage.Load(ctx, key)
	w.note("load", err)
	return value, err
}

// Delete implements certmagic.Storage.
func (w *Watched) Delete(ctx context.Context, key string) error {
	err := w.Storage.Delete(ctx, key)
	w.note("delete", err)
	return err
}

// List implements certmagic.Storage.
func (w *Watched) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	keys, err := w.Storage.List(ctx, prefix, recursive)
	w.note("list", err)
	return keys, err
}

// Stat implements certmagic.Storage.
func (w *Watched) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	info, err := w.Storage.Stat(ctx, key)
	w.note("stat", err)
	return info, err
}

// Lock implements certmagic.Locker. That somebody else has the lock for longer than ctx lasts is no failure.
func (w *Watched) Lock(ctx context.Context, name string) error {
	err := w.Storage.Lock(ctx, name)
	if ctx.Err() == nil {
		w.note("lock", err)
	}
	return err
}

// TryLock implements certmagic.TryLocker.
func (w *Watched) TryLock(ctx context.Context, name string) (bool, error) {
	locked, err := w.Storage.TryLock(ctx, name)
	w.note("lock", err)
	return locked, err
}

// RenewLockLease implements certmagic.LockLeaseRenewer.
func (w *Watched) RenewLockLease(ctx context.Context, name string, lease time.Duration) error {
	err := w.Storage.RenewLockLease(ctx, name, lease)
	w.note("lock", err)
	return err
}

// Unlock implements certmagic.Locker.
func (w *Watched) Unlock(ctx context.Context, name string) error {
	err := w.Storage.Unlock(ctx, name)
	w.note("unlock", err)
	return err
}

// SetAside implements Storage.
func (w *Watched) SetAside(ctx context.Context, key string) (string, error) {
	aside, err := w.Storage.SetAside(ctx, key)
	w.note("store", err)
	return aside, err
}

const checkedKey = "check/written"

// Check stores a small value and loads it again. It stays there, the same for all processes, so that they
// can check at the same time. The error is what went wrong.
func Check(ctx context.Context, s certmagic.Storage) error {
	want := []byte("This was written to see whether it can be.\n")
	if err := s.Store(ctx, checkedKey, want); err != nil {
		return err
	}
	got, err := s.Load(ctx, checkedKey)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("load %s: another value than was stored", checkedKey)
	}
	return nil
}
