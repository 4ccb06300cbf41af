package tunnel

import "time"

// AwaitDial waits behind c, which WebSocket.Server has returned, as Forwarder does.
func AwaitDial(c Conn) (target string, err error) { return c.(*frames).awaitDial() }

// AcceptKey answers a Sec-WebSocket-Key.
func AcceptKey(key string) string { return acceptKey(key) }

// NewEchoOf is NewEcho with other limits.
func NewEchoOf(size int64, life time.Duration) Conn { return newEcho(size, life) }
