//go:build unix

package storage

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// lockFile locks file for itself alone with flock(2), or returns errLocked. The lock belongs to what
// one open made, so even the same process cannot have it twice; it ends when file is closed or its
// process dies. Children do not inherit it: Go opens everything close-on-exec.
func lockFile(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var lockErr error
	err = raw.Control(func(fd uintptr) {
		for {
			lockErr = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB)
			if lockErr != unix.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	if lockErr == unix.EWOULDBLOCK {
		return errLocked
	}
	return os.NewSyscallError("flock", lockErr)
}

// syncFolder makes the names in a folder outlive a power cut.
func syncFolder(root *os.Root, folder string) error {
	dir, err := root.Open(folder)
	if errors.Is(err, fs.ErrPermission) {
		return nil // a root folder that we may enter but not read
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	err = dir.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		return nil // some network and FUSE file systems have no such thing for folders
	}
	return err
}

// closeToOthers takes a value's mode back to 0600, if it is ours to change: a backup that was
// unpacked or copied under a common umask shows its keys to everybody.
func closeToOthers(root *os.Root, name string, info fs.FileInfo) {
	if info.Mode().Perm()&0o077 != 0 {
		root.Chmod(name, fileMode)
	}
}
