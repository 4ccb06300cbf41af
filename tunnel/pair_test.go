package tunnel

import (
	"io"
	"math/rand/v2"
	"net"
	"testing"
)

// socketPair returns the two ends of a TCP connection over loopback.
func socketPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); d.Close() })
	return c.(*net.TCPConn), d.(*net.TCPConn)
}

// noise gives the same random bytes for the same seed.
func noise(seed byte) io.Reader { return rand.NewChaCha8([32]byte{seed}) }
