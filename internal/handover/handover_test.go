//go:build linux || darwin || freebsd

package handover_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"raimon/internal/handover"
	"raimon/internal/service"
	"raimon/internal/tunneltest"
)

// newEdge starts the first process of an edge on a TCP and a Unix address.
func newEdge(t testing.TB) (*settings, *process, []string) {
	t.Helper()
	dir := shortDir(t)
	s := &settings{path: filepath.Join(dir, "handover", "edge.sock"), target: tunneltest.Echo(t),
		listen: []string{"127.0.0.1:0", "unix:" + filepath.Join(dir, "s")}}
	p := s.start(t, "first")
	tcp := p.says(t, "listening")
	p.says(t, "ready")
	return s, p, []string{tcp, s.listen[1]}
}

// shortDir is a folder with a path that sockets can have everywhere.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "handover")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Fifty new processes in a row, while 500 connections a second come.
func TestHandovers(t *testing.T) {
	const handovers, rate, keepEvery = 50, 500, 5 // rate is in connections a second
	const between = 10                            // connections from one hand-over to the next
	s, current, addresses := newEdge(t)
	stop := make(chan struct{})
	var visits atomic.Int64
	var load sync.WaitGroup
	load.Go(func() {
		ticks := time.NewTicker(time.Second / rate)
		defer ticks.Stop()
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-ticks.C:
			}
			load.Go(func() {
				if err := visit(addresses[n%len(addresses)]); err != nil {
					t.Errorf("visit %d: %v", n, err)
				}
				visits.Add(1)
			})
		}
	})
	defer load.Wait()
	stopOnce := sync.OnceFunc(func() { close(stop) })
	defer stopOnce()

	type old struct {
		*process
		kept net.Conn // a tunnel through it; nil: none
	}
	var all []old
	for n := range handovers {
		o := old{process: current}
		if n%keepEvery == 0 {
			c, err := net.Dial("tcp", addresses[0])
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := echoes(c); err != nil {
				t.Fatal(err)
			}
			o.kept = c
		}
		all = append(all, o)
		before := visits.Load()
		eventually(t, "nobody comes", func() bool { return visits.Load() >= before+between })
		next := s.start(t, "next")
		next.says(t, "ready")
		current.says(t, "retired")
		current = next
	}
	// Every process still gets connections from before it has retired.
	for n, o := range all {
		if o.kept == nil {
			o.says(t, "ended")
			continue
		}
		if err := echoes(o.kept); err != nil {
			t.Errorf("the tunnel of process %d after the hand-over: %v", n, err)
		}
		o.kept.Close()
		o.says(t, "ended")
	}
	stopOnce()
	load.Wait()
	t.Logf("%d connections during %d hand-overs", visits.Load(), handovers)
	if _, err := os.Lstat(strings.TrimPrefix(addresses[1], "unix:")); err != nil {
		t.Errorf("the file of the unix socket: %v", err)
	}
	if err := current.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	current.says(t, "ended")
	for _, path := range []string{strings.TrimPrefix(addresses[1], "unix:"), s.path} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s after a clean end: %v, want that it has gone", path, err)
		}
	}
}

// The old process goes on where the new one does not get that far.
func TestNewProcessFails(t *testing.T) {
	s, first, addresses := newEdge(t)

	failing := s.start(t, "fail")
	failing.says(t, "error: the new config has a mistake")

	dying := s.start(t, "hang")
	dying.says(t, "taken")
	for _, address := range addresses {
		if err := visit(address); err != nil {
			t.Errorf("during the hand-over: %v", err)
		}
	}
	dying.Process.Kill()

	for _, address := range addresses {
		if err := visit(address); err != nil {
			t.Errorf("after it: %v", err)
		}
	}
	next := s.start(t, "next")
	next.says(t, "ready")
	first.says(t, "retired")
	first.says(t, "ended")
	for _, address := range addresses {
		if err := visit(address); err != nil {
			t.Errorf("at the new process: %v", err)
		}
	}
}

// Where the old process dies, nobody but the new one is left.
func TestOldProcessDies(t *testing.T) {
	s, first, addresses := newEdge(t)
	listeners, commit, err := handover.Take(t.Context(), s.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range listeners {
		defer l.Close()
	}
	first.Process.Kill()
	first.Wait()
	if err := commit(nil); err != nil {
		t.Error(err)
	}
	if err := commit(nil); err == nil {
		t.Error("it can be said twice")
	}
	c, err := net.Dial("tcp", addresses[0])
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, _, err := handover.Take(t.Context(), s.path); !errors.Is(err, handover.ErrNobody) {
		t.Errorf("got %v, want %v", err, handover.ErrNobody)
	}
}

// serve serves listeners in this process; the channel has what Serve returns.
func serve(t testing.TB, path string, listeners map[string]net.Listener) (ended <-chan error, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		result <- handover.Serve(ctx, path, func() map[string]net.Listener { return listeners }, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(cancel)
	eventually(t, "nobody answers at the socket", func() bool {
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
		}
		return err == nil || len(result) > 0
	})
	return result, cancel
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func listen(t testing.TB, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// handOver hands listeners over, from this process to itself.
func handOver(t testing.TB, path string, listeners map[string]net.Listener) (taken map[string]net.Listener) {
	t.Helper()
	ended, _ := serve(t, path, listeners)
	taken, commit, err := handover.Take(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := commit(nil); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return taken
}

func TestManyListeners(t *testing.T) {
	path := filepath.Join(shortDir(t), "h", "s")
	for _, count := range []int{0, 1, 64, 65, 300} {
		old := make(map[string]net.Listener)
		for n := range count {
			old[fmt.Sprintf("listener %d", n)] = listen(t, "tcp", "127.0.0.1:0")
		}
		taken := handOver(t, path, old)
		if len(taken) != count {
			t.Errorf("%d listeners, want %d", len(taken), count)
		}
		for key, l := range taken {
			if l.Addr().String() != old[key].Addr().String() {
				t.Errorf("%s is at %s, want %s", key, l.Addr(), old[key].Addr())
			}
			l.Close()
		}
		for _, l := range old {
			l.Close()
		}
	}
}

// The file of a Unix socket belongs to whoever accepts there, unless it is systemd's.
func TestFilesOfUnixSockets(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "h", "s")
	own, foreign := filepath.Join(dir, "own"), filepath.Join(dir, "foreign")
	old := map[string]net.Listener{
		"own":     listen(t, "unix", own),
		"foreign": service.Foreign{UnixListener: listen(t, "unix", foreign).(*net.UnixListener)},
	}
	old["foreign"].(service.Foreign).UnixListener.SetUnlinkOnClose(false)

	taken := handOver(t, path, old)

	for _, l := range old {
		l.Close()
	}
	for _, path := range []string{own, foreign} {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("after the end of the old process: %v", err)
		}
	}
	for _, l := range taken {
		l.Close()
	}
	if _, err := os.Lstat(own); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the end of the new process: %v, want that the file has gone", err)
	}
	if _, err := os.Lstat(foreign); err != nil {
		t.Errorf("systemd's file: %v", err)
	}
}

func TestSocketIsPrivate(t *testing.T) {
	dir := filepath.Join(shortDir(t), "a", "b")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	ended, stop := serve(t, path, nil)
	for name, want := range map[string]fs.FileMode{dir: 0o700, path: 0o600} {
		if info, err := os.Lstat(name); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %v", name, info.Mode(), err, want)
		}
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestSocketIsTaken(t *testing.T) {
	path := filepath.Join(shortDir(t), "h", "s")
	_, stop := serve(t, path, nil)
	second, _ := serve(t, path, nil)
	if err := <-second; !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(hint(err), "runs already") {
		t.Errorf("got %v, want that the address is in use", err)
	}
	if _, commit, err := handover.Take(t.Context(), path); err != nil {
		t.Errorf("the first one does not answer any more: %v", err)
	} else if err := commit(errors.New("just asking")); err == nil {
		t.Error("the reason is lost")
	}
	stop()
}

func hint(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func TestDeadSocketIsReplaced(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	dead := listen(t, "unix", path).(*net.UnixListener)
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if _, _, err := handover.Take(t.Context(), path); !errors.Is(err, handover.ErrNobody) || hint(err) == "" {
		t.Errorf("got %v, want %v and a hint", err, handover.ErrNobody)
	}
	serve(t, path, nil)
	_, commit, err := handover.Take(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := commit(errors.New("just asking")); err == nil {
		t.Error("the reason is lost")
	}
}

func TestFilesInThePlaceOfTheSocket(t *testing.T) {
	dir := shortDir(t)
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(link, "s"), filepath.Join(dir, strings.Repeat("long", 40), "s")} {
		err := handover.Serve(t.Context(), path, func() map[string]net.Listener { return nil }, slog.New(slog.DiscardHandler))
		if err == nil || hint(err) == "" || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, hint %q; want an error with a hint", path, err, hint(err))
		}
	}
	if text, err := os.ReadFile(file); string(text) != "precious" {
		t.Errorf("the file now holds %q, %v", text, err)
	}
}

// Strangers to the protocol change nothing.
func TestStrangeTakers(t *testing.T) {
	path := filepath.Join(shortDir(t), "h", "s")
	ended, _ := serve(t, path, map[string]net.Listener{"x": listen(t, "tcp", "127.0.0.1:0")})
	for _, text := range []string{
		"", "\x00", "\x00\x00\x00\x00", "\xff\xff\xff\xff", "GET / HTTP/1.1\r\n\r\n", "\x00\x00\x00\x02{}", "\x00\x00\x00\x02no",
		"\x00\x00\x00\x1b" + `{"kind":"take","version":2}`, "\x00\x00\x00\x10" + `{"kind":"ready"}`,
		"\x00\x00\x00\x1b" + `{"kind":"take","version":1}` + "\x00\x00\x00\x0f" + `{"kind":"done"}`,
		"\x00\x00\x00\x1b" + `{"kind":"take","version":1}` + "\x00\x01\x00\x01",
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(text))
		c.(*net.UnixConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(patience))
		for b := make([]byte, 4096); err == nil; _, err = c.Read(b) {
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: the old process waits for more", text)
		}
		c.Close()
	}
	if len(ended) > 0 {
		t.Fatalf("the old process gave up: %v", <-ended)
	}
	_, commit, err := handover.Take(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := commit(nil); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestTakeEndsWithContext(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	silent := listen(t, "unix", path)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		c, err := silent.Accept()
		if err == nil {
			cancel()
			defer c.Close()
			c.Read(make([]byte, 100)) // until the other end closes
			c.Read(make([]byte, 100))
		}
	}()
	if _, _, err := handover.Take(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end of the context", err)
	}
}

func TestNothingIsLeftOpen(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("counts /proc/self/fd")
	}
	count := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	path := filepath.Join(shortDir(t), "h", "s")
	old := map[string]net.Listener{"a": listen(t, "tcp", "127.0.0.1:0"), "b": listen(t, "tcp", "127.0.0.1:0")}
	round := func() {
		ended, _ := serve(t, path, old)
		taken, commit, err := handover.Take(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		commit(errors.New("no"))
		for _, l := range taken {
			l.Close()
		}
		taken, commit, err = handover.Take(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if err := commit(nil); err != nil {
			t.Fatal(err)
		}
		for _, l := range taken {
			l.Close()
		}
		<-ended
	}
	round() // the runtime opens what it keeps
	files, goroutines := count(), runtime.NumGoroutine()
	for range 5 {
		round()
	}
	eventually(t, "files or goroutines are left", func() bool { return count() <= files && runtime.NumGoroutine() <= goroutines })
}
