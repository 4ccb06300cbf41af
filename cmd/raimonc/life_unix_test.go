//go:build unix

package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"raimon/internal/commandtest"
	"raimon/internal/tunneltest"
)

// piped is a raimonc whose standard input stays open, as ssh's ProxyCommand sees it.
type piped struct {
	*exec.Cmd
	in     io.WriteCloser
	out    io.ReadCloser
	errors *bytes.Buffer
}

func startStdio(t *testing.T, args ...string) *piped {
	t.Helper()
	s := &piped{Cmd: exec.Command("raimonc", append([]string{"stdio"}, args...)...), errors: new(bytes.Buffer)}
	s.Stderr = s.errors
	var err error
	if s.in, err = s.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if s.out, err = s.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Process.Kill() })
	return s
}

// ended waits for the end and returns the exit status.
func (s *piped) ended(t *testing.T) int {
	t.Helper()
	late := time.AfterFunc(commandtest.Patience, func() { s.Process.Kill() })
	s.Wait()
	if !late.Stop() {
		t.Fatalf("still running after %v", commandtest.Patience)
	}
	return s.ProcessState.ExitCode()
}

// SSH servers speak first.
func TestStdioServerSpeaksFirst(t *testing.T) {
	t.Parallel()
	s := startStdio(t, tunneltest.Serve(t, func(c *net.TCPConn) {
		io.WriteString(c, "SSH-2.0-test\r\n")
		io.Copy(io.Discard, c)
	}))
	banner := make([]byte, len("SSH-2.0-test\r\n"))
	if _, err := io.ReadFull(s.out, banner); err != nil {
		t.Fatal(err)
	}

	s.in.Close()

	if status := s.ended(t); status != 0 || s.errors.Len() > 0 {
		t.Errorf("exit status %d, %q; want a silent end", status, s.errors)
	}
}

func TestStdioEndsWithTheSignal(t *testing.T) {
	t.Parallel()
	s := startStdio(t, tunneltest.Echo(t), "drain=1h")
	io.WriteString(s.in, "x")
	if _, err := io.ReadFull(s.out, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}

	s.Process.Signal(syscall.SIGTERM)

	if status := s.ended(t); status != 1 || !bytes.HasSuffix(s.errors.Bytes(), []byte("raimonc: interrupted\n")) {
		t.Errorf("exit status %d, %q; want 1, interrupted", status, s.errors)
	}
}

// Ssh ends its ProxyCommand with SIGHUP. Nothing is said about that; the status tells whether anything had come.
func TestStdioHangUp(t *testing.T) {
	t.Parallel()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // under nohup, raimonc would be born deaf to it
	for answer, want := range map[string]int{"x": 0, "": 1} {
		reached := make(chan struct{})
		s := startStdio(t, tunneltest.Serve(t, func(c *net.TCPConn) {
			io.WriteString(c, answer)
			close(reached)
			io.Copy(io.Discard, c)
		}), "drain=1h")
		<-reached
		if _, err := io.ReadFull(s.out, make([]byte, len(answer))); err != nil {
			t.Fatal(err)
		}

		s.Process.Signal(syscall.SIGHUP)

		if status := s.ended(t); status != want || s.errors.Len() > 0 {
			t.Errorf("after %q: exit status %d, %q; want %d without a word", answer, status, s.errors, want)
		}
	}
}

// As "raimonc stdio … </dev/zero | head -c 1" does.
func TestStdioEndsWithItsReader(t *testing.T) {
	t.Parallel()
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	cmd := exec.Command("raimonc", "stdio", tunneltest.Echo(t))
	cmd.Stdin = zero
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}

	out.Close()

	s := &piped{Cmd: cmd}
	if status := s.ended(t); status == 0 {
		t.Error("exit status 0 although nobody took the answer")
	}
}

// A remote that resets the connection leaves a message, so that nobody takes the output for complete.
func TestStdioReset(t *testing.T) {
	t.Parallel()
	s := startStdio(t, tunneltest.Serve(t, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
	}))
	io.WriteString(s.in, "x")

	if rest, _ := io.ReadAll(s.out); len(rest) > 0 {
		t.Errorf("got %q", rest)
	}
	if status := s.ended(t); status != 1 || !bytes.Contains(s.errors.Bytes(), []byte("reset")) {
		t.Errorf("exit status %d, %q; want 1 and a word about the reset", status, s.errors)
	}
}
