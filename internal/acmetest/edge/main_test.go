// Package edge_test runs raimons and raimonc, as they are built, against a CA that really validates.
//
// Each test has a CA of its own: strict, refusing some nonces, and using no authorization twice.
package edge_test

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
)

// bin is where TestMain puts raimons and raimonc.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	if n := flag.Lookup("test.parallel"); n.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		n.Value.Set("8") // most of the time is spent waiting
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "raimon-acme")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Other users run them, too: TestPlugin.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	bin = dir
	arguments := []string{"build", "-o", dir + string(filepath.Separator)}
	if race {
		arguments = append(arguments, "-race")
	}
	build := exec.Command("go", append(arguments, "./cmd/raimons", "./cmd/raimonc")...)
	build.Dir = filepath.Join("..", "..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n%s", build, err, out)
		return 1
	}
	// A proxy in the environment of the tests is no part of them.
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		os.Unsetenv(name)
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0") // the race detector holds up each end of a process for a second
	return m.Run()
}
