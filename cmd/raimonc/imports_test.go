package main

import (
	"os/exec"
	"strings"
	"testing"
)

// The client runs on phones and routers: what only an edge needs stays out of it. Its doctor reads OCSP staples.
func TestClientIsSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "raimon/cmd/raimonc").Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	for _, pkg := range packages {
		for _, tree := range []string{"raimon/edge", "raimon/acme", "raimon/storage", "github.com/caddyserver", "github.com/mholt", "testing"} {
			if pkg == tree || strings.HasPrefix(pkg, tree+"/") {
				t.Errorf("raimonc imports %s", pkg)
			}
		}
	}
	if len(packages) < 50 {
		t.Errorf("go list knows only of %d packages: %q", len(packages), packages)
	}
}
