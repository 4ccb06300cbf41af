//go:build !unix

package storagetest

// stop makes the child stand still, and tells whether that can be done.
func (c *child) stop() bool { return false }

func (c *child) goOn() {}
