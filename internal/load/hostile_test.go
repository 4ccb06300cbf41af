//go:build load && linux

package load

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"raimon/edge"
)

// helloOf is the beginning of a ClientHello that announces n bytes.
func helloOf(n int) string { return "\x01" + string([]byte{byte(n >> 16), byte(n >> 8), byte(n)}) }

// record is a TLS record with a piece of a handshake.
func record(piece string) string {
	return "\x16\x03\x01" + string([]byte{byte(len(piece) >> 8), byte(len(piece))}) + piece
}

// Two thousand connections that begin a handshake and stop: they cost little, keep nobody out, and end by the time limit.
func TestHalfOpenHandshakes(t *testing.T) {
	const many = 2000
	for _, test := range []struct{ name, opening string }{
		{"silent", ""},
		{"in the record's head", "\x16\x03"},
		{"in the ClientHello", record(helloOf(2000) + "\x03\x03" + strings.Repeat("x", 500))},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := startHosted(t, edge.Limits{Connections: 10_000})
			h.withstands(t, 64, []string{goodAddress, "127.0.0.2"}, func(ctx context.Context) {
				crowd(many, func(int) {
					c, err := h.dial("127.0.0.2")
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					begin := time.Now()
					io.WriteString(c, test.opening)
					if err := awaitEnd(ctx, c); err != nil || time.Since(begin) > 2*hostedTimeout {
						t.Errorf("after %v: %v", time.Since(begin), err)
					}
				})
			})
		})
	}
}

// They do not keep out those who share their address either, where that has a limit.
func TestHalfOpenHandshakesAtTheLimit(t *testing.T) {
	const limit = 100
	h := startHosted(t, edge.Limits{PerAddress: limit})
	var opened []io.Closer
	for range limit {
		c, err := h.dial("127.0.0.2")
		if err != nil {
			t.Fatal(err)
		}
		opened = append(opened, c)
	}
	time.Sleep(1200 * time.Millisecond) // older than the grace that they have
	for range limit / 2 {
		if took, err := h.tunnel("127.0.0.2"); err != nil || took > patiently {
			t.Errorf("a good tunnel beside them took %v: %v", took, err)
		}
	}
	for _, c := range opened {
		c.Close()
	}
}

// A flood from one address ends at its limit.
func TestFloodFromOneAddress(t *testing.T) {
	h := startHosted(t, edge.Limits{Connections: 10_000, PerAddress: 100, Rate: 500})
	h.withstands(t, 48, []string{goodAddress}, func(ctx context.Context) {
		end := time.Now().Add(8 * time.Second)
		var n atomic.Int64
		crowd(32, func(int) {
			for time.Now().Before(end) {
				c, err := h.dial("127.0.0.2")
				if err != nil {
					continue // refused before it was there
				}
				n.Add(1)
				io.WriteString(c, "\x16\x03\x01")
				c.Close()
			}
		})
		t.Logf("%d connections", n.Load())
	})
}

// One byte now and then holds a place for no longer than the time limit, in a ClientHello or in the head of a request.
func TestSlowBytes(t *testing.T) {
	const many = 500
	for _, test := range []struct {
		name, text string
		shaken     bool
	}{
		{"hello", record(helloOf(400) + "\x03\x03" + strings.Repeat("x", 395)), false},
		{"hello in records of one byte", strings.Repeat(record("\x01"), 100), false},
		{"head", "GET / HTTP/1.1\r\nHost: ws.test\r\nX: " + strings.Repeat("x", 400), true},
		{"HTTP/2", http2.ClientPreface + strings.Repeat("\x00", 100), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := startHosted(t, edge.Limits{Connections: 10_000})
			h.withstands(t, 48, []string{goodAddress}, func(ctx context.Context) {
				crowd(many, func(int) {
					c, err := h.open(test.shaken, "127.0.0.2")
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					begin := time.Now()
					ended := make(chan error, 1)
					go func() { ended <- awaitEnd(ctx, c) }()
					for i := range len(test.text) {
						io.WriteString(c, test.text[i:i+1])
						select {
						case err := <-ended:
							if took := time.Since(begin); err != nil || took > 3*hostedTimeout {
								t.Errorf("ended after %v: %v", took, err)
							}
							return
						case <-time.After(300 * time.Millisecond):
						}
					}
					t.Error("it may take as long as it likes")
				})
			})
		})
	}
}

// open connects, and shakes hands with ws.test if so wanted.
func (h *hosted) open(shaken bool, from string) (net.Conn, error) {
	if shaken {
		return h.tls(from, "ws.test")
	}
	return h.dial(from)
}

// Bodies that hardly come hold some memory, and nobody up. That they end is tested in package tunnel, in less time.
func TestSlowBodies(t *testing.T) {
	const many = 500
	h := startHosted(t, edge.Limits{Connections: 10_000})
	h.withstands(t, 48, []string{goodAddress}, func(ctx context.Context) {
		crowd(many, func(int) {
			c, err := h.tls("127.0.0.2", "ws.test")
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, "POST / HTTP/1.1\r\nHost: ws.test\r\nContent-Length: 1000000\r\n\r\n")
			for range 10 {
				io.WriteString(c, "x")
				time.Sleep(300 * time.Millisecond)
			}
		})
	})
}

// Heads of a megabyte are answered with 431 once they are too long.
func TestLargeHeads(t *testing.T) {
	head := "GET / HTTP/1.1\r\nHost: ws.test\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"
	h := startHosted(t, edge.Limits{Connections: 10_000})
	h.withstands(t, 64, []string{goodAddress}, func(ctx context.Context) {
		crowd(16, func(int) {
			for range 20 {
				c, err := h.tls("127.0.0.2", "ws.test")
				if err != nil {
					t.Error(err)
					return
				}
				go io.WriteString(c, head)
				answer := make([]byte, 12)
				if _, err := io.ReadFull(c, answer); err == nil && string(answer) != "HTTP/1.1 431" {
					t.Errorf("the answer begins with %q", answer)
				}
				c.Close()
			}
		})
	})
}

// A scan of a million paths leaves nothing behind.
func TestMillionPaths(t *testing.T) {
	const (
		many  = 1_000_000
		each  = 1000 // requests that one connection may bring
		crews = 8
	)
	h := startHosted(t, edge.Limits{})
	var next, answered atomic.Int64
	h.withstands(t, 48, []string{goodAddress}, func(ctx context.Context) {
		crowd(crews, func(int) {
			for n := next.Add(1); n <= many/each; n = next.Add(1) {
				m, err := h.scan(int(n), each)
				if err != nil {
					t.Error(err)
					return
				}
				answered.Add(int64(m))
			}
		})
	})
	if answered.Load() != many {
		t.Errorf("%d requests of %d were answered with 404", answered.Load(), many)
	}
}

// scan asks for so many paths on one connection, and counts the answers.
func (h *hosted) scan(n, paths int) (answered int, err error) {
	c, err := h.tls("127.0.0.2", "ws.test")
	if err != nil {
		return 0, err
	}
	defer c.Close()
	go func() {
		var requests bytes.Buffer
		for i := range paths {
			fmt.Fprintf(&requests, "GET /%d/%d HTTP/1.1\r\nHost: ws.test\r\n\r\n", n, i)
		}
		requests.WriteTo(c) // what does not arrive is not answered
	}()
	answers, err := io.ReadAll(c)
	return bytes.Count(answers, []byte("HTTP/1.1 404")), err
}

// Requests of HTTP/2 that are taken back at once, and ten thousand that never end: a connection costs some MiB, for it may
// have a hundred of them answered at the same time. Those who attack need as much of the processors as the edge does.
func TestRapidReset(t *testing.T) {
	for _, reset := range []bool{true, false} {
		t.Run(fmt.Sprintf("reset=%v", reset), func(t *testing.T) {
			h := startHosted(t, edge.Limits{})
			var streams atomic.Int64
			h.withstands(t, 160, []string{goodAddress}, func(ctx context.Context) {
				end := time.Now().Add(5 * time.Second)
				crowd(2, func(int) {
					for time.Now().Before(end) {
						n, err := h.streams(10_000, reset)
						streams.Add(int64(n))
						if err != nil {
							t.Error(err)
							return
						}
					}
				})
			})
			t.Logf("%d streams", streams.Load())
		})
	}
}

// streams opens up to n streams on one connection, as far as that goes.
func (h *hosted) streams(n int, reset bool) (opened int, err error) {
	c, err := h.tls("127.0.0.2", "ws.test", "h2")
	if err != nil {
		return 0, err
	}
	defer c.Close()
	go io.Copy(io.Discard, c)
	var head bytes.Buffer
	encoder := hpack.NewEncoder(&head)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "ws.test"}, {":path", "/"}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true}); err != nil {
			return 0, err
		}
	}
	out := &bytes.Buffer{}
	out.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(out, nil)
	if err := framer.WriteSettings(); err != nil {
		return 0, err
	}
	for ; opened < n; opened++ {
		id := uint32(2*opened + 1)
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndHeaders: true, EndStream: reset}); err != nil {
			return opened, err
		}
		if reset {
			if err := framer.WriteRSTStream(id, http2.ErrCodeCancel); err != nil {
				return opened, err
			}
		}
		if _, err := out.WriteTo(c); err != nil {
			return opened, nil // the edge has had enough
		}
	}
	return opened, nil
}

// A ClientHello that is as long as it may be, or longer, or comes in the smallest pieces.
func TestHugeHellos(t *testing.T) {
	const many = 500
	large := record(helloOf(60_000)+strings.Repeat("x", 16_000)) + strings.Repeat(record(strings.Repeat("x", 16_000)), 2)
	pieces := &strings.Builder{}
	for _, b := range []byte(helloOf(60_000)) {
		pieces.WriteString(record(string([]byte{b})))
	}
	pieces.WriteString(strings.Repeat(record("x"), 60_000))
	for name, text := range map[string]string{"large": large, "small pieces": pieces.String(), "not quite": large[:16_000]} {
		t.Run(name, func(t *testing.T) {
			h := startHosted(t, edge.Limits{})
			h.withstands(t, 64, []string{goodAddress}, func(ctx context.Context) {
				crowd(many, func(int) {
					c, err := h.dial("127.0.0.2")
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					begin := time.Now()
					c.SetWriteDeadline(begin.Add(2 * hostedTimeout))
					io.WriteString(c, text)
					if err := awaitEnd(ctx, c); err != nil || time.Since(begin) > 2*hostedTimeout {
						t.Errorf("after %v: %v", time.Since(begin), err)
					}
				})
			})
		})
	}
}
