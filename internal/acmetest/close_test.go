package acmetest_test

import (
	"os"
	"runtime"
	"testing"

	"raimon/internal/acmetest"
)

// A CA leaves nothing behind but one goroutine of Pebble's, and its temporary folder is gone.
func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	ca, err := acmetest.Start(acmetest.Config{OCSP: true})
	if err != nil {
		t.Fatal(err)
	}
	c, s := newClient(t, ca), newSite(t, ca)
	mustObtain(t, c, s, "example.com")
	mustObtain(t, c, zone{ca.DNS}, "example.com")

	if err := ca.Close(); err != nil {
		t.Error(err)
	}
	if err := ca.Close(); err != nil {
		t.Errorf("the second time: %v", err)
	}

	c.HTTPClient.CloseIdleConnections()
	s.server.Close()
	waitFor(t, "end of goroutines", func() bool { return runtime.NumGoroutine() <= before+1 })
	if t.Failed() {
		stacks := make([]byte, 1<<20)
		t.Logf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
	}
	if _, err := os.Stat(ca.Root.File); !os.IsNotExist(err) {
		t.Errorf("%s: %v", ca.Root.File, err)
	}
}
