//go:build unix

package sockets

import (
	"io/fs"
	"os"
	"syscall"
)

const errRefused = syscall.ECONNREFUSED

// private gives name, which info describes, the mode.
func private(root *os.Root, name string, info fs.FileInfo, mode fs.FileMode) error {
	if info.Mode().Perm() == mode {
		return nil
	}
	return root.Chmod(name, mode)
}

// ours tells whether what info describes is this user's. The superuser may use the folders of all.
func ours(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return os.Geteuid() == 0 || ok && int(stat.Uid) == os.Geteuid()
}
