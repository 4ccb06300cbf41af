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

	"raimon/internal/commandtest"
)

// bin is where build puts raimons and raimonc.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	if n := flag.Lookup("test.parallel"); n.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		n.Value.Set("8") // most of the time is spent waiting
	}
	os.Exit(commandtest.WithPrograms(m, build))
}

func build(dir string) error {
	bin = dir
	arguments := []string{"build", "-o", dir + string(filepath.Separator)}
	if race {
		arguments = append(arguments, "-race")
	}
	build := exec.Command("go", append(arguments, "./cmd/raimons", "./cmd/raimonc")...)
	build.Dir = filepath.Join("..", "..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	return nil
}
