package tunnel

import "golang.org/x/sys/unix"

// unsent is how many bytes the peer's kernel has not acknowledged (SIOCOUTQ, tcp(7)).
func (s *socket) unsent() int {
	n := 0
	s.raw.Control(func(fd uintptr) {
		if v, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil {
			n = v
		}
	})
	return n
}
