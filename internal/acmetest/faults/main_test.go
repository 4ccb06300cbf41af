//go:build unix

package faults

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const (
	program = "raimons"
	// tunedProgram understands a tuning.
	tunedProgram = "raimons-tuned"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run puts both programs into PATH and runs the tests.
func run(m *testing.M) int {
	flag.Parse()
	if flag.Lookup("test.parallel").Value.String() == flag.Lookup("test.parallel").DefValue {
		flag.Set("test.parallel", "12") // they wait most of the time
	}
	dir, err := os.MkdirTemp("", "faults")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// A proxy in the environment of the tests is no part of them.
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		os.Unsetenv(name)
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return m.Run()
}

func build(dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil { // some tests run them as another user
		return err
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		return err
	}
	tuned, err := filepath.Abs("testdata/tuned.go")
	if err != nil {
		return err
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, "acme", "tuned.go"): tuned}})
	if err != nil {
		return err
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		return err
	}
	for name, flags := range map[string][]string{program: nil, tunedProgram: {"-overlay", overlayFile}} {
		arguments := append([]string{"build", "-o", filepath.Join(dir, name)}, flags...)
		if race {
			arguments = append(arguments, "-race")
		}
		build := exec.Command("go", append(arguments, "raimon/cmd/raimons")...)
		build.Dir = root
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", name, err, out)
		}
	}
	return nil
}
