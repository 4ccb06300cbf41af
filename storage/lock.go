package storage

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// ErrNotHeld is returned by Unlock and RenewLockLease of every backend if the lock is not, or no
// longer, held here: others may have worked under it meanwhile.
var ErrNotHeld = errors.New("lock is not held")

const (
	lockFolder = reserved + "locks"

	// How long Lock waits between two looks at a lock, from the first to the last.
	minLockWait = 2 * time.Millisecond
	maxLockWait = 500 * time.Millisecond

	// A sweep can have a free lock's file for a moment, so TryLock looks more than once.
	tryLockTries = 3
)

var errLocked = errors.New("locked by another")

// Lock waits until the lock called name is free, and takes it. Any name will do. It is held until
// Unlock, or until this process ends in whatever way: the kernel frees it then (flock(2), LockFileEx).
// A process that is stopped holds on to it; there is no lease. Two File values of one process keep each
// other out like two processes.
//
// If ctx ends first, the error wraps ctx.Err and names the holder.
//
// Locks reach as far as the file system's own: NFS between Linux machines carries them, others may
// not, or only within one machine.
func (f *File) Lock(ctx context.Context, name string) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	waited := false
	for wait := minLockWait; ; wait = min(2*wait, maxLockWait) {
		err := f.tryLock(ctx, name)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errLocked):
			waited = true
		case !waited || ctx.Err() == nil: // else it says below for whom we have waited
			return err
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return fmt.Errorf("lock %q in %s: %w; it is held by %s", name, f.Root, ctx.Err(), f.holder(name))
		}
	}
}

// TryLock takes the lock called name if it is free, and tells whether it was. See Lock.
func (f *File) TryLock(ctx context.Context, name string) (bool, error) {
	for range tryLockTries {
		err := f.tryLock(ctx, name)
		if !errors.Is(err, errLocked) {
			return err == nil, err
		}
		select {
		case <-time.After(minLockWait):
		case <-ctx.Done():
			return false, fmt.Errorf("lock %q in %s: %w", name, f.Root, ctx.Err())
		}
	}
	return false, nil
}

// Unlock frees the lock called name, even if ctx has ended: nothing in it waits. It returns
// ErrNotHeld if the lock was not taken through f, or if its file was removed under us.
func (f *File) Unlock(_ context.Context, name string) error {
	f.mu.Lock()
	file := f.held[name]
	delete(f.held, name)
	f.mu.Unlock()
	if file == nil {
		return fmt.Errorf("unlock %q in %s: %w", name, f.Root, ErrNotHeld)
	}
	defer file.Close() // this frees it
	err := f.at(context.Background(), "unlock", name, lockFileName(name), func(root *os.Root, fileName string) error {
		if !isAt(root, fileName, file) {
			return errLockFileGone // and if there is another in its place, that is not ours to remove
		}
		// Only who holds the lock removes its file. If that fails, an unlocked file stays: the next
		// holder takes it over.
		root.Remove(fileName)
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) { // the whole root is gone
		return fmt.Errorf("unlock %q in %s: %w", name, f.Root, errLockFileGone)
	}
	return err
}

var errLockFileGone = fmt.Errorf("%w: its file was removed or replaced", ErrNotHeld)

// RenewLockLease checks that the lock called name is still held; flock(2) needs no renewal, so
// the duration is not used. It returns ErrNotHeld if the lock's file was removed or replaced. If nobody
// has the lock then, it is held again afterwards, so that a caller that starts its work over, as
// certmagic does for weeks, succeeds.
func (f *File) RenewLockLease(ctx context.Context, name string, _ time.Duration) error {
	f.mu.Lock()
	file := f.held[name]
	f.mu.Unlock()
	return f.at(ctx, "renew lock", name, lockFileName(name), func(root *os.Root, fileName string) error {
		if file == nil {
			return ErrNotHeld
		}
		if isAt(root, fileName, file) {
			return nil
		}
		again, err := takeLock(ctx, root, fileName)
		if err != nil {
			return errLockFileGone
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.held[name] != file { // unlocked meanwhile
			root.Remove(fileName)
			again.Close()
			return errLockFileGone
		}
		f.held[name] = again
		file.Close()
		return errLockFileGone
	})
}

// tryLock takes the lock, or returns errLocked.
func (f *File) tryLock(ctx context.Context, name string) error {
	return f.at(ctx, "lock", name, lockFileName(name), func(root *os.Root, fileName string) error {
		f.mu.Lock()
		held, sweptBefore := f.held[name] != nil, f.swept
		f.swept = true
		f.mu.Unlock()
		if held {
			return errLocked // even if someone removed the file: the holder has yet to be told
		}
		if !sweptBefore {
			sweep(root, lockFolder)
		}
		file, err := takeLock(ctx, root, fileName)
		if err != nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.held[name] != nil { // and since we looked, someone removed the file of who was faster
			root.Remove(fileName)
			file.Close()
			return errLocked
		}
		if f.held == nil {
			f.held = make(map[string]*os.File)
		}
		f.held[name] = file
		return nil
	})
}

// takeLock locks the file and writes the owner into it, or returns errLocked.
func takeLock(ctx context.Context, root *os.Root, fileName string) (*os.File, error) {
	lastErr := errLocked
	for range tries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		file, err := openLockFile(root, fileName)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) {
			lastErr = err
			continue // it, or the folder, came or went between two steps
		}
		if err != nil {
			return nil, err
		}
		if err := lockFile(file); err != nil {
			file.Close()
			return nil, err
		}
		// The holder before us removed the file between our open and our lock: what we have
		// locked has no name, and the next one would lock another.
		if !isAt(root, fileName, file) {
			file.Close()
			lastErr = errLocked
			continue
		}
		writeOwner(file)
		return file, nil
	}
	return nil, lastErr
}

func openLockFile(root *os.Root, fileName string) (*os.File, error) {
	file, err := root.OpenFile(fileName, os.O_RDWR, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	if err := makeFolder(root, path.Dir(fileName)); err != nil {
		return nil, err
	}
	return createFile(root, fileName)
}

// owner is what a lock file says. It is for people, and for the error of who waited in vain; who
// holds the lock is for the kernel to say.
type owner struct {
	PID   int       `json:"pid"`
	Host  string    `json:"host"`
	Since time.Time `json:"since"`
	ID    string    `json:"id"` // tells two holds of one process apart
}

// writeOwner does not report errors: on a full disk the lock is as good without.
func writeOwner(file *os.File) {
	host, _ := os.Hostname()
	text, _ := json.Marshal(owner{os.Getpid(), host, time.Now().UTC().Truncate(time.Millisecond), rand.Text()})
	file.Truncate(0)
	file.WriteAt(append(text, '\n'), 0)
}

func (f *File) holder(name string) string {
	var o owner
	err := f.at(context.Background(), "lock", name, lockFileName(name), func(root *os.Root, fileName string) error {
		file, err := root.Open(fileName)
		if err != nil {
			return err
		}
		defer file.Close()
		return json.NewDecoder(io.LimitReader(file, 4096)).Decode(&o)
	})
	if err != nil {
		return "an unknown process"
	}
	return fmt.Sprintf("process %d on %q since %s", o.PID, o.Host, o.Since.Format(time.RFC3339))
}

// lockFileName returns a name that people recognise, that no other lock has, even where case does
// not count, and that every file system takes.
func lockFileName(name string) string {
	readable := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("._-@", r):
			return r
		}
		return '~'
	}, name)
	sum := sha256.Sum256([]byte(name))
	return path.Join(lockFolder, fmt.Sprintf("%.100s-%x", readable, sum[:8]))
}
