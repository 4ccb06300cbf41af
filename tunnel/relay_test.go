package tunnel_test

import (
	"context"
	"io"
	"net"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// trickle reads at most 20 KB every 10 ms: slow, and never silent.
type trickle struct{ net.Conn }

func (r trickle) Read(p []byte) (int, error) {
	time.Sleep(10 * time.Millisecond)
	return r.Conn.Read(p[:min(len(p), 20_000)])
}

// A target may answer a half-closed client and be gone long before the answer is read. What a reader
// takes of it, however slowly, is no silence.
func TestLastReplyMayTakeLongerThanLinger(t *testing.T) {
	const size, linger = 4 << 20, time.Second
	for _, who := range []string{"forth", "back"} {
		t.Run(who, func(t *testing.T) {
			t.Parallel()
			client, accepted := tunneltest.Pair(t)
			dialed, target := tunneltest.Pair(t)
			accepted.SetWriteBuffer(256 << 10) // the writer hears of the reader only now and then
			done := make(chan error, 1)
			go func() {
				a, b := tunnel.Conn(accepted), tunnel.Conn(dialed)
				if who == "back" {
					a, b = b, a
				}
				_, _, err := tunnel.Relay(context.Background(), a, b, linger)
				accepted.Close()
				dialed.Close()
				done <- err
			}()
			client.CloseWrite()
			go func() {
				io.Copy(io.Discard, target)
				io.CopyN(target, endless{}, size)
				target.Close()
			}()
			n, err := io.Copy(io.Discard, trickle{client})
			if n != size || err != nil {
				t.Errorf("received %d bytes of %d, %v", n, size, err)
			}
			if err := <-done; err != nil {
				t.Errorf("relay: %v", err)
			}
		})
	}
}

// A client that sends on and on is told what the target said before it hung up.
func TestEarlyAnswerIsHeard(t *testing.T) {
	const answer = "HTTP/1.1 413 Content Too Large\r\n\r\n"
	for _, tr := range tunneltest.Transports(t, tunneltest.NewCA(t)) {
		t.Run(tr.Name, func(t *testing.T) {
			address := startTunnel(t, tr, tunneltest.Serve(t, func(c *net.TCPConn) {
				io.ReadFull(c, make([]byte, 100))
				io.WriteString(c, answer)
			}))
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			go io.Copy(c, endless{})
			got := make([]byte, len(answer))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != answer {
				t.Errorf("got %q, %v, want the answer", got, err)
			}
		})
	}
}
