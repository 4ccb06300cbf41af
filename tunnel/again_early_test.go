package tunnel_test

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// A client that is gone before it has been told that the target is there has said something that the target will never get: to the target
// that is no end.
func TestClientThatIsGoneBeforeOpenIsNoEnd(t *testing.T) {
	for _, tr := range bothKinds(t) {
		t.Run(tr.Name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			address, targets := targetsOf(t)
			gone := make(chan struct{})
			edge := countEdge(t, &tunnel.Forwarder{Accept: tr.Server, Dial: func(ctx context.Context, info *tunnel.Info) (tunnel.Conn, error) {
				c, err := dialTCP(address)(ctx, info)
				<-gone
				return c, err
			}})
			h := byHand(t, tr, edge.address, "end, wait")
			h.say(word("dial"), data("a question"))
			target := <-targets
			h.bare.SetLinger(0)
			h.bare.Close()
			close(gone)
			mustReadTo(t, target, "", func(err error) bool { return errors.Is(err, syscall.ECONNRESET) })
			if err := edge.mustEnd(t); err == nil {
				t.Error("the edge takes that for a good end")
			}
		})
	}
}

// Whatever a client says at the moment of a Ping, and however it leaves, the edge goes on.
func TestClientsThatLeaveAtAPing(t *testing.T) {
	const interval = 2 * time.Millisecond
	tr := bothKinds(t)[0]
	tr.Server[len(tr.Server)-1].(*tunnel.WebSocket).Ping = interval
	edge := countEdge(t, &tunnel.Forwarder{Accept: tr.Server, Dial: dialTCP(tunneltest.Echo(t))})
	go func() {
		for range edge.ended {
		}
	}()
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			for range 60 {
				h := byHand(t, tr, edge.address, "end, wait")
				time.Sleep(interval - time.Duration(20*worker)*time.Microsecond)
				h.Write(wire(ping("x"), closeFrame))
				io.Copy(io.Discard, h)
				h.bare.Close()
			}
		})
	}
	all.Wait()
}
