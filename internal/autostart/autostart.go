// Package autostart has the service manager of this system start a program with the login of a user, and again when it
// fails: a user unit of systemd on Linux, a launchd agent on macOS, a service on Windows.
//
// What is installed names the program where it is now: who moves it has to install it again.
package autostart

import (
	"errors"
)

// Service is a program that is to be started, and calls Run then. Nothing in it is a secret: others may read what is installed.
type Service struct {
	// Name is what the manager calls it: letters and digits of ASCII, '-', '_' and '.'.
	Name string
	// Description is a line for people, in the same characters and spaces.
	Description string
	// Program is the absolute path of the program, Folder that in which it starts.
	Program, Folder string
	Arguments       []string
	// Reload are the arguments with which the program makes a running one read its configuration anew.
	Reload []string
	// Hopeless is the exit status after which another start would not help, where the manager knows such a thing.
	Hopeless int
}

// State is what the manager says of a service that is installed.
type State struct {
	Running bool
	Text    string // for people
}

// Error is what keeps a service from being installed or started.
type Error struct {
	Text string
	Fix  string // what to do; empty if there is nothing to say
	Err  error  // nil: there is no other
}

func (e *Error) Error() string { return e.Text }
func (e *Error) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *Error) Hint() string { return e.Fix }

// ErrNotInstalled is wrapped in the error of whatever needs a service that is not there.
var ErrNotInstalled = errors.New("it is not installed")

// ErrOther is wrapped in the error of whatever is asked of a service of that name that has other arguments.
var ErrOther = errors.New("a service of this name is installed, but starts something else")
