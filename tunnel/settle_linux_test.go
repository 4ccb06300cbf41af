package tunnel_test

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// While a tunnel that has ended waits for a program that is slow to take the rest, whoever cuts it does not wait for that program.
func TestCutOfTunnelThatSettles(t *testing.T) {
	target := tunneltest.Serve(t, func(c *net.TCPConn) {
		defer c.Close()
		io.Copy(io.Discard, c)
		c.Write(make([]byte, 256<<10))
	})
	opened := make(chan *tunnel.Session, 1)
	address := serveForwarder(t, &tunnel.Forwarder{Dial: dialTCP(target), Drain: -1, Opened: func(s *tunnel.Session) { opened <- s }})
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.(*net.TCPConn).SetReadBuffer(8 << 10)
	c.(*net.TCPConn).CloseWrite()
	s := <-opened
	settling, cut := make(chan struct{}), make(chan struct{})
	go func() {
		for !s.IsSettling() {
			time.Sleep(time.Millisecond)
		}
		close(settling)
		s.Cut(errors.New("test"))
		close(cut)
	}()
	select {
	case <-settling:
	case <-time.After(10 * time.Second):
		t.Fatalf("the tunnel has not ended; %d bytes have been carried", s.Received())
	}
	select {
	case <-cut:
	case <-time.After(10 * time.Second):
		t.Error("cutting waits for the program")
	}
}
