package tunnel

import (
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func TestHealth(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	before := HealthOf(c)
	if !before.Known {
		t.Skip("this system says nothing about its peers")
	}
	for range 3 {
		if _, err := io.WriteString(c, "word"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	after := HealthOf(asSocket(c.(Conn)))
	if after.InFlight != 0 || after.Timeouts != 0 || after.Probes != 0 || after.RoundTrip <= 0 || after.Answers < before.Answers+12 {
		t.Errorf("%+v, and then %+v", before, after)
	}
	c.Close()
	if got := HealthOf(c); got != (Health{}) {
		t.Errorf("of a closed connection: %+v", got)
	}
}

func TestHealthUnknown(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Skip(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	pipe, other := net.Pipe()
	defer pipe.Close()
	defer other.Close()
	for _, c := range []net.Conn{c, pipe} {
		if got := HealthOf(c); got != (Health{}) {
			t.Errorf("%T: %+v", c, got)
		}
	}
}
