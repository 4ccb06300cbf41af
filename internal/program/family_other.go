//go:build !unix

package program

import "os/exec"

// killFamily has nothing to add here: the end of the context kills cmd alone, and what cmd started goes on.
func killFamily(*exec.Cmd) {}
