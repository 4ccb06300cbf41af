//go:build interop

package interop

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"raimon/internal/tunneltest"
)

const megabyte = 1 << 20

// target is the server behind the tunnels. The first line that a client sends says what it does:
//
//	echo              sends back what it gets
//	swallow P D N     reads slowly with P (ms) between reads, waits D (ms) after the end, then reports and sends N bytes
//	finish N ID       sends N bytes and ends its direction, then reads on and leaves the report under ID
//	close N           sends N bytes and closes
//	answer N D        waits D (ms), then sends N bytes and closes
//	reset N           sends N bytes and resets the connection
//	hold ID           answers a line, then reads until the client goes and leaves the error under ID
//	flood ID          answers a line, then sends for ever and reads nothing, and leaves the error under ID
type target struct {
	address string

	mu      sync.Mutex
	reports map[string]chan string
}

func newTarget(t testing.TB) *target {
	g := &target{reports: make(map[string]chan string)}
	g.address = tunneltest.Serve(t, g.serve)
	return g
}

// report is where the target leaves what it has to say about id.
func (g *target) report(id string) chan string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reports[id] == nil {
		g.reports[id] = make(chan string, 100)
	}
	return g.reports[id]
}

func (g *target) serve(c *net.TCPConn) {
	in := bufio.NewReader(c)
	line, err := in.ReadString('\n')
	if err != nil {
		return
	}
	words := strings.Fields(line)
	number := func(i int) int { n, _ := strconv.Atoi(words[i]); return n }
	switch words[0] {
	case "echo":
		if _, err := io.Copy(c, in); err == nil {
			c.CloseWrite()
		}
	case "swallow":
		s := newSum()
		if _, err := io.CopyBuffer(s, onlyReader{&slow{Reader: in, pause: milliseconds(number(1))}}, make([]byte, 16<<10)); err != nil {
			return
		}
		time.Sleep(milliseconds(number(2)))
		fmt.Fprintln(c, s)
		io.Copy(c, stream(number(3)))
		c.CloseWrite()
	case "finish":
		io.Copy(c, stream(number(1)))
		c.CloseWrite()
		s := newSum()
		_, err := io.Copy(s, in)
		g.report(words[2]) <- fmt.Sprint(s, " ", err)
	case "close":
		io.Copy(c, stream(number(1)))
	case "answer":
		time.Sleep(milliseconds(number(2)))
		io.Copy(c, stream(number(1)))
	case "reset":
		io.Copy(c, stream(number(1)))
		c.SetLinger(0)
	case "hold":
		fmt.Fprintln(c, "ready")
		_, err := io.Copy(io.Discard, in)
		g.report(words[1]) <- fmt.Sprint(err)
	case "flood":
		fmt.Fprintln(c, "ready")
		flood(c)
		c.SetWriteDeadline(time.Time{})
		_, err := io.Copy(c, stream(math.MaxInt64))
		g.report(words[1]) <- fmt.Sprint(err)
	}
}

// flood sends until nothing is taken any more.
func flood(c *net.TCPConn) {
	b := make([]byte, 64<<10)
	for begin := time.Now(); time.Since(begin) < patience; {
		c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func milliseconds(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// stream is n bytes that are the same every time and do not repeat at any power of two.
func stream(n int) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{31: byte(n)}), int64(n))
}

// sumOf is the sum of stream(n).
func sumOf(n int) string {
	s := newSum()
	io.Copy(s, stream(n))
	return s.String()
}

// sum counts and digests.
type sum struct {
	hash.Hash
	n int
}

func newSum() *sum { return &sum{Hash: sha256.New()} }

func (s *sum) Write(p []byte) (int, error) {
	s.n += len(p)
	return s.Hash.Write(p)
}

func (s *sum) String() string { return fmt.Sprintf("%d %s", s.n, hex.EncodeToString(s.Sum(nil)[:8])) }

// slow reads nothing for a second, then with a pause before each read until a second of pauses has been made.
type slow struct {
	io.Reader
	pause, made time.Duration
}

func (s *slow) Read(p []byte) (int, error) {
	if s.pause > 0 && s.made < 2*time.Second {
		pause := s.pause
		if s.made == 0 {
			pause = time.Second
		}
		time.Sleep(pause)
		s.made += pause
	}
	return s.Reader.Read(p)
}

// onlyReader hides WriteTo.
type onlyReader struct{ io.Reader }

// dial connects, with a deadline for all that follows, and sends the target's order.
func dial(t testing.TB, address, order string, args ...any) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(60 * time.Second))
	if _, err := fmt.Fprintf(c, order+"\n", args...); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// flow sends stream(n) and then ends our direction, or not.
func flow(c *net.TCPConn, n int, end bool) chan error {
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, stream(n))
		if err == nil && end {
			err = c.CloseWrite()
		}
		done <- err
	}()
	return done
}

// tryEcho sends n bytes, ends, and wants the same back, to the end.
func tryEcho(t testing.TB, address string, n int) error {
	t.Helper()
	c := dial(t, address, "echo")
	defer c.Close()
	sent := flow(c, n, true)
	s := newSum()
	if _, err := io.Copy(s, c); err != nil {
		return fmt.Errorf("echo of %d: after %d: %w", n, s.n, err)
	}
	if err := <-sent; err != nil {
		return fmt.Errorf("echo of %d: %w", n, err)
	}
	if s.String() != sumOf(n) {
		return fmt.Errorf("echo of %d: %v came back, want %v", n, s, sumOf(n))
	}
	return nil
}

// tryLockstep sends n bytes in pieces, each after the last has come back.
func tryLockstep(t testing.TB, address string, n, piece int) error {
	t.Helper()
	c := dial(t, address, "echo")
	defer c.Close()
	src, got, buf := stream(n), newSum(), make([]byte, piece)
	for {
		m, err := io.ReadFull(src, buf)
		if m == 0 {
			break
		}
		if _, err := c.Write(buf[:m]); err != nil {
			return fmt.Errorf("lockstep: after %d: %w", got.n, err)
		}
		if _, err := io.ReadFull(c, buf[:m]); err != nil {
			return fmt.Errorf("lockstep: after %d: %w", got.n, err)
		}
		got.Write(buf[:m])
		if err != nil {
			break
		}
	}
	c.CloseWrite()
	if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
		return fmt.Errorf("lockstep: at the end: %d bytes, %v", len(rest), err)
	}
	if got.String() != sumOf(n) {
		return fmt.Errorf("lockstep: %v came back, want %v", got, sumOf(n))
	}
	return nil
}

// tryUpload floods a target that reads with pauses, ends, and wants its report and a reply after delay.
func tryUpload(t testing.TB, address string, n int, pause, delay time.Duration, reply int) error {
	t.Helper()
	c := dial(t, address, "swallow %d %d %d", pause.Milliseconds(), delay.Milliseconds(), reply)
	defer c.Close()
	sent := flow(c, n, true)
	in := bufio.NewReader(c)
	report, err := in.ReadString('\n')
	if err != nil {
		return fmt.Errorf("upload of %d: report: %q, %w", n, report, err)
	}
	if err := <-sent; err != nil {
		return fmt.Errorf("upload of %d: %w", n, err)
	}
	if report = strings.TrimSpace(report); report != sumOf(n) {
		return fmt.Errorf("upload of %d: %v arrived, want %v", n, report, sumOf(n))
	}
	s := newSum()
	if _, err := io.Copy(s, in); err != nil || s.String() != sumOf(reply) {
		return fmt.Errorf("reply after %v: %v (%v), want %v", delay, s, err, sumOf(reply))
	}
	return nil
}

// tryDownload reads n bytes with pauses from a target that then ends its direction; upload bytes go
// the other way after that and must arrive too.
func (g *target) tryDownload(t testing.TB, address string, n int, pause time.Duration, upload int) error {
	t.Helper()
	id := newID()
	c := dial(t, address, "finish %d %s", n, id)
	defer c.Close()
	s := newSum()
	if _, err := io.CopyBuffer(s, onlyReader{&slow{Reader: c, pause: pause}}, make([]byte, 16<<10)); err != nil {
		return fmt.Errorf("download of %d: after %d: %w", n, s.n, err)
	}
	if s.String() != sumOf(n) {
		return fmt.Errorf("download of %d: %v arrived, want %v", n, s, sumOf(n))
	}
	if err := <-flow(c, upload, true); err != nil {
		return fmt.Errorf("upload after the target's end: %w", err)
	}
	select {
	case report := <-g.report(id):
		if want := sumOf(upload) + " <nil>"; report != want {
			return fmt.Errorf("upload after the target's end: %v arrived, want %v", report, want)
		}
	case <-time.After(patience):
		return errors.New("upload after the target's end: nothing arrived")
	}
	return nil
}

// tryClosing wants all of n bytes from a target that closes right after them, while we do not end first.
func tryClosing(t testing.TB, address string, n int) error {
	t.Helper()
	c := dial(t, address, "close %d", n)
	defer c.Close()
	s := newSum()
	if _, err := io.Copy(s, c); err != nil || s.String() != sumOf(n) {
		return fmt.Errorf("reply and close: %v (%v), want %v", s, err, sumOf(n))
	}
	return nil
}

// all runs named attempts at the same time, each as a subtest.
func all(t *testing.T, attempts map[string]func(t testing.TB) error) {
	t.Helper()
	for name, attempt := range attempts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := attempt(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// streams is what a good tunnel carries in every case.
func (g *target) streams(address string) map[string]func(t testing.TB) error {
	return map[string]func(t testing.TB) error{
		"sizes": func(t testing.TB) error {
			for _, n := range []int{0, 1, 125, 126, 4096, 65535, 65536, 200_000} {
				if err := tryEcho(t, address, n); err != nil {
					return err
				}
			}
			return nil
		},
		"bulk":          func(t testing.TB) error { return tryEcho(t, address, 8*megabyte) },
		"lockstep":      func(t testing.TB) error { return tryLockstep(t, address, megabyte, 3001) },
		"slow target":   func(t testing.TB) error { return tryUpload(t, address, 8*megabyte, milliseconds(5), 0, 10) },
		"slow client":   func(t testing.TB) error { return g.tryDownload(t, address, 8*megabyte, milliseconds(5), 100) },
		"late reply":    func(t testing.TB) error { return tryUpload(t, address, 1000, 0, 2*time.Second, megabyte) },
		"target first":  func(t testing.TB) error { return g.tryDownload(t, address, 1000, 0, megabyte) },
		"target closes": func(t testing.TB) error { return tryClosing(t, address, megabyte) },
	}
}

// newID names a report.
func newID() string { return strconv.FormatUint(rand.Uint64(), 36) }

// isReset tells whether a connection ended with RST.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// transportCase is one of tcp, ws, tls and wss with the option strings of both sides.
type transportCase struct {
	name, server, client string
	ca                   string // file, with TLS
}

const wsOption = "ws;host=localhost;path=/tunnel"

// transports makes the option strings, over a certificate for localhost.
func transports(t testing.TB) []transportCase {
	t.Helper()
	ca := tunneltest.NewCA(t)
	f := ca.Write(t, t.TempDir(), ca.Issue(t, "localhost", "127.0.0.1"))
	server := "tls;cert=" + f.Cert + ";key=" + f.Key
	client := "tls;sni=localhost;ca=" + f.CA
	return []transportCase{
		{name: "tcp"},
		{name: "ws", server: wsOption, client: wsOption},
		{name: "tls", server: server, client: client, ca: f.CA},
		{name: "wss", server: wsOption + ";" + server, client: wsOption + ";" + client, ca: f.CA},
	}
}
