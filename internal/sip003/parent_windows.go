package sip003

import (
	"context"
	"errors"
	"fmt"

	"syscall"
)

// WatchParent returns nil when the parent process, whose id os.Getppid told, has ended, and ctx's error when ctx ends first. Another error means
// that the parent cannot be watched.
//
// Windows never changes the parent's id, even where another process has taken it over; that one is younger than us.
func WatchParent(ctx context.Context, process int) error {
	const (
		processQueryLimitedInformation = 0x1000
		errorInvalidParameter          = syscall.Errno(87) // no process has that id
	)
	parent, err := syscall.OpenProcess(syscall.SYNCHRONIZE|processQueryLimitedInformation, false, uint32(process))
	if errors.Is(err, errorInvalidParameter) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open parent process: %w", err)
	}
	defer syscall.CloseHandle(parent)

	self, err := syscall.GetCurrentProcess()
	if err != nil {
		return fmt.Errorf("open own process: %w", err)
	}
	born, err := creationTime(self)
	if err != nil {
		return fmt.Errorf("own creation time: %w", err)
	}
	parentBorn, err := creationTime(parent)
	if err != nil {
		return fmt.Errorf("creation time of parent process: %w", err)
	}
	if parentBorn > born {
		return nil
	}

	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		event, err := syscall.WaitForSingleObject(parent, 1000) // ms; the longest that the end of ctx has to wait
		if err != nil {
			return fmt.Errorf("wait for parent process: %w", err)
		}
		if event == syscall.WAIT_OBJECT_0 {
			return nil
		}
	}
}

// creationTime is in nanoseconds since 1970.
func creationTime(process syscall.Handle) (int64, error) {
	var created, exited, kernel, user syscall.Filetime
	if err := syscall.GetProcessTimes(process, &created, &exited, &kernel, &user); err != nil {
		return 0, err
	}
	return created.Nanoseconds(), nil
}
