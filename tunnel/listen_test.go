package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// listenOn listens until the test ends.
func listenOn(t testing.TB, c ListenConfig, addresses ...string) []net.Listener {
	t.Helper()
	listeners, err := c.Listen(t.Context(), addresses...)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range listeners {
		t.Cleanup(func() { l.Close() })
	}
	return listeners
}

// freePort is a port below those that the system hands out. It is not tried out: a child that another
// test forks meanwhile could hold the trial.
func freePort() string {
	return strconv.Itoa(20000 + rand.IntN(12000))
}

func needIPv6(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("no ipv6: ", err)
	}
	l.Close()
}

// answers reports whether a connection to address is accepted by the operating system.
func answers(address string) bool {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func TestListenBothFamiliesOnOnePort(t *testing.T) {
	needIPv6(t)
	port := freePort()

	listeners := listenOn(t, ListenConfig{}, "[::]:"+port, "0.0.0.0:"+port)

	want := []string{"[::]:" + port, "0.0.0.0:" + port}
	for i, l := range listeners {
		if l.Addr().String() != want[i] {
			t.Errorf("listener %d is at %s, want %s", i, l.Addr(), want[i])
		}
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		if !answers(net.JoinHostPort(host, port)) {
			t.Errorf("nobody answers on %s", host)
		}
	}
}

func TestListenFamilies(t *testing.T) {
	needIPv6(t)
	for _, test := range []struct {
		host   string
		v4, v6 bool
	}{
		{host: "", v4: true, v6: true},
		{host: "[::]", v4: true, v6: true},
		{host: "0.0.0.0", v4: true},
		{host: "127.0.0.1", v4: true},
		{host: "[::1]", v6: true},
	} {
		l := listenOn(t, ListenConfig{}, test.host+":0")[0]
		_, port, _ := net.SplitHostPort(l.Addr().String())
		if v4 := answers("127.0.0.1:" + port); v4 != test.v4 {
			t.Errorf("%q answers on ipv4: %v, want %v", test.host, v4, test.v4)
		}
		if v6 := answers("[::1]:" + port); v6 != test.v6 {
			t.Errorf("%q answers on ipv6: %v, want %v", test.host, v6, test.v6)
		}
	}
}

func TestListenSeveralPortsStayDualStack(t *testing.T) {
	needIPv6(t)
	first, second := freePort(), freePort()

	listenOn(t, ListenConfig{}, "[::]:"+first, "[::]:"+second)

	for _, port := range []string{first, second} {
		if !answers("127.0.0.1:" + port) {
			t.Errorf("port %s does not answer on ipv4", port)
		}
	}
}

func TestListenPortInUse(t *testing.T) {
	taken := listenOn(t, ListenConfig{}, "127.0.0.1:0")[0].Addr().String()
	free := "127.0.0.1:" + freePort()

	listeners, err := (&ListenConfig{}).Listen(t.Context(), free, taken)

	if !errors.Is(err, syscall.EADDRINUSE) || listeners != nil {
		t.Errorf("got %v, %v, want EADDRINUSE", listeners, err)
	}
	if !strings.Contains(fmt.Sprint(err), taken) {
		t.Errorf("%v does not say which address", err)
	}
	if answers(free) {
		t.Error("the other listener was left open")
	}
}

func TestListenNothing(t *testing.T) {
	if l, err := (&ListenConfig{}).Listen(t.Context()); err == nil {
		t.Errorf("got %v, want an error", l)
	}
	if l, err := (&ListenConfig{}).Listen(t.Context(), "127.0.0.1"); err == nil {
		t.Errorf("got %v, want an error", l)
	}
}

func TestLacksIPv6(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want bool
	}{
		{"[::]:80", errAddressFamily, true},
		{"[2001:db8::1]:80", errAddressFamily, true},
		{"[::1]:80", errAddressMissing, true},
		{"[2001:db8::1]:80", errAddressMissing, false}, // a mistyped address
		{"[::]:80", errAddressInUse, false},
		{"127.0.0.1:80", errAddressMissing, false},
		{"example.com:80", errAddressFamily, false},
		{"[::]:80", nil, false},
	} {
		if got := lacksIPv6(test.name, test.err); got != test.want {
			t.Errorf("lacksIPv6(%q, %v) = %v", test.name, test.err, got)
		}
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")

	l := listenOn(t, ListenConfig{FastOpen: true}, "unix:"+path)[0]
	c, err := (&Dialer{FastOpen: true}).Dial(t.Context(), "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.(*net.UnixConn); !ok {
		t.Errorf("got %T, want a bare *net.UnixConn", c)
	}

	l.Close()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close the file is still there: %v", err)
	}
}

func TestListenUnixReplacesStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false) // as after kill -9
	dead.Close()

	listenOn(t, ListenConfig{}, "unix:"+path)

	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestListenUnixInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listenOn(t, ListenConfig{}, "unix:"+path)

	_, err := (&ListenConfig{}).Listen(t.Context(), "unix:"+path)

	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v, want EADDRINUSE", err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first listener is gone: %v", err)
	} else {
		c.Close()
	}
}

func TestListenUnixKeepsFiles(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Skip(err)
	}
	for _, path := range []string{file, link, dir} {
		_, err := (&ListenConfig{}).Listen(t.Context(), "unix:"+path)
		if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want fs.ErrExist", path, err)
		}
	}
	if b, err := os.ReadFile(link); string(b) != "precious" {
		t.Errorf("the file now holds %q, %v", b, err)
	}
}

func TestListenNeverUDP(t *testing.T) {
	address := listenOn(t, ListenConfig{}, "127.0.0.1:0")[0].Addr().String()
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestListenEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if l, err := (&ListenConfig{}).Listen(ctx, "name.invalid:0"); err == nil {
		t.Errorf("got %v, want an error", l)
	}
}
