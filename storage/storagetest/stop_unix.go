//go:build unix

package storagetest

import "syscall"

// stop makes the child stand still, and tells whether that can be done.
func (c *child) stop() bool {
	c.t.Helper()
	c.signal(syscall.SIGSTOP)
	return true
}

func (c *child) goOn() {
	c.t.Helper()
	c.signal(syscall.SIGCONT)
}

func (c *child) signal(sig syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(sig); err != nil {
		c.t.Fatal(err)
	}
}
