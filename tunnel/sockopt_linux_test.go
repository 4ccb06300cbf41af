package tunnel

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketOption reads an integer option of c, which is a connection or a listener.
func socketOption(t testing.TB, c any, level, option int) int {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var value int
	err = withDescriptor(raw, func(fd uintptr) (err error) {
		value, err = unix.GetsockoptInt(int(fd), level, option)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestNoDelayAndKeepAlive(t *testing.T) {
	l := listenOn(t, ListenConfig{}, "127.0.0.1:0")[0]
	dialed, err := (&Dialer{}).Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialed.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()

	for name, c := range map[string]net.Conn{"dialed": dialed, "accepted": accepted} {
		if socketOption(t, c, unix.IPPROTO_TCP, unix.TCP_NODELAY) == 0 {
			t.Errorf("%s: no TCP_NODELAY", name)
		}
		if socketOption(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE) == 0 {
			t.Errorf("%s: no SO_KEEPALIVE", name)
		}
		for option, want := range map[int]int{unix.TCP_KEEPIDLE: 15, unix.TCP_KEEPINTVL: 15, unix.TCP_KEEPCNT: 9} {
			if got := socketOption(t, c, unix.IPPROTO_TCP, option); got != want {
				t.Errorf("%s: option %d of tcp(7) is %d, want %d", name, option, got, want)
			}
		}
	}
}

func TestFastOpen(t *testing.T) {
	l := listenOn(t, ListenConfig{FastOpen: true}, "127.0.0.1:0")[0]
	if queue := socketOption(t, l, unix.IPPROTO_TCP, unix.TCP_FASTOPEN); queue != fastOpenQueue {
		t.Errorf("the listener's queue is %d, want %d", queue, fastOpenQueue)
	}
	// The first connection gets the cookie, the others may use it.
	for range 3 {
		c, err := (&Dialer{FastOpen: true}).Dial(t.Context(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if socketOption(t, c, unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT) != 1 {
			t.Error("the dialed socket has no TCP_FASTOPEN_CONNECT")
		}
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		c.CloseWrite()
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		if b, err := io.ReadAll(accepted); string(b) != "hello" {
			t.Errorf("got %q, %v", b, err)
		}
	}
}

func TestFwmark(t *testing.T) {
	listeners, err := (&ListenConfig{Fwmark: 7}).Listen(t.Context(), "127.0.0.1:0")
	if errors.Is(err, syscall.EPERM) {
		t.Skip("fwmark needs CAP_NET_ADMIN: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	l := listeners[0]
	defer l.Close()
	c, err := (&Dialer{Fwmark: 1<<31 + 5}).Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	if mark := uint32(socketOption(t, l, unix.SOL_SOCKET, unix.SO_MARK)); mark != 7 {
		t.Errorf("the listener's mark is %d, want 7", mark)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if mark := socketOption(t, accepted, unix.SOL_SOCKET, unix.SO_MARK); mark != 7 {
		t.Errorf("the accepted socket's mark is %d, want 7", mark)
	}
	if mark := uint32(socketOption(t, c, unix.SOL_SOCKET, unix.SO_MARK)); mark != 1<<31+5 {
		t.Errorf("the dialed socket's mark is %d, want %d", mark, uint32(1<<31+5))
	}
}

// A new network namespace has no address at all, and so no IPv6.
func TestListenWithoutIPv6(t *testing.T) {
	var listeners []net.Listener
	var listenErr, aloneErr, unshareErr error
	var log bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unshareErr = unix.Unshare(unix.CLONE_NEWNET); unshareErr != nil {
			return
		}
		c := ListenConfig{Log: slog.New(slog.NewTextHandler(&log, nil))}
		listeners, listenErr = c.Listen(context.Background(), "[::1]:0", "0.0.0.0:0")
		_, aloneErr = c.Listen(context.Background(), "[::1]:0")
	}()
	<-done
	if unshareErr != nil {
		t.Skip("needs a network namespace: ", unshareErr)
	}
	if listenErr != nil || len(listeners) != 1 {
		t.Fatalf("got %v, %v, want the ipv4 listener", listeners, listenErr)
	}
	defer listeners[0].Close()
	if !strings.Contains(log.String(), "no ipv6 here") || !strings.Contains(log.String(), "[::1]:0") {
		t.Errorf("the log says %q", log.String())
	}
	if !errors.Is(aloneErr, syscall.EADDRNOTAVAIL) {
		t.Errorf("[::1] alone: got %v, want EADDRNOTAVAIL", aloneErr)
	}
}

// vpn plays shadowsocks-android: it takes one descriptor from each connection, shows it to look, and sends answer.
func vpn(t testing.TB, answer []byte, look func(fd int)) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "protect_path")
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
			defer c.Close()
			b, oob := make([]byte, 8), make([]byte, 64)
			n, oobn, _, _, err := c.ReadMsgUnix(b, oob)
			if err != nil || n != 1 {
				t.Errorf("received %d bytes, %v, want 1", n, err)
				continue
			}
			messages, err := unix.ParseSocketControlMessage(oob[:oobn])
			if err != nil || len(messages) != 1 {
				t.Errorf("control messages %v, %v", messages, err)
				continue
			}
			fds, err := unix.ParseUnixRights(&messages[0])
			if err != nil || len(fds) != 1 {
				t.Errorf("descriptors %v, %v", fds, err)
				continue
			}
			look(fds[0])
			unix.Close(fds[0])
			c.Write(answer)
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

func TestProtect(t *testing.T) {
	leavesNothing(t)
	l := listenOn(t, ListenConfig{}, "127.0.0.1:0")[0]
	var seen unix.Stat_t
	path := vpn(t, []byte{0}, func(fd int) {
		if _, err := unix.Getpeername(fd); err != unix.ENOTCONN {
			t.Errorf("the socket is connected before it is protected: %v", err)
		}
		unix.Fstat(fd, &seen)
	})

	c, err := (&Dialer{ProtectPath: path}).Dial(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	var dialed unix.Stat_t
	raw, _ := c.(*net.TCPConn).SyscallConn()
	raw.Control(func(fd uintptr) { unix.Fstat(int(fd), &dialed) })
	if seen.Ino == 0 || seen.Ino != dialed.Ino {
		t.Errorf("the vpn saw socket %d, dialed was %d", seen.Ino, dialed.Ino)
	}
}

func TestProtectRefused(t *testing.T) {
	leavesNothing(t)
	l := listenOn(t, ListenConfig{}, "127.0.0.1:0")[0]
	for answer, want := range map[string]string{"\x01": "refused with 1", "": "protect"} {
		ctx, cancel := context.WithCancel(t.Context())
		path := vpn(t, []byte(answer), func(int) {
			if answer == "" {
				cancel() // it would stay silent for protectTimeout
			}
		})
		c, err := (&Dialer{ProtectPath: path}).Dial(ctx, l.Addr().String())
		cancel()
		if err == nil || answer != "" && !strings.Contains(err.Error(), want) {
			t.Errorf("answer %q: got %v, %v, want an error with %q", answer, c, err, want)
		}
	}
	_, err := (&Dialer{ProtectPath: filepath.Join(t.TempDir(), "none")}).Dial(t.Context(), l.Addr().String())
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody to protect: got %v, want fs.ErrNotExist", err)
	}
}

// fullListener listens at address, as package net writes it, with a queue that is full, so that
// further connections get no answer at all. Port 0 finds one.
func fullListener(t testing.TB, address string) (port int) {
	t.Helper()
	want := netip.MustParseAddrPort(address)
	domain, sockaddr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(want.Port())})
	if want.Addr().Is4() {
		sockaddr.(*unix.SockaddrInet4).Addr = want.Addr().As4()
	} else {
		domain, sockaddr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(want.Port()), Addr: want.Addr().As16()}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, sockaddr); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch bound := bound.(type) {
	case *unix.SockaddrInet4:
		port = bound.Port
	case *unix.SockaddrInet6:
		port = bound.Port
	}
	// A queue of 0 holds one connection.
	first, err := net.Dial("tcp", netip.AddrPortFrom(want.Addr(), uint16(port)).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { first.Close() })
	return port
}

// A first address that never answers leaves time for the second of the same family.
func TestDialPassesDeadAddress(t *testing.T) {
	leavesNothing(t)
	port := fullListener(t, "127.0.0.2:0")
	l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if errors.Is(err, syscall.EADDRINUSE) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	greet(t, l, "")
	var server nameServer
	server.set("127.0.0.2", "127.0.0.1")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()

	c, err := (&Dialer{Resolver: resolverFor(t, &server)}).Dial(ctx, "edge.test:"+strconv.Itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.RemoteAddr().String(); got != l.Addr().String() {
		t.Errorf("connected to %s, want %s", got, l.Addr())
	}
}
