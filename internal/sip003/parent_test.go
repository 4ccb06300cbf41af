package sip003

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"
)

const (
	roleVar  = "SIP003_TEST_ROLE"
	deadline = 20 * time.Second
)

// TestMain lets the test binary play shadowsocks ("parent") and its plugin ("child") too.
func TestMain(m *testing.M) {
	switch os.Getenv(roleVar) {
	case "parent":
		os.Exit(playParent())
	case "child":
		os.Exit(playChild())
	}
	os.Exit(m.Run())
}

// playParent starts the child and waits to be killed, or for the test to end.
func playParent() int {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"=child")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Println("start child:", err)
		return 1
	}
	io.Copy(io.Discard, os.Stdin)
	cmd.Process.Kill()
	cmd.Wait()
	return 0
}

// playChild says when it watches its parent, and how that ended.
func playChild() int {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	err := WatchParent(&watchedContext{Context: ctx, watched: func() { fmt.Println("watching") }}, os.Getppid())
	fmt.Println("ended:", err)
	return 0
}

// watchedContext calls watched when someone first waits for its end: WatchParent knows its parent by then.
type watchedContext struct {
	context.Context
	once    sync.Once
	watched func()
}

func (c *watchedContext) Done() <-chan struct{} {
	c.once.Do(c.watched)
	return c.Context.Done()
}

func TestWatchParentKilled(t *testing.T) {
	parent, lines := startParent(t)
	if got := readLine(t, lines); got != "watching\n" {
		t.Fatalf("got %q from the child, want that it watches", got)
	}

	if err := parent.Kill(); err != nil {
		t.Fatal(err)
	}

	if got := readLine(t, lines); got != "ended: <nil>\n" {
		t.Fatalf("got %q from the child, want its end", got)
	}
	// The child held the last writing end of the pipe.
	if rest, err := io.ReadAll(lines); len(rest) > 0 || err != nil {
		t.Errorf("got %q, %v; want that the child leaves", rest, err)
	}
}

// startParent starts a parent and its child, and returns what the child prints.
func startParent(t testing.TB) (*os.Process, *bufio.Reader) {
	t.Helper()
	out, childOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	defer childOut.Close()
	if err := out.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		t.Logf("no deadline, go test has one: %v", err) // Windows
	}

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"=parent")
	cmd.Stdout, cmd.Stderr = childOut, os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close() // a parent that is still there ends now and takes the child along
		cmd.Wait()
	})
	return cmd.Process, bufio.NewReader(out)
}

func readLine(t testing.TB, r *bufio.Reader) string {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("read from the child: %v after %q", err, line)
	}
	return line
}

func TestWatchParentContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	// The parent, go test, lives: only the end of ctx ends this.
	err := WatchParent(&watchedContext{Context: ctx, watched: cancel}, os.Getppid())
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}
