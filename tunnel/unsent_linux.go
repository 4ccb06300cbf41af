package tunnel

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tcpClosed is TCP_CLOSE of the kernel's enum of states.
const tcpClosed = 7

// outq is how many bytes the peer's kernel has not acknowledged (SIOCOUTQ, tcp(7)), the end included; not known of some kinds of
// socket, such as those of MPTCP.
func (s *socket) outq() (n int, known bool) {
	s.raw.Control(func(fd uintptr) {
		v, err := unix.IoctlGetInt(int(fd), unix.SIOCOUTQ)
		n, known = v, err == nil
	})
	if n > 0 && s.isDead() {
		return 0, known // what was lost stays counted for ever
	}
	return n, known
}

// isDead tells whether the connection is over in both directions, by a reset or because both have
// ended. Unix sockets do not tell.
func (s *socket) isDead() bool {
	return s.tcpInfo().State == tcpClosed
}

// lastAck is when the peer's kernel last acknowledged anything, be it that nothing has been taken. Behind a Unix socket
// that is this kernel, at any time.
func (s *socket) lastAck() time.Time {
	return time.Now().Add(-time.Duration(s.tcpInfo().Last_ack_recv) * time.Millisecond)
}

// tcpInfo is TCP_INFO (tcp(7)); all zero of other sockets, and of one that is closed.
func (s *socket) tcpInfo() (info unix.TCPInfo) {
	s.raw.Control(func(fd uintptr) {
		if i, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			info = *i
		}
	})
	return info
}

// holdsBack tells of a peer that takes nothing now, and has answered the last time it was asked.
func (s *socket) holdsBack() bool {
	info := s.tcpInfo()
	return info.State != tcpClosed && info.Unacked == 0 && info.Probes == 0 && s.unsent() > 0
}

func healthOf(raw syscall.RawConn) (h Health) {
	raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || info.State == tcpClosed {
			return
		}
		h = Health{
			Known:         true,
			InFlight:      info.Unacked,
			Timeouts:      uint32(info.Retransmits),
			Probes:        uint32(info.Probes),
			Answers:       uint64(info.Delivered) + info.Bytes_acked + info.Bytes_received + uint64(info.Segs_in-info.Data_segs_in),
			Retransmitted: info.Total_retrans,
			RoundTrip:     time.Duration(info.Rtt) * time.Microsecond,
		}
	})
	return h
}
