package client

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// hurriedPause is the longest pause between two retransmissions of a connection in a hurry.
	hurriedPause = 2 * time.Second
	// usualPause is the kernel's own (tcp(7), tcp_rto_max_ms).
	usualPause = 2 * time.Minute
	// hurriedFor is how long it goes on without an answer: what fifteen retransmissions of the usual kind take.
	hurriedFor = 15 * time.Minute
)

// hurry lets the kernel send what is not acknowledged again every few seconds, or as usual, where the pauses grow up to
// two minutes: the network may have come back meanwhile. Kernels before 6.15 know no such pauses.
func hurry(c net.Conn, on bool) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	pause, limit := usualPause, time.Duration(0)
	if on {
		pause, limit = hurriedPause, hurriedFor
	}
	// Best effort, in this order: with short pauses alone the connection would be given up in half a minute.
	raw.Control(func(fd uintptr) {
		set := func(option int, value time.Duration) error {
			return unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, option, int(value.Milliseconds()))
		}
		if !on {
			set(unix.TCP_RTO_MAX_MS, pause)
		}
		if set(unix.TCP_USER_TIMEOUT, limit) == nil && on && set(unix.TCP_RTO_MAX_MS, pause) != nil {
			set(unix.TCP_USER_TIMEOUT, 0)
		}
	})
}
