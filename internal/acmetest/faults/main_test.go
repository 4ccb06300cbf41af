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

	"raimon/internal/commandtest"
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
	return commandtest.WithPrograms(m, build)
}

func build(dir string) error {
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
