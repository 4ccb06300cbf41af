//go:build unix

package main

import "golang.org/x/sys/unix"

// connectionsThatFit is how many connections the soft limit of open files allows; package os has made it the hard one.
// A tunnel needs two descriptors, and while bytes move it may borrow some. What is left is for listeners, files, the
// storage and the CA.
func connectionsThatFit() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return maxConnections // nothing is known to be in the way
	}
	return fitting(uint64(limit.Cur)) // signed on some systems, where unlimited is the largest number
}
