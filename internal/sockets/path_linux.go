package sockets

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// withPath calls do with a path of the socket name in folder that is short enough, and good until do returns.
func withPath(folder, name string, do func(path string) error) error {
	path := filepath.Join(folder, name)
	if len(path) <= maxPath {
		return do(path)
	}
	dir, err := os.OpenFile(folder, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	short := fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	if _, err := os.Stat(short); err != nil {
		return errTooLong // there is no /proc
	}
	return do(short + "/" + name)
}
