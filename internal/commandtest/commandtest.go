// Package commandtest runs raimons and raimonc as their users do: as processes, with arguments and an
// environment in, log lines and an exit status out.
//
// It is for the tests in cmd/raimons and cmd/raimonc, whose TestMain has to be Main.
package commandtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// Patience is how long a test waits for what has to happen.
const Patience = 20 * time.Second

// gorace keeps the race detector from holding up each end of a process for a second.
const gorace = "atexit_sleep_ms=0"

// Main runs the tests of the program own and exits. Both programs are in PATH meanwhile: own is the test
// binary itself, so the race detector watches it where it watches the tests; other is built.
func Main(m *testing.M, own string, main func(), other string) {
	testscript.Main(&withOther{m, other}, map[string]func(){own: main})
}

// withOther builds the other program before the tests. Main also runs in every process of own: there
// Run is not called.
type withOther struct {
	*testing.M
	other string
}

func (m *withOther) Run() int {
	return WithPrograms(m.M, func(dir string) error {
		build := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "raimon/cmd/"+m.other)
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", m.other, err, out)
		}
		return nil
	})
}

// WithPrograms runs the tests and returns their exit status. The folder into which build puts programs is
// first in PATH meanwhile, and other users may run what is in it.
func WithPrograms(m *testing.M, build func(dir string) error) int {
	dir, err := os.MkdirTemp("", "commandtest")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// A proxy in the environment of the tests is no part of them.
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		os.Unsetenv(name)
	}
	os.Setenv("GORACE", gorace)
	os.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return m.Run()
}
