//go:build !race

package edge_test

// raceEnabled asks for less of what the race detector makes slow.
const raceEnabled = false
