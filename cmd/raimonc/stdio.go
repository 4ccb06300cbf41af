package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// stdio is standard input and output as one connection. Files and terminals know no deadlines; a
// pipe within the process in front of each does.
type stdio struct {
	in, out net.Conn // our ends
	written chan struct{}

	answered          atomic.Bool           // something has come from the other end of the tunnel
	inError, outError atomic.Pointer[error] // of the files; set before the pipe ends
}

func newStdio(in io.Reader, out io.WriteCloser) *stdio {
	inOurs, inTheirs := net.Pipe()
	outOurs, outTheirs := net.Pipe()
	c := &stdio{in: inOurs, out: outOurs, written: make(chan struct{})}
	go func() {
		_, err := io.Copy(inTheirs, in)
		if err != nil {
			c.inError.Store(&err)
		}
		inTheirs.Close()
	}()
	go func() {
		defer close(c.written)
		_, err := io.Copy(out, outTheirs)
		if err != nil {
			c.outError.Store(&err)
		}
		outTheirs.Close() // a reader that has gone away makes our writes fail
		out.Close()
	}()
	return c
}

// flush waits until standard output has everything.
func (c *stdio) flush() { <-c.written }

func (c *stdio) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if cause := c.inError.Load(); err == io.EOF && cause != nil {
		err = fmt.Errorf("standard input: %w", *cause) // a target must not take it for the end
	}
	return n, err
}

func (c *stdio) Write(p []byte) (int, error) {
	n, err := c.out.Write(p)
	if n > 0 {
		c.answered.Store(true)
	}
	if cause := c.outError.Load(); errors.Is(err, io.ErrClosedPipe) && cause != nil {
		err = fmt.Errorf("standard output: %w", *cause)
	}
	return n, err
}

func (c *stdio) CloseWrite() error { return c.out.Close() }

func (c *stdio) Close() error {
	c.in.Close()
	return c.out.Close()
}

func (c *stdio) LocalAddr() net.Addr  { return stdioAddr{} }
func (c *stdio) RemoteAddr() net.Addr { return stdioAddr{} }

func (c *stdio) SetDeadline(t time.Time) error {
	c.in.SetReadDeadline(t)
	return c.out.SetWriteDeadline(t)
}
func (c *stdio) SetReadDeadline(t time.Time) error  { return c.in.SetReadDeadline(t) }
func (c *stdio) SetWriteDeadline(t time.Time) error { return c.out.SetWriteDeadline(t) }

type stdioAddr struct{}

func (stdioAddr) Network() string { return "stdio" }
func (stdioAddr) String() string  { return "stdio" }
