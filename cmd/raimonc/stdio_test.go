package main

import (
	"errors"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"
)

// brokenPipe is a standard output that nobody reads any more.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }
func (brokenPipe) Close() error              { return nil }

// What goes wrong with the files of the process is told as that, and a broken input is no end of it.
func TestStdioErrors(t *testing.T) {
	c := newStdio(io.MultiReader(strings.NewReader("hello"), iotest.ErrReader(syscall.EIO)), brokenPipe{})
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	text, err := io.ReadAll(c)
	if string(text) != "hello" || !errors.Is(err, syscall.EIO) || !strings.HasPrefix(err.Error(), "standard input: ") {
		t.Errorf("got %q, %v", text, err)
	}
	for err = nil; err == nil; {
		_, err = c.Write([]byte("hello"))
	}
	if !errors.Is(err, syscall.EPIPE) || !strings.HasPrefix(err.Error(), "standard output: ") {
		t.Errorf("got %v", err)
	}
	c.flush()
}
