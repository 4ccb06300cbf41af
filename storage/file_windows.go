package storage

import (
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

// lockFile locks file for itself alone, or returns errLocked. The lock ends when file is closed or
// its process dies.
func lockFile(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var lockErr error
	err = raw.Control(func(fd uintptr) {
		// Locks bind reads and writes here, so lock a byte that no file has: people can
		// read who the owner is.
		where := &windows.Overlapped{Offset: 0xffffffff, OffsetHigh: 0x7fffffff}
		lockErr = windows.LockFileEx(windows.Handle(fd),
			windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, where)
	})
	if err != nil {
		return err
	}
	if lockErr == windows.ERROR_LOCK_VIOLATION || lockErr == windows.ERROR_IO_PENDING {
		return errLocked
	}
	return os.NewSyscallError("LockFileEx", lockErr)
}

// NTFS keeps a journal of names; there is no way to wait for it.
func syncFolder(*os.Root, string) error { return nil }

func closeToOthers(*os.Root, string, fs.FileInfo) {}
