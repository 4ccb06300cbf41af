package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"raimon/internal/command"
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

// Ssh, which ends its ProxyCommand with SIGHUP, does so also when that has broken: then there is something to tell.
func TestAfterSignal(t *testing.T) {
	hungUp := fmt.Errorf("tls handshake: %w", command.ErrHungUp)
	broken := errors.New("stream was cut")
	gone := fmt.Errorf("standard output: %w", syscall.EPIPE)
	for _, test := range []struct {
		signal, err error
		answered    bool
		want        error
	}{
		{command.ErrHungUp, hungUp, true, nil},
		{command.ErrHungUp, hungUp, false, hungUp}, // which is not told
		{command.ErrHungUp, gone, true, nil},
		{command.ErrHungUp, gone, false, gone},
		{command.ErrHungUp, broken, true, broken},
		{command.ErrHungUp, broken, false, broken},
		{command.ErrHungUp, nil, true, nil},
		{context.Canceled, context.Canceled, true, command.ErrInterrupted},
		{context.Canceled, nil, true, command.ErrInterrupted},
	} {
		if got := afterSignal(test.signal, test.err, test.answered); got != test.want {
			t.Errorf("after %v with %v, answered: %v: got %v, want %v", test.signal, test.err, test.answered, got, test.want)
		}
	}
}
