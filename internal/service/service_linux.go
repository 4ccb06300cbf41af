package service

import (
	"errors"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// monotonic is CLOCK_MONOTONIC, the clock that systemd compares with.
func monotonic() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(now.Nano()), nil
}

func inherited() []*os.File { return activation.Files(true) }

// checkListening finds sockets that nobody could accept connections from.
func checkListening(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var kind, listening int
	controlErr := raw.Control(func(fd uintptr) {
		kind, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
		if err == nil {
			listening, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		}
	})
	switch {
	case controlErr != nil:
		return controlErr
	case errors.Is(err, unix.ENOTSOCK):
		return errors.New("it is no socket")
	case err != nil:
		return os.NewSyscallError("getsockopt", err)
	case kind != unix.SOCK_STREAM || listening == 0:
		return errors.New("it is not a stream socket that listens")
	}
	return nil
}
