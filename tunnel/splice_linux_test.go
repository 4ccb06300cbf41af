//go:build !portable

package tunnel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/gobwas/ws"
	"golang.org/x/sys/unix"
)

// flood sends n bytes of noise through the Relay between near and far, both ways, and checks them.
func flood(t testing.TB, near, far *net.TCPConn, n int64) {
	t.Helper()
	errs := make(chan error, 2)
	send := func(c *net.TCPConn, seed byte) {
		_, err := io.CopyN(struct{ io.Writer }{c}, noise(seed), n)
		c.CloseWrite()
		errs <- err
	}
	go send(near, 1)
	go send(far, 2)
	for c, seed := range map[*net.TCPConn]byte{far: 1, near: 2} {
		got, want := sha256.New(), sha256.New()
		io.CopyN(want, noise(seed), n)
		m, err := io.Copy(got, struct{ io.Reader }{c})
		if err != nil || m != n {
			t.Fatalf("received %d bytes of %d, %v", m, n, err)
		}
		if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Fatal("received other bytes than were sent")
		}
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

// relayed runs a Relay between two pairs and returns the outer ends. wrap makes the Conn of each inner one.
func relayed(t testing.TB, wrapA, wrapB func(Conn) Conn) (near, far *net.TCPConn, done chan error) {
	t.Helper()
	near, a := socketPair(t)
	b, far := socketPair(t)
	done = make(chan error, 1)
	go func() {
		_, _, err := Relay(context.Background(), wrapA(a), wrapB(b), time.Minute)
		a.Close()
		b.Close()
		done <- err
	}()
	return near, far, done
}

func bare(c Conn) Conn { return c }

// TestSpliceMovesBulk checks that a flood stays in the kernel, and that no pipe is kept.
func TestSpliceMovesBulk(t *testing.T) {
	near, a := socketPair(t)
	b, far := socketPair(t)
	go func() {
		io.CopyN(struct{ io.Writer }{near}, noise(1), 16<<20)
		near.CloseWrite()
	}()
	go io.Copy(io.Discard, struct{ io.Reader }{far})
	d := &direction{src: asSocket(a), dst: asSocket(b)}
	for moved := 0; moved < 16<<20; {
		n, err := d.splice()
		if n == 0 || err != nil {
			t.Fatalf("after %d bytes: spliced %d, %v", moved, n, err)
		}
		moved += n
	}
	if _, err := d.splice(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	pipes.closeIdle()
	if pipes.open != 0 {
		t.Errorf("%d pipes are still lent", pipes.open)
	}
}

func TestSpliceFrames(t *testing.T) {
	w := &WebSocket{Host: "localhost", Path: "/"}
	client := func(c Conn) Conn { return newFrames(c, true, w, peerRaimon, nil) }
	server := func(c Conn) Conn { return newFrames(c, false, w, peerRaimon, nil) }
	near, x := socketPair(t)
	b, far := socketPair(t)
	y, a := socketPair(t)
	errs := make(chan error, 2)
	relay := func(p, q Conn, bottoms ...*net.TCPConn) {
		_, _, err := Relay(context.Background(), p, q, time.Minute)
		for _, c := range bottoms {
			c.Close()
		}
		errs <- err
	}
	go relay(x, client(y), x, y)
	go relay(server(a), b, a, b)
	flood(t, near, far, 64<<20)
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// Frames are spliced too: what comes for one, and what comes in one that is large enough.
func TestFramesAreSpliced(t *testing.T) {
	w := &WebSocket{Host: "localhost", Path: "/"}
	for name, upwards := range map[string]bool{"up": true, "down": false} {
		t.Run(name, func(t *testing.T) {
			near, x := socketPair(t)
			y, a := socketPair(t)
			b, far := socketPair(t)
			go io.Copy(io.Discard, struct{ io.Reader }{far})
			if _, err := near.Write(make([]byte, 100<<10)); err != nil {
				t.Fatal(err)
			}
			up := &direction{src: asSocket(x), dst: newFrames(asSocket(y), upwards, w, peerRaimon, nil)}
			if n, err := up.splice(); n == 0 || err != nil {
				t.Errorf("into a frame: spliced %d, %v", n, err)
			}
			in := newFrames(asSocket(a), !upwards, w, peerRaimon, nil)
			first, err := readBuffer(in, probeSize) // as copy does before it knows of a flood
			if err != nil {
				t.Fatal(err)
			}
			first.free()
			down := &direction{src: in, dst: asSocket(b)}
			if n, err := down.splice(); n == 0 || err != nil {
				t.Errorf("out of a frame: spliced %d, %v", n, err)
			}
		})
	}
}

// Another raimon gets frames of several pipes, where so much has come already; anybody else such of one.
func TestFrameOfSeveralPipes(t *testing.T) {
	w := &WebSocket{Host: "localhost", Path: "/"}
	for name, tt := range map[string]struct {
		peer peerKind
		want int
	}{"raimon": {peerRaimon, frameParts * framePart}, "unknown": {peerUnknown, framePart}} {
		t.Run(name, func(t *testing.T) {
			const n = frameParts*framePart + 1000
			near, x := socketPair(t)
			y, a := socketPair(t)
			src := asSocket(x).(*socket)
			err := withDescriptor(src.raw, func(fd uintptr) error {
				return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
			})
			if err != nil {
				t.Skipf("only root may have so much queued: %v", err)
			}
			go io.CopyN(struct{ io.Writer }{near}, noise(1), n)
			for end := time.Now().Add(10 * time.Second); src.queued() < n; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Skipf("this system does not queue so much (tcp_rmem): %d bytes of %d", src.queued(), n)
				}
			}
			moved := make(chan int, 1)
			go func() {
				d := &direction{src: src, dst: newFrames(asSocket(y), false, w, tt.peer, nil)}
				m, err := d.splice()
				if err != nil {
					t.Error(err)
				}
				moved <- m
			}()
			a.SetReadDeadline(time.Now().Add(time.Minute))
			h, err := ws.ReadHeader(a)
			if err != nil || h.Length != int64(tt.want) {
				t.Fatalf("a frame of %d bytes, want %d; %v", h.Length, tt.want, err)
			}
			got, want := make([]byte, tt.want), make([]byte, tt.want)
			io.ReadFull(noise(1), want)
			if _, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, want) {
				t.Errorf("other bytes than were sent, or not all of them: %v", err)
			}
			if m := <-moved; m != tt.want {
				t.Errorf("moved %d bytes, want %d", m, tt.want)
			}
		})
	}
}

// What a unix socket says that it has queued has urgent bytes in it, which nobody gets: no frame may wait for them.
func TestUrgentDataOfUnixSocket(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, x := unixConn(t, fds[0]), unixConn(t, fds[1])
	raw, err := near.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = withDescriptor(raw, func(fd uintptr) error {
		return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20)
	})
	if err != nil {
		t.Skipf("only root may have so much queued: %v", err)
	}
	near.SetDeadline(time.Now().Add(time.Minute))
	near.Write(make([]byte, framePart+1))
	if err := withDescriptor(raw, func(fd uintptr) error { return unix.Send(int(fd), []byte{'!'}, unix.MSG_OOB) }); err != nil {
		t.Skipf("unix sockets of this kernel know no urgent data: %v", err)
	}
	near.Write(make([]byte, framePart-2))
	near.CloseWrite()

	y, a := socketPair(t)
	go func() {
		d := &direction{src: asSocket(x), dst: newFrames(asSocket(y), false, &WebSocket{}, peerRaimon, nil), bulk: true}
		if err := d.copy(); err != nil {
			t.Error(err)
		}
		y.CloseWrite()
	}()
	f := newFrames(a, true, &WebSocket{}, peerUnknown, nil)
	f.SetDeadline(time.Now().Add(time.Minute))
	if got, err := io.ReadAll(f); len(got) != 2*framePart-1 || err != nil {
		t.Errorf("%d bytes, %v, want %d", len(got), err, 2*framePart-1)
	}
}

func unixConn(t testing.TB, fd int) *net.UnixConn {
	t.Helper()
	file := os.NewFile(uintptr(fd), "unix")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

// TestWithoutPipes checks that bytes are copied when no pipe is to be had.
func TestWithoutPipes(t *testing.T) {
	pipes.mu.Lock()
	open := pipes.open
	pipes.open = maxPipes
	idle := pipes.idle
	pipes.idle = nil
	pipes.mu.Unlock()
	t.Cleanup(func() {
		pipes.mu.Lock()
		pipes.open, pipes.idle = open, idle
		pipes.mu.Unlock()
	})
	near, far, done := relayed(t, bare, bare)
	flood(t, near, far, 16<<20)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func capacity(t *testing.T, p *pipe) int {
	n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, uintptr(p.w), 1032 /* F_GETPIPE_SZ */, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	return int(n)
}

// TestPipesOfUnprivilegedUser runs itself as a user whose share of pipe memory ends (pipe(7)): pipes
// then hold 8 KiB, which is worse than copying.
func TestPipesOfUnprivilegedUser(t *testing.T) {
	if os.Getenv("RAIMON_TEST_PIPES") != "" {
		var small []int
		for range 2000 { // 8 KiB each after the share of 64 MiB
			var fds [2]int
			if err := syscall.Pipe2(fds[:], 0); err != nil {
				break
			}
			syscall.Syscall(syscall.SYS_FCNTL, uintptr(fds[0]), 1031 /* F_SETPIPE_SZ */, 1<<20)
			small = append(small, fds[0])
		}
		t.Logf("%d pipes taken before", len(small))
		if p := openPipe(); p != nil && capacity(t, p) < smallestPipe {
			t.Errorf("a pipe of %d bytes", capacity(t, p))
		}
		near, far, done := relayed(t, bare, bare)
		flood(t, near, far, 16<<20)
		if err := <-done; err != nil {
			t.Error(err)
		}
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "raimon")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/test", self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(dir+"/test", "-test.run=^TestPipesOfUnprivilegedUser$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "RAIMON_TEST_PIPES=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
