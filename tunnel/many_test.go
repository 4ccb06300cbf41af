package tunnel_test

import (
	"context"
	"flag"
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

var tunnels = flag.Int("tunnels", 0, "how many TestManyTunnelsAtOnce opens; 0: 1000, or 100 with the race detector")

// A thousand tunnels at once, each with another size and another way of ending; no byte is lost and
// nothing is left behind.
func TestManyTunnelsAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	many := *tunnels
	switch {
	case many > 0:
	case tunnel.RaceEnabled:
		many = 100 // for the time: make load has all of them
	default:
		many = 1000
	}
	for _, tr := range transports(t) {
		if !isTypical(tr) {
			continue
		}
		t.Run(tr.Name, func(t *testing.T) { carryParts(t, tr, many, partOf, road{}) })
	}
}

// Peers and networks that pass on one byte at a time damage nothing, and neither do those that go over from floods to
// crumbs and back. Directions end one at a time there too, in a thousand tunnels at once.
func TestByteByByte(t *testing.T) {
	many, some := 1000, 32
	if tunnel.RaceEnabled || testing.Short() {
		many, some = 50, 16
	}
	for _, tr := range transports(t) {
		t.Run(tr.Name, func(t *testing.T) {
			t.Run("Peers", func(t *testing.T) { carryParts(t, tr, some, smallPartOf, road{ends: crumbsOf}) })
			t.Run("Network", func(t *testing.T) { carryParts(t, tr, some, smallPartOf, road{link: crumble(0)}) })
			t.Run("Mixed", func(t *testing.T) { carryParts(t, tr, some, partOf, road{link: crumble(100_000)}) })
			if !isTypical(tr) {
				return
			}
			t.Run("Everything", func(t *testing.T) {
				carryParts(t, tr, many, smallPartOf, road{ends: crumbsOf, link: crumble(0)})
			})
		})
	}
}

// isTypical leaves out transports that are as slow as others and differ by little.
func isTypical(tr tunneltest.Transport) bool {
	return !strings.HasSuffix(tr.Name, "-fixed") && tr.Name != "wss-standard"
}

func crumble(whole int) func(*testing.T, string) string {
	return func(t *testing.T, edge string) string { return tunneltest.Crumble(t, edge, whole) }
}

func crumbsOf(c *net.TCPConn) tunnel.Conn { return tunneltest.Crumbs{Conn: c} }

// road is what lies between the two Forwarders and around them; the zero value is nothing.
type road struct {
	ends func(*net.TCPConn) tunnel.Conn                // what app and target make of their connections
	link func(t *testing.T, edge string) (addr string) // leads to the edge
}

// carryParts carries parts 0 to many at the same time through a client and an edge.
func carryParts(t *testing.T, tr tunneltest.Transport, many int, partOf func(uint64) part, road road) {
	if road.ends == nil {
		road.ends = func(c *net.TCPConn) tunnel.Conn { return c }
	}
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
		if err := partOf(number).target(road.ends(c)); err != nil {
			t.Errorf("target of %d: %v", number, err)
		}
	})
	// Two cores take their time for so many handshakes.
	edge := &tunnel.Forwarder{Accept: tr.Server, Dial: dialTCP(target), Timeout: -1, Drain: -1}
	address := serveForwarder(t, edge)
	if road.link != nil {
		address = road.link(t, address)
	}
	client := &tunnel.Forwarder{Connect: tr.Client, Dial: dialTCP(address), Timeout: -1, Drain: -1}
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
			if err := partOf(number).app(road.ends(c.(*net.TCPConn))); err != nil {
				t.Errorf("app of %d: %v", number, err)
			}
		})
	}
	apps.Wait()
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

// smallPartOf is for roads where each byte takes its time.
func smallPartOf(number uint64) part {
	p := partOf(number)
	p.request, p.reply = p.request%1000, p.reply%1000
	return p
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
