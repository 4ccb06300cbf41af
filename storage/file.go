// Package storage is where certificates, private keys and session-ticket keys live.
//
// What certmagic demands of a storage is only half of what ours promise; package storagetest says the
// rest, and every backend passes it.
package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/caddyserver/certmagic"

	"raimon/internal/ownership"
)

// File keeps each value in a file below Root. It is safe for use by many goroutines, and by many
// processes of one machine: give all of them the same Root.
//
// A value is replaced as a whole and has reached the disk when Store returns. Folders are made with
// mode 0700 and files with 0600, whatever the umask; values that others can read are closed to them
// when they are loaded or stored. Folders that were there before keep the mode they have. What root
// creates belongs to the owner of the folder that it is created in, so that a command run as root
// does not lock the edge out.
//
// Keys are file names below Root: slash-separated, never outside, not even through a symbolic link
// (one that is relative and stays inside is followed). Other keys are refused with fs.ErrInvalid, as
// are names that begin with ".~", which are the storage's own. Where the file system ignores case, as
// on Windows and macOS, keys that differ only in case are one key; certmagic's are all lower case.
//
// Each method gives up between its steps when ctx ends, but a single system call is never
// interrupted: on a disk that hangs, as a network file system does, so does the call.
type File struct {
	// Root is the folder that everything is below. It is created when something is stored or locked.
	Root string

	mu    sync.Mutex
	held  map[string]*os.File // name of a lock to its locked file
	swept bool                // lock files of dead holders were removed
}

var (
	_ certmagic.Storage          = (*File)(nil)
	_ certmagic.TryLocker        = (*File)(nil)
	_ certmagic.LockLeaseRenewer = (*File)(nil)
)

const (
	fileMode   fs.FileMode = 0o600
	folderMode fs.FileMode = 0o700

	// certmagic's keys consist of letters, digits and _ @ . - only, so none of them begins like this.
	reserved   = ".~"
	tempPrefix = reserved + "new-"  // values that are being written
	gonePrefix = reserved + "gone-" // folders that are being deleted

	// Others delete folders, sweep new files and free locks while we are between two steps.
	tries = 20
)

// String names the storage in certmagic's log lines.
func (f *File) String() string { return "file:" + f.Root }

// Store puts value at key. After an error the value is the old one, unless only the last step, the
// folders' way to the disk, went wrong.
func (f *File) Store(ctx context.Context, key string, value []byte) error {
	return f.with(ctx, "store", key, func(root *os.Root, name string) error {
		var err error
		for range tries {
			if err = store(ctx, root, name, value); !errors.Is(err, fs.ErrNotExist) {
				break
			}
		}
		return err
	})
}

// Load returns the value at key. A folder has none: fs.ErrNotExist.
func (f *File) Load(ctx context.Context, key string) (value []byte, err error) {
	err = f.with(ctx, "load", key, func(root *os.Root, name string) error {
		info, err := root.Stat(name)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%v instead of a file: %w", info.Mode(), fs.ErrNotExist)
		}
		closeToOthers(root, name, info)
		value, err = root.ReadFile(name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return value, nil
}

// Delete removes the value at key, or all values below it, at one stroke. It is no error if there
// are none.
func (f *File) Delete(ctx context.Context, key string) error {
	err := f.with(ctx, "delete", key, func(root *os.Root, name string) error {
		if err := remove(root, name); err != nil {
			if _, gone := root.Lstat(name); gone != nil {
				return gone // on a read-only disk, "read-only" comes before "not there"
			}
			return err
		}
		return syncFolder(root, path.Dir(name))
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// SetAside moves what is at key out of the way, and returns the key that it has then: key with
// ".corrupt" behind it, in place of what was set aside there before. It is for what cannot be used, so
// it need not be a value: a file that cannot be read, or a folder, will do. If there is nothing at key
// the error is fs.ErrNotExist.
func (f *File) SetAside(ctx context.Context, key string) (aside string, err error) {
	aside = key + ".corrupt"
	err = f.with(ctx, "set aside", key, func(root *os.Root, name string) error {
		if _, err := root.Lstat(name); err != nil {
			return err
		}
		if err := remove(root, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := root.Rename(name, aside); err != nil {
			return err
		}
		return syncFolder(root, path.Dir(name))
	})
	return aside, err
}

// Exists tells whether key has a value, or is the prefix of keys that may have one. After an error
// of any kind the answer is no.
func (f *File) Exists(ctx context.Context, key string) bool {
	_, err := f.Stat(ctx, key)
	return err == nil
}

// List returns the keys below prefix, values and folders alike: the next level, or all of them if
// recursive is set. An empty prefix stands for the whole storage.
func (f *File) List(ctx context.Context, prefix string, recursive bool) (keys []string, err error) {
	list := func(root *os.Root, folder string) error {
		return fs.WalkDir(root.FS(), folder, func(name string, entry fs.DirEntry, err error) error {
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil && name != folder && errors.Is(err, fs.ErrNotExist):
				return nil // deleted while we were on the way
			case err != nil:
				return err
			case name == folder:
				return nil
			}
			if !strings.HasPrefix(entry.Name(), reserved) {
				keys = append(keys, name)
			} else if entry.IsDir() {
				return fs.SkipDir
			}
			if entry.IsDir() && !recursive {
				return fs.SkipDir
			}
			return nil
		})
	}
	if prefix == "" {
		err = f.at(ctx, "list", "", ".", list)
	} else {
		err = f.with(ctx, "list", prefix, list)
	}
	if err != nil {
		return nil, err
	}
	return keys, nil
}

// Stat describes the value or folder at key. A folder's Modified is when a value directly below it
// was last stored or deleted.
func (f *File) Stat(ctx context.Context, key string) (info certmagic.KeyInfo, err error) {
	err = f.with(ctx, "stat", key, func(root *os.Root, name string) error {
		fi, err := root.Stat(name)
		if err != nil {
			return err
		}
		info = certmagic.KeyInfo{Key: key, Modified: fi.ModTime(), IsTerminal: !fi.IsDir()}
		if info.IsTerminal {
			info.Size = fi.Size()
		}
		return nil
	})
	return info, err
}

// with calls do with the opened root and the name of key's file in it.
func (f *File) with(ctx context.Context, verb, key string, do func(root *os.Root, name string) error) error {
	if err := checkKey(key); err != nil {
		return fmt.Errorf("%s %q: %w", verb, key, err)
	}
	return f.at(ctx, verb, key, key, do)
}

// at calls do with the opened root. What cannot work without a root folder creates it.
func (f *File) at(ctx context.Context, verb, key, name string, do func(root *os.Root, name string) error) error {
	creates := verb == "store" || verb == "lock" || verb == "renew lock"
	err := ctx.Err()
	if err == nil {
		var root *os.Root
		if root, err = f.open(creates); err == nil {
			defer root.Close()
			err = do(root, name)
			if errors.Is(err, syscall.ENOTDIR) && !creates {
				// Below a value there is nothing, as in a storage that has no folders.
				err = fmt.Errorf("%w (%w)", fs.ErrNotExist, err)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("%s %q in %s: %w", verb, key, f.Root, err)
	}
	return nil
}

func (f *File) open(create bool) (*os.Root, error) {
	if f.Root == "" {
		return nil, errors.New("no folder is given")
	}
	root, err := os.OpenRoot(f.Root)
	if !create || !errors.Is(err, fs.ErrNotExist) {
		return root, err
	}
	if err := makeRoot(f.Root); err != nil {
		return nil, err
	}
	return os.OpenRoot(f.Root)
}

// makeRoot creates dir and the folders above it, and sees to it that they outlive a power cut.
func makeRoot(dir string) error {
	dir = filepath.Clean(dir)
	parent := filepath.Dir(dir)
	err := os.Mkdir(dir, folderMode)
	if errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err := makeRoot(parent); err != nil {
			return err
		}
		err = os.Mkdir(dir, folderMode)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, folderMode); err != nil { // the umask may have taken bits away
		return err
	}
	above, err := os.OpenRoot(parent)
	if err != nil {
		return nil // a parent that we may enter but not read: nothing to be done
	}
	defer above.Close()
	return syncFolder(above, ".")
}

// store replaces the file name, or creates it. It returns fs.ErrNotExist if someone removed the
// folder or the new file meanwhile.
func store(ctx context.Context, root *os.Root, name string, value []byte) error {
	folder := path.Dir(name)
	if err := makeFolder(root, folder); err != nil {
		return err
	}
	sweep(root, folder)
	temp, tempName, err := createTemp(root, folder)
	if err != nil {
		return err
	}
	defer temp.Close()
	_, err = temp.Write(value)
	if err == nil {
		err = temp.Sync()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = root.Rename(tempName, name)
	}
	if err != nil {
		root.Remove(tempName)
		return err
	}
	// All of them, not only those made here: whoever made one may not have come to its sync.
	for dir := folder; ; dir = path.Dir(dir) {
		// If one is missing, the value was stored, and then someone deleted it.
		if err := syncFolder(root, dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if dir == "." {
			return nil
		}
	}
}

// remove removes the file or folder name. A folder gets out of the way first: emptied where it is,
// it would be filled again by who stores in it meanwhile.
func remove(root *os.Root, name string) error {
	err := root.Remove(name)
	if !errors.Is(err, fs.ErrExist) { // which is what a folder that is not empty comes to
		return err
	}
	gone := path.Join(path.Dir(name), gonePrefix+rand.Text())
	if err := root.Rename(name, gone); errors.Is(err, fs.ErrNotExist) {
		return err
	} else if err != nil {
		gone = name // Windows does not rename a folder in which a file is open
	}
	for range tries {
		// A writer that was faster than the rename may finish in here.
		if err = root.RemoveAll(gone); !errors.Is(err, fs.ErrExist) {
			break
		}
	}
	return err
}

// createTemp creates a file in folder and locks it, by which sweep knows that its writer lives.
func createTemp(root *os.Root, folder string) (*os.File, string, error) {
	for {
		name := path.Join(folder, tempPrefix+rand.Text())
		temp, err := createFile(root, name)
		if err != nil {
			return nil, "", err
		}
		// A file system without locks loses nothing but the sweep.
		if lockFile(temp) == errLocked {
			temp.Close() // a sweep was faster than we and removes it
			continue
		}
		return temp, name, nil
	}
}

// createFile creates the file name, which must not exist, for writing: private, and with the owner
// of its folder.
func createFile(root *os.Root, name string) (*os.File, error) {
	file, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, err
	}
	if runtime.GOOS != "windows" {
		if err := file.Chmod(fileMode); err != nil { // the umask may have taken bits away
			file.Close()
			return nil, err
		}
	}
	if err := ownership.Inherit(root, name); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// makeFolder creates the folder name and those above it. If there is something else in its place,
// the next step says so.
func makeFolder(root *os.Root, name string) error {
	if name == "." {
		return nil
	}
	err := root.Mkdir(name, folderMode)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeFolder(root, path.Dir(name)); err != nil {
			return err
		}
		err = root.Mkdir(name, folderMode)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := root.Chmod(name, folderMode); err != nil { // the umask may have taken bits away
		return err
	}
	return ownership.Inherit(root, name)
}

// sweep removes what those who were killed have left in folder: files that nobody has locked, of
// writers and of holders, and folders that were to be deleted. What goes wrong is left to the next sweep.
func sweep(root *os.Root, folder string) {
	dir, err := root.Open(folder)
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		switch {
		case strings.HasPrefix(name, gonePrefix):
			root.RemoveAll(path.Join(folder, name))
		case strings.HasPrefix(name, tempPrefix), folder == lockFolder:
			removeUnlocked(root, path.Join(folder, name))
		}
	}
}

func removeUnlocked(root *os.Root, name string) {
	file, err := root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer file.Close()
	if lockFile(file) == nil && isAt(root, name, file) {
		root.Remove(name)
	}
}

// isAt tells whether file is what the name stands for now.
func isAt(root *os.Root, name string, file *os.File) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := root.Lstat(name)
	return err == nil && os.SameFile(opened, named)
}

// checkKey returns fs.ErrInvalid, with the reason, for keys that are not to be files below Root.
func checkKey(key string) error {
	switch {
	case key == "." || !fs.ValidPath(key):
		return fmt.Errorf("not a clean relative path: %w", fs.ErrInvalid)
	case strings.ContainsAny(key, "\\\x00"):
		return fmt.Errorf("backslash or NUL in it: %w", fs.ErrInvalid)
	case !filepath.IsLocal(filepath.FromSlash(key)):
		return fmt.Errorf("not a name for a file here: %w", fs.ErrInvalid)
	}
	for part := range strings.SplitSeq(key, "/") {
		if strings.HasPrefix(part, reserved) {
			return fmt.Errorf("names that begin with %s are the storage's own: %w", reserved, fs.ErrInvalid)
		}
		// "a." and "a " are "a" to Windows, and "a:b" is a stream of "a".
		if runtime.GOOS == "windows" && (strings.ContainsAny(part, `:*?"<>|`) || strings.TrimRight(part, ". ") != part) {
			return fmt.Errorf("not a file name on Windows: %w", fs.ErrInvalid)
		}
	}
	return nil
}
