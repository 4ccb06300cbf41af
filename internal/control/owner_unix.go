//go:build unix

package control

import (
	"io/fs"
	"os"
	"path"
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

// giveToOwner makes name belong to the owner of its folder where the superuser has made it, as storage.File
// does: an edge that is started by root for once does not lock the others out.
func giveToOwner(root *os.Root, name string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	folder, err := root.Stat(path.Dir(name))
	if err != nil {
		return err
	}
	owner, ok := folder.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid == 0 {
		return nil
	}
	return root.Lchown(name, int(owner.Uid), int(owner.Gid))
}
