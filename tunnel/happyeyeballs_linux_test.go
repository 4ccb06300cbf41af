package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A name whose IPv6 address is a black hole costs 250 ms once, and then nothing.
func TestRaceBlackHole(t *testing.T) {
	leavesNothing(t)
	needIPv6(t)
	port := strconv.Itoa(fullListener(t, "[::1]:0"))
	accepting(t, "127.0.0.1", port)
	d := &Dialer{Resolver: namesOf("::1", "127.0.0.1")}

	ip, first := dialedIP(t, d, "edge.test:"+port)
	if ip != "127.0.0.1" || first < attemptDelay || first > attemptDelay+150*time.Millisecond {
		t.Errorf("first: %s after %v, want 127.0.0.1 after %v", ip, first, attemptDelay)
	}
	ip, second := dialedIP(t, d, "edge.test:"+port)
	if ip != "127.0.0.1" || second > attemptDelay/2 {
		t.Errorf("second: %s after %v, want 127.0.0.1 at once", ip, second)
	}
	t.Logf("first %v, second %v", first, second)
}

// More dead addresses than may be tried at a time leave time for the living one at their end.
func TestRaceTriesEveryAddress(t *testing.T) {
	leavesNothing(t)
	port := fullListener(t, "127.0.0.2:0")
	dead := []string{"127.0.0.2"}
	for i := 3; i < 8; i++ {
		ip := fmt.Sprintf("127.0.0.%d", i)
		fullListener(t, fmt.Sprintf("%s:%d", ip, port))
		dead = append(dead, ip)
	}
	accepting(t, "127.0.0.8", strconv.Itoa(port))
	address := fmt.Sprintf("edge.test:%d", port)

	d := &Dialer{Resolver: namesOf(append(dead, "127.0.0.8")...)}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	c, err := d.Dial(ctx, address)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()

	// All dead: each is in the error, in one line.
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = (&Dialer{Resolver: namesOf(dead...)}).Dial(ctx, address)
	if !errors.Is(err, context.DeadlineExceeded) || strings.Count(err.Error(), "no answer") != 1 || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want one line that says once that there was no answer", err)
	}
	for _, ip := range dead {
		if err != nil && !strings.Contains(err.Error(), ip) {
			t.Errorf("%s is not in %q", ip, err)
		}
	}
}

// Loopback answers at once, so that two attempts can be seen to be under way only where none does.
func TestRaceEndsAttempts(t *testing.T) {
	leavesNothing(t)
	port := fullListener(t, "127.0.0.2:0")
	fullListener(t, fmt.Sprintf("127.0.0.3:%d", port))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	sockets := openSockets()
	go func() {
		_, err := (&Dialer{Resolver: namesOf("127.0.0.2", "127.0.0.3")}).Dial(ctx, fmt.Sprintf("edge.test:%d", port))
		ended <- err
	}()
	waitFor(t, func() bool { return openSockets() == sockets+2 })
	begin := time.Now()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || time.Since(begin) > time.Second {
		t.Errorf("got %v after %v, want it cancelled at once", err, time.Since(begin))
	}
	if n := openSockets(); n != sockets {
		t.Errorf("%d sockets are left", n-sockets)
	}
}

// Every attempt is marked.
func TestRaceAppliesMarks(t *testing.T) {
	leavesNothing(t)
	port := accepting(t, "127.0.0.1", "0")
	c, err := (&Dialer{Fwmark: 9, Resolver: namesOf("127.0.0.2", "127.0.0.1")}).Dial(t.Context(), "edge.test:"+port)
	if errors.Is(err, syscall.EPERM) {
		t.Skip("fwmark needs CAP_NET_ADMIN: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if mark := socketOption(t, c, unix.SOL_SOCKET, unix.SO_MARK); mark != 9 {
		t.Errorf("the mark is %d, want 9", mark)
	}
}

// inNamespace runs the rest of the test in a process with a network of its own, where fast open
// needs no cookie: each connect that asks for it returns at once.
func inNamespace(t *testing.T) (inside bool) {
	const mark = "RAIMON_TEST_NAMESPACE"
	if os.Getenv(mark) == t.Name() {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			t.Skipf("needs ip: %v: %s", err, out)
		}
		// Client, server, and both without cookies.
		if err := os.WriteFile("/proc/sys/net/ipv4/tcp_fastopen", []byte("519"), 0); err != nil {
			t.Skip("needs sysctl: ", err)
		}
		return true
	}
	command := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	command.Env = append(os.Environ(), mark+"="+t.Name())
	command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := command.CombinedOutput()
	switch {
	case errors.Is(err, syscall.EPERM):
		t.Skip("needs a network namespace: ", err)
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("%s", out)
	}
	return false
}

// With fast open, a connection to a dead address is there at once. It must not win.
func TestRaceWithFastOpen(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	leavesNothing(t)
	port := accepting(t, "127.0.0.3", "0")
	address := "edge.test:" + port
	resolver := namesOf("127.0.0.2", "127.0.0.3")
	d := &Dialer{FastOpen: true, Resolver: resolver}
	deferred := func() bool {
		t.Helper()
		c, err := d.Dial(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if ip, _, _ := net.SplitHostPort(c.RemoteAddr().String()); ip != "127.0.0.3" {
			t.Errorf("connected to %s, where nobody is", ip)
		}
		raw, err := c.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var info *unix.TCPInfo
		err = withDescriptor(raw, func(fd uintptr) (err error) {
			info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		const synSent = 2
		return info.State == synSent
	}
	if deferred() {
		t.Error("the first connection is only a promise")
	}
	if !deferred() {
		t.Error("fast open does not go to the address that has just worked")
	}
	// Promises do not vouch for more of them.
	d.memory.names[0].proven = time.Now().Add(-fastOpenTrust)
	if deferred() {
		t.Error("nobody has seen it live for a while, and yet it is only a promise")
	}
	// Where there is no choice there is no race.
	resolver.set("127.0.0.3")
	d.Forget()
	if !deferred() {
		t.Error("fast open does not go to the only address")
	}
}
