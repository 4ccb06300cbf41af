//go:build unix

package ownership

import (
	"os"
	"path"
	"syscall"
)

// Inherit makes name belong to the owner of its folder, if we are the superuser and the owner is not.
func Inherit(root *os.Root, name string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	folder, err := root.Stat(path.Dir(name))
	if err != nil {
		return err
	}
	stat, ok := folder.Sys().(*syscall.Stat_t)
	if !ok || stat.Uid == 0 {
		return nil
	}
	return root.Lchown(name, int(stat.Uid), int(stat.Gid))
}
