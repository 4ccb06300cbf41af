package service_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"raimon/internal/service"
)

const patience = 20 * time.Second

// manager is what systemd is on the other side of NOTIFY_SOCKET.
type manager struct{ *net.UnixConn }

func newManager(t *testing.T) manager {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("there are no unixgram sockets")
	}
	dir, err := os.MkdirTemp("", "notify")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return manager{c}
}

// next is the next message.
func (m manager) next(t testing.TB) string {
	t.Helper()
	m.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 4096)
	n, err := m.Read(b)
	if err != nil {
		t.Fatal("no message: ", err)
	}
	return string(b[:n])
}

func TestMessages(t *testing.T) {
	m := newManager(t)
	for _, test := range []struct {
		name string
		send func() error
		want string
	}{
		{"ready", func() error { return service.Ready("") }, `READY=1`},
		{"ready with status", func() error { return service.Ready("3 sites") }, "READY=1\nSTATUS=3 sites"},
		{"reloading", service.Reloading, `RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*`},
		{"stopping", service.Stopping, `STOPPING=1`},
		{"status", func() error { return service.Status("5 tunnels") }, `STATUS=5 tunnels`},
		{"main process", func() error { return service.MainProcess(42) }, `MAINPID=42`},
		{"an order in a status", func() error { return service.Status("x\nMAINPID=1\r\x00") }, `STATUS=x MAINPID=1  `},
		{"a long status", func() error { return service.Status(strings.Repeat("ü", 1000)) }, "STATUS=ü{256}"},
	} {
		if err := test.send(); err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := m.next(t); !regexp.MustCompile("^" + test.want + "$").MatchString(got) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func TestNobodyIsTold(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	for _, send := range []func() error{func() error { return service.Ready("x") }, service.Reloading, service.Stopping} {
		if err := send(); err != nil {
			t.Error(err)
		}
	}
	if err := service.Watch(t.Context(), func(context.Context) error { panic("asked for health") }, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	if all, err := service.Listeners(); len(all) > 0 || err != nil {
		t.Errorf("got %v, %v; want nothing", all, err)
	}
}

func TestManagerHasGone(t *testing.T) {
	m := newManager(t)
	m.Close()
	if err := service.Ready(""); err == nil || !strings.Contains(err.Error(), "service manager") {
		t.Errorf("got %v, want that the service manager is not there", err)
	}
}

func TestWatchdog(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", "40000")
	var mu sync.Mutex
	var trouble error
	asked := 0
	healthy := func(context.Context) error {
		mu.Lock()
		defer mu.Unlock()
		asked++
		return trouble
	}
	set := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		trouble, asked = err, 0
	}
	ctx, cancel := context.WithCancel(t.Context())
	var text lockedBuffer
	ended := make(chan error, 1)
	go func() { ended <- service.Watch(ctx, healthy, slog.New(slog.NewTextHandler(&text, nil))) }()

	for range 3 {
		if got := m.next(t); got != "WATCHDOG=1" {
			t.Fatalf("got %q, want a ping", got)
		}
	}

	set(errors.New("the accept loop hangs"))
	eventually(t, "it is not asked any more", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return asked >= 3
	})
	m.drain(t)
	eventually(t, "it is not asked any more", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return asked >= 6
	})
	if got := m.drain(t); got > 0 {
		t.Errorf("%d pings without health", got)
	}

	set(nil)
	if got := m.next(t); got != "WATCHDOG=1" {
		t.Fatalf("got %q, want a ping", got)
	}
	eventually(t, "the log does not tell that all is well", func() bool { return strings.Contains(text.String(), "all is well again") })
	if got := strings.Count(text.String(), "the accept loop hangs"); got != 1 {
		t.Errorf("the trouble is logged %d times, want once:\n%s", got, text.String())
	}

	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// drain takes what has come, and says how much that was.
func (m manager) drain(t testing.TB) (n int) {
	t.Helper()
	b := make([]byte, 4096)
	for {
		m.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := m.Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
			return n
		} else if err != nil {
			t.Fatal(err)
		}
		n++
	}
}

// Who hangs does not ping either.
func TestWatchdogWithoutAnswer(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	healthy := func(limited context.Context) error {
		if asked++; asked == 5 {
			cancel()
		}
		<-limited.Done()
		return nil
	}
	if err := service.Watch(ctx, healthy, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	if got := m.drain(t); got > 0 {
		t.Errorf("%d pings", got)
	}
}

func TestWatchdogOfSomebodyElse(t *testing.T) {
	newManager(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "1")
	if err := service.Watch(t.Context(), func(context.Context) error { panic("asked for health") }, slog.New(slog.DiscardHandler)); err != nil {
		t.Error(err)
	}
	t.Setenv("WATCHDOG_PID", "")
	t.Setenv("WATCHDOG_USEC", "soon")
	if err := service.Watch(t.Context(), nil, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a time that is no number is taken")
	}
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
