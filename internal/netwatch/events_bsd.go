//go:build darwin || freebsd

package netwatch

import (
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// openEvents is a route(4) socket, which says something whenever links, addresses or routes change.
func openEvents() (*os.File, error) {
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(unix.AF_ROUTE, unix.SOCK_RAW, unix.AF_UNSPEC)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, os.NewSyscallError("route socket", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("route socket", err)
	}
	f := os.NewFile(uintptr(fd), "route")
	if err := f.SetReadDeadline(time.Time{}); err != nil { // else nothing could end a Read
		f.Close()
		return nil, err
	}
	return f, nil
}

// worthALook leaves out questions of other programs and their answers, and packets that had no way.
// Each message begins with its length (2 bytes), a version and its type, on all these systems.
func worthALook(message []byte) bool {
	if len(message) < 4 {
		return false
	}
	switch message[3] {
	case unix.RTM_ADD, unix.RTM_DELETE, unix.RTM_CHANGE, unix.RTM_NEWADDR, unix.RTM_DELADDR, unix.RTM_IFINFO:
		return true
	}
	return false
}

// eventsLost tells that there were more events than the socket holds.
func eventsLost(err error) bool { return errors.Is(err, unix.ENOBUFS) }
