package tunnel

import (
	"net"
	"time"
)

// Health is what the system knows of the peer of a connection.
type Health struct {
	// Unacknowledged is how many bytes the peer's kernel has not acknowledged.
	Unacknowledged int
	// LastAck is when it last acknowledged anything; zero: the system does not tell.
	LastAck time.Time
	// Retransmitted counts the segments that were sent again.
	Retransmitted uint32
	// RoundTrip is how long an acknowledgement takes; zero: the system does not tell.
	RoundTrip time.Duration
}

// HealthOf asks the system about the TCP connection below all layers of c. The zero value stands for all that
// it cannot know: elsewhere than on Linux, and of Unix sockets.
func HealthOf(c net.Conn) Health {
	conn, ok := c.(Conn)
	if !ok {
		return Health{}
	}
	conn = bottom(conn)
	s, ok := asSocket(conn).(*socket)
	if !ok {
		return Health{}
	}
	return s.health()
}

// Bottom is the connection below all layers of c: that which was accepted or dialed.
func Bottom(c Conn) net.Conn { return bottom(c) }
