package main

import (
	"io"
	"net"
	"time"
)

// stdio is standard input and output as one connection. Files and terminals know no deadlines; a
// pipe within the process in front of each does.
type stdio struct {
	in, out net.Conn // our ends
	written chan struct{}
}

func newStdio(in io.Reader, out io.WriteCloser) *stdio {
	inOurs, inTheirs := net.Pipe()
	outOurs, outTheirs := net.Pipe()
	c := &stdio{in: inOurs, out: outOurs, written: make(chan struct{})}
	go func() {
		io.Copy(inTheirs, in)
		inTheirs.Close()
	}()
	go func() {
		defer close(c.written)
		io.Copy(out, outTheirs)
		outTheirs.Close() // a reader that has gone away makes our writes fail
		out.Close()
	}()
	return c
}

// flush waits until standard output has everything.
func (c *stdio) flush() { <-c.written }

func (c *stdio) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *stdio) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *stdio) CloseWrite() error           { return c.out.Close() }

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
