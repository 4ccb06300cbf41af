//go:build unix

package control

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
