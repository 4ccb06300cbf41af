package tunnel

import (
	"net"
	"syscall"
	"time"
)

// Health is what the system knows of the peer of a connection.
type Health struct {
	// Known tells whether it knows anything.
	Known bool
	// InFlight counts the segments that were sent and that the peer's kernel has not acknowledged. What waits here
	// because the peer takes nothing is not among them.
	InFlight uint32
	// Timeouts counts how often in a row an acknowledgement has not come in time.
	Timeouts uint32
	// Probes counts the questions in a row, whether it is there and whether it takes something now, that nothing has
	// come in after.
	Probes uint32
	// Answers grows with all that comes from a peer which hears us: new acknowledgements, new data, answers to
	// questions. It does not grow with what the peer sends again because it does not hear us.
	Answers uint64
	// Retransmitted counts the segments that were sent again.
	Retransmitted uint32
	// RoundTrip is how long an acknowledgement takes; zero: the system does not tell.
	RoundTrip time.Duration
}

// HealthOf asks the system about the TCP connection below all layers of c. The zero value stands for all that
// it cannot know: elsewhere than on Linux, and of Unix sockets.
func HealthOf(c net.Conn) Health {
	if conn, ok := c.(Conn); ok {
		c = bottom(conn)
	}
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			return healthOf(raw)
		}
	}
	return Health{}
}

// Bottom is the connection below all layers of c: that which was accepted or dialed.
func Bottom(c Conn) net.Conn { return bottom(c) }
