package tunneltest

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"

	"raimon/tunnel"
)

// Crumbs reads and writes one byte at a time.
type Crumbs struct{ tunnel.Conn }

func (c Crumbs) Read(p []byte) (int, error) { return c.Conn.Read(p[:min(len(p), 1)]) }

func (c Crumbs) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// Crumble is a proxy to target that passes each byte on in a write of its own, and an end or a reset as what it is.
// Stretches of up to whole bytes, of random lengths, pass between the crumbs as they come; 0: none do.
func Crumble(t testing.TB, target string, whole int) (address string) {
	return Serve(t, func(c *net.TCPConn) {
		d, err := net.Dial("tcp", target)
		if err != nil {
			c.SetLinger(0)
			return
		}
		defer d.Close()
		var back sync.WaitGroup
		back.Go(func() { crumble(c, d.(*net.TCPConn), whole, 1) })
		crumble(d.(*net.TCPConn), c, whole, 2)
		back.Wait()
	})
}

// longestCrumbling is how many bytes in a row Crumble takes apart where it also passes stretches.
const longestCrumbling = 200

func crumble(to, from *net.TCPConn, whole int, seed uint64) {
	random := rand.New(rand.NewPCG(seed, uint64(whole)))
	stretch, crumbs := 0, 0 // bytes to come
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		for p := buf[:n]; len(p) > 0; {
			if stretch == 0 && crumbs == 0 {
				crumbs = 1 + random.IntN(longestCrumbling)
				stretch = random.IntN(whole + 1)
			}
			piece := p[:1]
			if crumbs == 0 {
				piece = p[:min(len(p), stretch)]
				stretch -= len(piece)
			} else {
				crumbs--
			}
			if _, err := to.Write(piece); err != nil {
				reset(from, to)
				return
			}
			p = p[len(piece):]
		}
		if err == io.EOF {
			to.CloseWrite()
			return
		}
		if err != nil {
			reset(from, to)
			return
		}
	}
}

func reset(both ...*net.TCPConn) {
	for _, c := range both {
		c.SetLinger(0)
		c.Close()
	}
}
