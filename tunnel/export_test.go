package tunnel

import "time"

// AwaitDial waits behind c, which WebSocket.Server has returned, as Forwarder does.
func AwaitDial(c Conn) (target string, err error) {
	c.(*frames).expectDial()
	return c.(*frames).awaitDial()
}

// AcceptKey answers a Sec-WebSocket-Key.
func AcceptKey(key string) string { return acceptKey(key) }

// NewEchoOf is NewEcho with other limits.
func NewEchoOf(size int64, life time.Duration) Conn { return newEcho(size, life) }

// IsSettling tells whether the tunnel of s has ended, and nothing can cut it any more.
func (s *Session) IsSettling() bool {
	s.relay.mu.Lock()
	defer s.relay.mu.Unlock()
	return s.relay.settled
}
