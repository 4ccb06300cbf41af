package commandtest

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// Dial connects to a process; the connection is closed with the test and has Patience as deadline.
func Dial(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(Patience))
	return c.(*net.TCPConn)
}

// Echoed sends something and wants it back.
func Echoed(t testing.TB, c net.Conn) {
	t.Helper()
	want := []byte("hello")
	if _, err := c.Write(want); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %q, %v; want %q back", got, err, want)
	}
}
