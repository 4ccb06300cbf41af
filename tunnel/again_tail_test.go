package tunnel_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// What a slow client has still to get of a tunnel comes, also when the edge waits no longer for the next one.
func TestEndOfTheWaitCutsNoTail(t *testing.T) {
	tunneltest.NoLeaks(t)
	l := tunneltest.Listen(t)
	answer := tunneltest.Bytes(100<<10, 2)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(io.Discard, c)
		c.Write(answer)
	}()
	until, replace := context.WithCancel(context.Background())
	defer replace()
	over := make(chan struct{})
	edge := serveForwarder(t, &tunnel.Forwarder{Accept: tunnel.Transport{edgeLayer}, Dial: dialTCP(l.Addr().String()), Until: until, Drain: -1,
		Again: func(_, _ *tunnel.Session) bool { close(over); return true }})
	bare, err := net.Dial("tcp", edge)
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	bare.(*net.TCPConn).SetReadBuffer(4 << 10)
	bare.SetDeadline(time.Now().Add(20 * time.Second))
	c, err := (&tunnel.WebSocket{Host: edgeLayer.Host, Path: edgeLayer.Path, Reuse: true}).Client(t.Context(), bare.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	<-over
	replace() // as a reload does
	ping := ws.MustCompileFrame(ws.MaskFrame(ws.NewPingFrame(nil)))
	var got []byte
	for buf := make([]byte, 2<<10); err == nil; {
		var n int
		n, err = c.Read(buf)
		got = append(got, buf[:n]...)
		bare.Write(ping) // what a slow one says now and then
	}
	if string(got) != string(answer) || err != io.EOF {
		t.Errorf("got %d bytes of %d, %v", len(got), len(answer), err)
	}
}
