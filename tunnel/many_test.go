package tunnel_test

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// A thousand tunnels at once, each with another size and another way of ending; no byte is lost and
// nothing is left behind.
func TestManyTunnelsAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	many := 1000
	if tunnel.RaceEnabled {
		many = 100
	}
	for _, tr := range tunneltest.Transports(t, tunneltest.NewCA(t)) {
		if strings.HasSuffix(tr.Name, "-fixed") || tr.Name == "wss-standard" {
			continue
		}
		t.Run(tr.Name, func(t *testing.T) {
			tunneltest.Pair(t) // so that the poller's own descriptors exist before they are counted
			tunneltest.NoLeaks(t)
			// The app says first what it wants, so that target and app play the same part.
			target := tunneltest.Serve(t, func(c *net.TCPConn) {
				var head [4]byte
				if _, err := io.ReadFull(c, head[:]); err != nil {
					t.Error("target:", err)
					return
				}
				number := uint64(head[0])<<8 | uint64(head[1])
				if err := partOf(number).target(c); err != nil {
					t.Errorf("target of %d: %v", number, err)
				}
			})
			// Two cores take their time for so many handshakes.
			edge := &tunnel.Forwarder{Accept: tr.Server, Dial: dialTCP(target), Timeout: -1, Drain: -1}
			client := &tunnel.Forwarder{Connect: tr.Client, Dial: dialTCP(serveForwarder(t, edge)), Timeout: -1, Drain: -1}
			app := serveForwarder(t, client)

			var apps sync.WaitGroup
			for number := range uint64(many) {
				apps.Go(func() {
					c, err := net.Dial("tcp", app)
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					c.SetDeadline(time.Now().Add(60 * time.Second))
					if _, err := c.Write([]byte{byte(number >> 8), byte(number), 0, 0}); err != nil {
						t.Error(err)
						return
					}
					if err := partOf(number).app(c.(*net.TCPConn)); err != nil {
						t.Errorf("app of %d: %v", number, err)
					}
				})
			}
			apps.Wait()
		})
	}
}

func dialTCP(addr string) func(context.Context, *tunnel.Info) (tunnel.Conn, error) {
	return func(ctx context.Context, _ *tunnel.Info) (tunnel.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}
}

// part is what one tunnel of many carries, and how it ends.
type part struct {
	request, reply int // bytes
	style          int
}

const (
	together  = iota // both ways at once
	askFirst         // the app ends before the target answers
	replyLast        // the same, and the app lets the reply wait
	speakUp          // the target says all and ends before it reads
	styles
)

func partOf(number uint64) part {
	random := rand.New(rand.NewPCG(number, 1))
	size := func() int { return max(0, random.IntN(220_000)-20_000) } // some are empty
	return part{request: size(), reply: size(), style: int(number % styles)}
}

func (p part) app(c tunnel.Conn) error {
	switch p.style {
	case askFirst, replyLast, speakUp:
		if err := tunneltest.SendRandomly(c, p.request, 1); err != nil {
			return err
		}
		if p.style == replyLast {
			// What the target sends meanwhile fills buffers on the way.
			time.Sleep(time.Duration(p.reply%50) * time.Millisecond)
		}
		return tunneltest.Receive(c, p.reply, 2)
	}
	return tunneltest.Exchange(c, p.request, p.reply, 1)
}

func (p part) target(c tunnel.Conn) error {
	switch p.style {
	case askFirst, replyLast:
		if err := tunneltest.Receive(c, p.request, 1); err != nil {
			return err
		}
		return tunneltest.SendRandomly(c, p.reply, 2)
	case speakUp:
		if err := tunneltest.SendRandomly(c, p.reply, 2); err != nil {
			return err
		}
		return tunneltest.Receive(c, p.request, 1)
	}
	return tunneltest.Exchange(c, p.reply, p.request, 2)
}
