package client

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"raimon/internal/tunneltest"
)

// A kernel that cannot make short pauses keeps its own patience too.
func TestHurry(t *testing.T) {
	t.Parallel()
	c, err := net.Dial("tcp", tunneltest.Echo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	option := func(name int) (value time.Duration, err error) {
		raw, rawErr := c.(*net.TCPConn).SyscallConn()
		if rawErr != nil {
			t.Fatal(rawErr)
		}
		raw.Control(func(fd uintptr) {
			var n int
			n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, name)
			value = time.Duration(n) * time.Millisecond
		})
		return value, err
	}
	usual, err := option(unix.TCP_RTO_MAX_MS)
	canHurry := err == nil
	for _, hurried := range []bool{true, false, true, true, false} {
		hurry(c, hurried)
		patience, pause := time.Duration(0), usual
		if hurried && canHurry {
			patience, pause = hurriedFor, hurriedPause
		}
		if got, err := option(unix.TCP_USER_TIMEOUT); err != nil || got != patience {
			t.Errorf("in a hurry=%v it is given up after %v (%v), want %v", hurried, got, err, patience)
		}
		if got, err := option(unix.TCP_RTO_MAX_MS); canHurry && (err != nil || got != pause) {
			t.Errorf("in a hurry=%v the longest pause is %v (%v), want %v", hurried, got, err, pause)
		}
	}
	hurry(&local{}, true) // nothing to do
}
