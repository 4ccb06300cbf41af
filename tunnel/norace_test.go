//go:build !race

package tunnel

// RaceEnabled asks for less of what the race detector makes slow.
const RaceEnabled = false
