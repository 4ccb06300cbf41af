package tunnel_test

import (
	"testing"

	"raimon/internal/tunneltest"
)

func TestConformance(t *testing.T) {
	tunneltest.NoLeaks(t)
	for _, tr := range tunneltest.Transports(t, tunneltest.NewCA(t)) {
		t.Run(tr.Name, func(t *testing.T) { tunneltest.Conformance(t, tr) })
	}
}
