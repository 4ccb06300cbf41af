//go:build darwin || freebsd

package handover

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const solLocal = 0 // SOL_LOCAL, the level of options of Unix sockets

// peer is the user at the other end of c.
func peer(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var cred *unix.Xucred
		if cred, err = unix.GetsockoptXucred(int(fd), solLocal, unix.LOCAL_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	if controlErr != nil {
		return 0, controlErr
	}
	return uid, os.NewSyscallError("getsockopt", err)
}
