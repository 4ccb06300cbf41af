//go:build race

package edge_test

// race tells whether the race detector watches the tests; then it watches the programs as well.
const race = true

// slow is how many times longer short-lived things live here, so that a busy machine renews them in time.
const slow = 2
