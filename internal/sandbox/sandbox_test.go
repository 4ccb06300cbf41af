package sandbox_test

import (
	"testing"

	"raimon/internal/sandbox"
)

func TestNothingIsMissingWithoutWalls(t *testing.T) {
	var none *sandbox.Sandbox
	for _, s := range []*sandbox.Sandbox{none, {State: "off: for a test"}} {
		if missing := s.Missing(sandbox.Paths{Read: []string{"/nowhere"}}); len(missing) > 0 {
			t.Errorf("missing are %v", missing)
		}
	}
}
