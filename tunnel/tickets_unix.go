//go:build unix

package tunnel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// ticketFilePrivate says why the file is not ours alone. Whoever reads it can impersonate the server to us
// and, for TLS 1.2, decrypt recorded connections; whoever writes it chooses the keys.
func ticketFilePrivate(info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("mode %04o lets others in", mode)
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !ok || int(owner.Uid) != os.Geteuid() {
		return errors.New("owned by another user")
	}
	return nil
}
