package tunnel

import "golang.org/x/sys/unix"

// unsent is how many bytes the peer's kernel has not acknowledged (SIOCOUTQ, tcp(7)).
func (s *socket) unsent() int {
	if s.isDead() {
		return 0 // what was lost stays counted for ever
	}
	n := 0
	s.raw.Control(func(fd uintptr) {
		if v, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); err == nil {
			n = v
		}
	})
	return n
}

// isDead tells whether the connection is over in both directions, by a reset or because both have
// ended (TCP_INFO, tcp(7)). Unix sockets do not tell.
func (s *socket) isDead() bool {
	const closed = 7 // TCP_CLOSE
	dead := false
	s.raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		dead = err == nil && info.State == closed
	})
	return dead
}
