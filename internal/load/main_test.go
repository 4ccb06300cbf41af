//go:build load && linux

package load

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"raimon/internal/commandtest"
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

// run puts raimons and raimonc into PATH and runs the tests.
func run(m *testing.M) int {
	if os.Getenv(partVariable) != "" || os.Getenv(hostedVariable) != "" { // the parent has built them
		return m.Run()
	}
	return commandtest.WithPrograms(m, build)
}

// build makes both programs as they are released, but with testdata/inspect.go added: that does nothing unless the
// environment asks for it.
func build(dir string) error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	added := make(map[string]string)
	for _, program := range []string{"raimons", "raimonc"} {
		added[filepath.Join(root, "cmd", program, "inspect.go")] = filepath.Join(root, "internal", "load", "testdata", "inspect.go")
	}
	overlay, err := json.Marshal(map[string]any{"Replace": added})
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		return err
	}
	build := exec.Command("go", "build", "-overlay", file, "-o", dir, "raimon/cmd/raimons", "raimon/cmd/raimonc")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}
