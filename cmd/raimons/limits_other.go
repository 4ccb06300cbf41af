//go:build !unix

package main

// connectionsThatFit is how many connections may be open at a time: the system sets no limit of its own to a process.
func connectionsThatFit() int { return maxConnections }
