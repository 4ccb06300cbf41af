package netwatch

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// sinceBoot counts on in suspend and does not know what time of day it is (clock_gettime(2)).
func sinceBoot() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Duration(time.Now().UnixNano()) // no kernel since 2.6.39, but perhaps seccomp
	}
	return time.Duration(now.Nano())
}

// beat calls do after each pause until ctx ends. A timer of the runtime stands still in suspend; this
// one is overdue when the machine wakes up, so the first beat comes at once.
func beat(ctx context.Context, pause time.Duration, do func()) {
	f, err := openTimer(pause)
	if err != nil {
		beatOfRuntime(ctx, pause, do)
		return
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })()
	count := make([]byte, 8)
	for {
		_, err := f.Read(count)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			beatOfRuntime(ctx, pause, do)
			return
		}
		do()
	}
}

// openTimer is a timerfd_create(2) that can be read once each pause.
func openTimer(pause time.Duration) (*os.File, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "timer")
	every := unix.NsecToTimespec(pause.Nanoseconds())
	err = unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Interval: every, Value: every}, nil)
	if err == nil {
		err = f.SetReadDeadline(time.Time{}) // else nothing could end a Read
	}
	if err != nil {
		f.Close()
		return nil, os.NewSyscallError("timerfd_settime", err)
	}
	return f, nil
}
