package resolve

import (
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// Every socket of a lookup is kept out of an Android VPN, whose own name lookups would else go into itself.
func TestSocketsAreProtected(t *testing.T) {
	for _, way := range kinds {
		t.Run(string(way), func(t *testing.T) {
			tunneltest.NoLeaks(t)
			s := startNameServer(t)
			path, protected := vpn(t)
			r := s.over(t, way, &tunnel.Dialer{ProtectPath: path})
			lookUp(t, r, "v4.test", "192.0.2.4")
			want := int32(1)
			if way == overUDP {
				want = 2 // one for each question
			}
			if n := protected.Load(); n != want {
				t.Errorf("%d sockets are protected, want %d", n, want)
			}
		})
	}
}

// vpn plays shadowsocks-android, and counts the sockets that it is shown before they are connected.
func vpn(t testing.TB) (path string, protected *atomic.Int32) {
	t.Helper()
	path, protected = filepath.Join(t.TempDir(), "protect_path"), new(atomic.Int32)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if fd, err := receiveDescriptor(c); err != nil {
				t.Errorf("no descriptor: %v", err)
			} else {
				if _, err := unix.Getpeername(fd); err == unix.ENOTCONN {
					protected.Add(1)
				}
				unix.Close(fd)
			}
			c.Write([]byte{0})
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path, protected
}

func receiveDescriptor(c *net.UnixConn) (int, error) {
	b, oob := make([]byte, 8), make([]byte, 64)
	_, n, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err == nil && len(messages) != 1 {
		err = unix.EBADMSG
	}
	if err != nil {
		return -1, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err == nil && len(fds) != 1 {
		err = unix.EBADMSG
	}
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}
