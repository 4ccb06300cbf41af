//go:build linux || darwin || freebsd

package handover

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// unixPair is the two ends of a connection.
func unixPair(t testing.TB) (old, fresh *net.UnixConn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pair")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialed, err := net.Dial("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialed.Close() })
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return accepted.(*net.UnixConn), dialed.(*net.UnixConn)
}

// An old process that wakes up when the new one has stopped waiting finds out that it has to go on.
func TestOldProcessAnswersTooLate(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere a write to an end that does not hear may go well")
	}
	old, fresh := unixPair(t)
	if err := settle(fresh, 10*time.Millisecond); err == nil {
		t.Fatal("the new process goes on without an answer")
	}
	if m, err := read(old, time.Second); err != nil || m.Kind != kindReady {
		t.Fatalf("got %v, %v; want %s", m, err, kindReady)
	}
	if err := write(old, &message{Kind: kindDone}); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the old process writes with %v, want %v", err, syscall.EPIPE)
	}
}

func TestSettle(t *testing.T) {
	for name, test := range map[string]struct {
		answer string // empty: the end of the old process
		ok     bool
	}{
		"done":         {kindDone, true},
		"the end":      {"", true},
		"another word": {kindFailed, false},
	} {
		old, fresh := unixPair(t)
		go func() {
			defer old.Close()
			if _, err := read(old, stepLimit); err == nil && test.answer != "" {
				write(old, &message{Kind: test.answer})
			}
		}()
		if err := settle(fresh, stepLimit); (err == nil) != test.ok {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// An old process of a version to come, or one that has gone mad.
func FuzzReceiveListeners(f *testing.F) {
	for _, text := range []string{
		"", "\x00", "\x00\x00\x00\x00", "\xff\xff\xff\xff", "\x00\x00\x00\x02{}",
		"\x00\x00\x00\x20" + `{"kind":"listeners","version":1}`,
		"\x00\x00\x00\x2c" + `{"kind":"listeners","version":1,"more":true}`,
		"\x00\x00\x00\x47" + `{"kind":"listeners","version":1,"listeners":[{"address":"a","network":""}]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		old, fresh := unixPair(t)
		go func() {
			defer old.Close()
			old.Write(text)
		}()
		listeners, err := receiveListeners(fresh)
		if len(listeners) > 0 {
			t.Errorf("%d listeners out of nothing, %v", len(listeners), err)
		}
		closeAll(listeners)
	})
}
