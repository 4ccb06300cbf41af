package sandbox

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// The first version with which files can be moved between the folders of the storage.
const minABI = 2

// Rights in Landlock's words.
const (
	readFile  = ll.AccessFSReadFile
	writeFile = ll.AccessFSWriteFile | ll.AccessFSTruncate
	runFile   = ll.AccessFSExecute

	readFolder  = readFile | ll.AccessFSReadDir
	writeFolder = writeFile | ll.AccessFSRemoveDir | ll.AccessFSRemoveFile | ll.AccessFSMakeDir | ll.AccessFSMakeReg |
		ll.AccessFSMakeSock | ll.AccessFSMakeFifo | ll.AccessFSMakeSym | ll.AccessFSRefer
)

// Restrict leaves this process, with all of its threads, nothing but paths and what every process needs of the system.
// It cannot be undone. Where the kernel does not know how, State says so and there is no error.
func Restrict(paths Paths) (*Sandbox, error) {
	abi, err := ll.LandlockGetABIVersion()
	switch {
	case errors.Is(err, unix.ENOSYS):
		return &Sandbox{State: "off: this kernel has no landlock"}, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return &Sandbox{State: "off: landlock is disabled at boot"}, nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return &Sandbox{State: "off: a filter of system calls, perhaps a container's, forbids landlock"}, nil
	case err != nil:
		return nil, fmt.Errorf("sandbox: version of landlock: %w", err)
	case abi < minABI:
		return &Sandbox{State: fmt.Sprintf("off: this kernel has landlock abi %d, and %d is needed", abi, minABI)}, nil
	}
	for _, path := range slices.Concat(paths.Write, paths.Run) {
		if !make(reach).add(path, read) {
			return nil, &Error{Path: path}
		}
	}
	s := &Sandbox{State: fmt.Sprintf("landlock abi %d", abi), reach: newReach(paths)}
	rules, err := s.reach.rules()
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	// The seventh version is the last that leaves connections to Unix sockets alone.
	if err := landlock.V7.BestEffort().RestrictPaths(rules...); err != nil {
		return nil, fmt.Errorf("sandbox: landlock: %w", err)
	}
	return s, nil
}

func (r reach) rules() (rules []landlock.Rule, err error) {
	for path, right := range r {
		info, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // a device that this system does not have
		}
		if err != nil {
			return nil, err
		}
		rules = append(rules, landlock.PathAccess(right.access(info.IsDir()), path).IgnoreIfMissing())
	}
	return rules, nil
}

func (r right) access(folder bool) (a landlock.AccessFSSet) {
	for _, w := range []struct {
		right        right
		file, folder landlock.AccessFSSet
	}{{read, readFile, readFolder}, {write, writeFile, writeFolder}, {run, runFile, runFile}} {
		switch {
		case r&w.right == 0:
		case folder:
			a |= w.folder
		default:
			a |= w.file
		}
	}
	return a
}

// Error is a path that cannot be kept within reach, because there is nothing.
type Error struct{ Path string }

func (e *Error) Error() string {
	return fmt.Sprintf("sandbox: %s: %v", e.Path, os.ErrNotExist)
}

// Unwrap makes it match fs.ErrNotExist.
func (e *Error) Unwrap() error { return os.ErrNotExist }

// Hint says what to do.
func (e *Error) Hint() string { return "make the folder that it is to be in, which cannot be / itself" }
