package tunneltest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"raimon/tunnel"
)

// patience is how long a test waits for what has to happen.
const patience = 30 * time.Second

// Conformance runs what every transport, and so every Layer, has to pass: its connections behave like
// TCP connections, over real sockets.
func Conformance(t *testing.T, tr Transport) {
	Pair(t) // so that the poller's own descriptors exist before they are counted
	t.Run("NetConn", func(t *testing.T) { testNetConn(t, tr) })
	t.Run("HalfClose", func(t *testing.T) { testHalfClose(t, tr) })
	t.Run("Sizes", func(t *testing.T) { testSizes(t, tr) })
	t.Run("SlowReader", func(t *testing.T) { testSlowReader(t, tr) })
	t.Run("ByteByByte", func(t *testing.T) { testByteByByte(t, tr) })
	t.Run("Cancel", func(t *testing.T) { testCancel(t, tr) })
	t.Run("Cut", func(t *testing.T) { testCut(t, tr) })
}

// Wrap makes a tunnel of two connected ends: both sides of tr shake hands at the same time.
func Wrap(t testing.TB, tr Transport, dialed, accepted tunnel.Conn) (client, server tunnel.Conn) {
	t.Helper()
	client, server, err := wrap(tr, dialed, accepted)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func wrap(tr Transport, dialed, accepted tunnel.Conn) (client, server tunnel.Conn, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		var err error
		server, err = tr.Server.Server(ctx, accepted, new(tunnel.Info))
		failed <- err
	}()
	client, err = tr.Client.Client(ctx, dialed)
	if err != nil {
		cancel()
		return nil, nil, errors.Join(err, <-failed)
	}
	return client, server, <-failed
}

// NoLeaks fails the test if, once everything registered after it is cleaned up, it leaves goroutines,
// sockets or pipes behind.
func NoLeaks(t testing.TB) { noLeaks(t, "socket:", "pipe:") }

func noLeaks(t testing.TB, kinds ...string) {
	t.Helper()
	goroutines, descriptors := runtime.NumGoroutine(), openDescriptors(kinds)
	t.Cleanup(func() {
		var g, d int
		ok := eventually(patience, func() bool {
			g, d = runtime.NumGoroutine(), openDescriptors(kinds)
			return g <= goroutines && d <= descriptors
		})
		if !ok {
			var stacks strings.Builder
			pprof.Lookup("goroutine").WriteTo(&stacks, 1)
			t.Errorf("left behind: %d goroutines, %d descriptors\n%s", g-goroutines, d-descriptors, &stacks)
		}
	})
}

// openDescriptors counts descriptors of kinds; 0 where the system does not tell.
func openDescriptors(kinds []string) int {
	n := 0
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		link, _ := os.Readlink("/proc/self/fd/" + e.Name())
		for _, kind := range kinds {
			if strings.HasPrefix(link, kind) {
				n++
			}
		}
	}
	return n
}

// eventually polls until ok, at most for limit.
func eventually(limit time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// wrapped returns both ends of a tunnel over loopback, with deadlines so that nothing hangs.
func wrapped(t *testing.T, tr Transport) (client, server tunnel.Conn) {
	t.Helper()
	noLeaks(t, "socket:")
	dialed, accepted := Pair(t)
	client, server = Wrap(t, tr, dialed, accepted)
	client.SetDeadline(time.Now().Add(patience))
	server.SetDeadline(time.Now().Add(patience))
	return client, server
}

// sides calls test with the client's end first and with the server's end first.
func sides(t *testing.T, test func(t *testing.T, clientFirst bool)) {
	t.Run("Client", func(t *testing.T) { test(t, true) })
	t.Run("Server", func(t *testing.T) { test(t, false) })
}

func testNetConn(t *testing.T, tr Transport) {
	noLeaks(t, "socket:")
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		dialed, accepted := Pair(t)
		client, server, err := wrap(tr, dialed, accepted)
		if err != nil {
			return nil, nil, nil, err
		}
		// Nettest's stop may come in the middle of its own Close.
		c1, c2 := &closedOnce{client, sync.OnceValue(client.Close)}, &closedOnce{server, sync.OnceValue(server.Close)}
		return c1, c2, func() { c1.Close(); c2.Close() }, nil
	})
}

type closedOnce struct {
	net.Conn
	once func() error
}

func (c *closedOnce) Close() error { return c.once() }

func testHalfClose(t *testing.T, tr Transport) {
	sides(t, func(t *testing.T, clientFirst bool) {
		first, second := wrapped(t, tr)
		if !clientFirst {
			first, second = second, first
		}

		mustWrite(t, first, []byte("question"))
		mustCloseWrite(t, first)
		if got := mustReadAll(t, second); string(got) != "question" {
			t.Fatalf("got %q before the end", got)
		}
		if _, err := first.Write([]byte("more")); err == nil {
			t.Error("Write after CloseWrite succeeds")
		}
		// The other direction still flows, there and back between its two ends.
		answer := Bytes(1<<20, 1)
		for i := 0; i < len(answer); i += 1 << 16 {
			chunk := answer[i : i+1<<16]
			sent := make(chan error, 1)
			go func() {
				_, err := second.Write(chunk)
				sent <- err
			}()
			got := make([]byte, len(chunk))
			if _, err := io.ReadFull(first, got); err != nil || !bytes.Equal(got, chunk) {
				t.Fatalf("the other direction after %d bytes: %v", i, err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
		}
		mustCloseWrite(t, second)
		if got := mustReadAll(t, first); len(got) != 0 {
			t.Fatalf("got %d bytes more", len(got))
		}
		if n, err := second.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("Read after the end gives %d, %v", n, err)
		}
	})
}

func testSizes(t *testing.T, tr Transport) {
	for _, size := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20, 16 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			client, server := wrapped(t, tr)
			done := make(chan error, 2)
			go func() { done <- Exchange(client, size, size/2+1, 1) }()
			go func() { done <- Exchange(server, size/2+1, size, 2) }()
			for range 2 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Bytes are size random bytes, the same for the same seed.
func Bytes(size int, seed uint64) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(size), byte(size >> 8), byte(size >> 16), byte(size >> 24)}).Read(b)
	return b
}

// Exchange sends send random bytes in writes of random sizes and then the end, while it reads to the
// end and checks that it got those that an Exchange at the other side sent. Seeds are 1 and 2.
func Exchange(c tunnel.Conn, send, receive int, seed uint64) error {
	sent := make(chan error, 1)
	go func() { sent <- SendRandomly(c, send, seed) }()
	err := Receive(c, receive, 3-seed)
	return errors.Join(err, <-sent)
}

// SendRandomly sends size bytes of seed in writes of random sizes, and then the end.
func SendRandomly(c tunnel.Conn, size int, seed uint64) error {
	data := Bytes(size, seed)
	random := rand.New(rand.NewPCG(seed, uint64(size)))
	for len(data) > 0 {
		n := min(len(data), 1+random.IntN(1<<random.IntN(19)))
		if m, err := c.Write(data[:n]); err != nil || m != n {
			return fmt.Errorf("write with %d of %d bytes to go: %d, %w", len(data), size, m, err)
		}
		data = data[n:]
	}
	if err := c.CloseWrite(); err != nil {
		return fmt.Errorf("end after %d bytes: %w", size, err)
	}
	return nil
}

// Receive reads to the end and checks that it got size bytes of seed.
func Receive(r io.Reader, size int, seed uint64) error {
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	if err != nil {
		return fmt.Errorf("read %d of %d bytes: %w", n, size, err)
	}
	want := sha256.Sum256(Bytes(size, seed))
	if n != int64(size) || !bytes.Equal(sum.Sum(nil), want[:]) {
		return fmt.Errorf("got %d bytes, not the %d that were sent", n, size)
	}
	return nil
}

func testSlowReader(t *testing.T, tr Transport) {
	noLeaks(t, "socket:")
	dialed, accepted := Pair(t)
	for _, c := range []*net.TCPConn{dialed, accepted} {
		c.SetReadBuffer(8 << 10)
		c.SetWriteBuffer(8 << 10)
	}
	client, server := Wrap(t, tr, dialed, accepted)
	client.SetDeadline(time.Now().Add(patience))
	server.SetDeadline(time.Now().Add(patience))
	const size = 96 << 10 // little, for the kernel delays acknowledgements
	sent := make(chan error, 1)
	go func() { sent <- SendRandomly(client, size, 1) }()

	if err := Receive(pieces{server, 1 << 10}, size, 1); err != nil {
		t.Error(err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// pieces reads at most max bytes at once, after everybody else had a turn.
type pieces struct {
	io.Reader
	max int
}

func (r pieces) Read(p []byte) (int, error) {
	runtime.Gosched()
	return r.Reader.Read(p[:min(len(p), r.max)])
}

func testByteByByte(t *testing.T, tr Transport) {
	t.Run("Writes", func(t *testing.T) {
		client, server := wrapped(t, tr)
		data := Bytes(3000, 1)
		sent := make(chan error, 1)
		go func() {
			for i := range data {
				if _, err := client.Write(data[i : i+1]); err != nil {
					sent <- err
					return
				}
			}
			sent <- client.CloseWrite()
		}()
		if err := Receive(server, len(data), 1); err != nil {
			t.Error(err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
	t.Run("Segments", func(t *testing.T) {
		noLeaks(t, "socket:")
		dialed, accepted := Pair(t)
		client, server := Wrap(t, tr, Crumbs{dialed}, Crumbs{accepted})
		done := make(chan error, 2)
		go func() { done <- Exchange(client, 10_000, 5000, 1) }()
		go func() { done <- Exchange(server, 5000, 10_000, 2) }()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// testCancel ends a handshake with a silent peer. The connection stays its owner's, open and working.
func testCancel(t *testing.T, tr Transport) {
	if len(tr.Client) == 0 {
		t.Skip("no handshake")
	}
	sides(t, func(t *testing.T, client bool) {
		noLeaks(t, "socket:")
		ours, peers := Pair(t)
		errCause := errors.New("the cause")
		ctx, cancel := context.WithCancelCause(context.Background())
		// The moment does not matter: whether the handshake has begun or not, it has to end.
		defer time.AfterFunc(10*time.Millisecond, func() { cancel(errCause) }).Stop()

		begin := time.Now()
		var c tunnel.Conn
		var err error
		if client {
			c, err = tr.Client.Client(ctx, ours)
		} else {
			c, err = tr.Server.Server(ctx, ours, new(tunnel.Info))
		}
		if c != nil || !errors.Is(err, errCause) {
			t.Fatalf("gives %v, %v; want the context's cause", c, err)
		}
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("takes %v to give up", d)
		}

		if err := ours.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal("closed what is not its own:", err)
		}
		mustWrite(t, peers, []byte("late"))
		got := make([]byte, 4)
		if _, err := io.ReadFull(ours, got); err != nil || string(got) != "late" {
			t.Errorf("the owner reads %q, %v", got, err)
		}
		mustWrite(t, ours, []byte("bye"))
		mustCloseWrite(t, ours)
		if got := mustReadAll(t, peers); !bytes.HasSuffix(got, []byte("bye")) {
			t.Errorf("the peer reads %q", got)
		}
	})
}

// testCut kills the TCP connection below an open tunnel: all that arrived is read, and then an error.
func testCut(t *testing.T, tr Transport) {
	for _, kind := range []struct {
		name string
		cut  func(c *net.TCPConn)
	}{
		{"FIN", func(c *net.TCPConn) { c.CloseWrite() }},
		{"RST", func(c *net.TCPConn) { c.SetLinger(0); c.Close() }},
	} {
		if kind.name == "FIN" && len(tr.Client) == 0 {
			continue // in plain tcp this is the end of the stream
		}
		t.Run(kind.name, func(t *testing.T) {
			sides(t, func(t *testing.T, clientCut bool) {
				for _, ended := range []bool{false, true} {
					noLeaks(t, "socket:")
					below, accepted := Pair(t)
					cut, reader := Wrap(t, tr, below, accepted)
					if !clientCut {
						cut, reader, below = reader, cut, accepted
					}
					reader.SetDeadline(time.Now().Add(patience))
					if ended { // by the reader; its own direction does not matter
						mustCloseWrite(t, reader)
						mustReadAll(t, cut)
					}
					data := Bytes(100_000, 1)
					sent := make(chan error, 1)
					go func() {
						_, err := cut.Write(data)
						sent <- err
					}()
					got := make([]byte, len(data))
					if _, err := io.ReadFull(reader, got); err != nil || !bytes.Equal(got, data) {
						t.Fatal("before the cut:", err)
					}
					if err := <-sent; err != nil {
						t.Fatal(err)
					}

					kind.cut(below)

					reads := 2 // the error stays
					if len(tr.Client) == 0 {
						reads = 1 // a socket tells it once
					}
					for range reads {
						n, err := reader.Read(got)
						if n != 0 || err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded) {
							t.Errorf("ended %v: Read gives %d, %v; want an error", ended, n, err)
						}
					}
				}
			})
		})
	}
}

func mustWrite(t *testing.T, w io.Writer, p []byte) {
	t.Helper()
	if _, err := w.Write(p); err != nil {
		t.Fatal("write:", err)
	}
}

func mustCloseWrite(t *testing.T, c tunnel.Conn) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Fatal("end:", err)
	}
}

func mustReadAll(t *testing.T, r io.Reader) []byte {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read to the end: %v after %d bytes", err, len(b))
	}
	return b
}
