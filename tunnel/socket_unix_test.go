//go:build unix && !portable

package tunnel_test

import (
	"io"
	"runtime"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

func TestReadNow(t *testing.T) {
	here, there := tunneltest.Pair(t)
	p := make([]byte, 10)
	if n, err := tunnel.ReadNow(here, p); n != 0 || err != nil {
		t.Fatalf("nothing has come: got %d, %v", n, err)
	}
	io.WriteString(there, "hello")
	there.CloseWrite()
	got := readNow(t, here, p)
	if got != "hello" {
		t.Errorf("got %q", got)
	}
	if n, err := tunnel.ReadNow(here, p); n != 0 || err != nil {
		t.Errorf("at the end: got %d, %v", n, err)
	}
	if n, err := here.Read(p); n != 0 || err != io.EOF {
		t.Errorf("the end is lost: got %d, %v", n, err)
	}

	here, there = tunneltest.Pair(t)
	tunnel.ResetOnClose(there)
	there.Close()
	var err error
	for deadline := time.Now().Add(5 * time.Second); err == nil && time.Now().Before(deadline); runtime.Gosched() {
		_, err = tunnel.ReadNow(here, p)
	}
	if !tunnel.IsReset(err) {
		t.Errorf("after a reset: got %v", err)
	}
}

// readNow is what has come, once something has.
func readNow(t *testing.T, c tunnel.Conn, p []byte) string {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		n, err := tunnel.ReadNow(c, p)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			return string(p[:n])
		}
	}
	t.Fatal("nothing has come")
	return ""
}
