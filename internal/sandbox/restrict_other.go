//go:build !linux

package sandbox

import "runtime"

// Restrict does nothing: this system has no Landlock.
func Restrict(Paths) (*Sandbox, error) {
	return &Sandbox{State: "off: there is no landlock on " + runtime.GOOS}, nil
}
