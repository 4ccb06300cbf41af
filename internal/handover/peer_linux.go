package handover

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// peer is the user at the other end of c.
func peer(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			uid = int(cred.Uid)
		}
	})
	if controlErr != nil {
		return 0, controlErr
	}
	return uid, os.NewSyscallError("getsockopt", err)
}
