//go:build unix && !linux

package tunnel

import "golang.org/x/sys/unix"

func quickRead(fd int, p []byte, _ uint32) (int, error) { return unix.Read(fd, p) }
func quickWrite(fd int, p []byte) (int, error)          { return unix.Write(fd, p) }
