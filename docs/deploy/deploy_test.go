// Package deploy has tests of the files around it.
package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// maxExposure is in tenths of what systemd-analyze security calls exposure, from 0 to 100.
const maxExposure = "20"

// analyze runs systemd-analyze on copies of the units, in which the program is one that is there.
func analyze(t testing.TB, args ...string) {
	t.Helper()
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, source := range map[string]string{
		"raimons.service": "raimons.service", "raimons@.service": "raimons.service", "raimons.socket": "raimons.socket",
		"raimonc.service": "user/raimonc.service",
	} {
		text, err := os.ReadFile(filepath.Join("systemd", source))
		if err != nil {
			t.Fatal(err)
		}
		text = []byte(strings.NewReplacer("/usr/bin/raimons", self, "/usr/bin/raimonc", self).Replace(string(text)))
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir) // --user looks for it
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Errorf("%s: %v\n%s", cmd, err, out)
	case args[0] == "verify" && len(out) > 0:
		t.Errorf("%s:\n%s", cmd, out)
	}
}

func TestUnits(t *testing.T) {
	analyze(t, "verify", "--man=no", "./raimons.service", "./raimons.socket", "./raimons@a.service")
}

func TestUserUnit(t *testing.T) {
	analyze(t, "verify", "--man=no", "--user", "./raimonc.service")
}

func TestExposure(t *testing.T) {
	analyze(t, "security", "--offline=yes", "--no-pager", "--threshold="+maxExposure, "./raimons.service")
}

func TestScripts(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no sh")
	}
	scripts, err := filepath.Glob("packages/*.sh")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("found %v, %v", scripts, err)
	}
	for _, script := range append(scripts, "openrc/raimons") {
		if out, err := exec.Command("sh", "-n", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", script, err, out)
		}
	}
}

// Everything that goes into a package is there.
func TestPackagesAreComplete(t *testing.T) {
	text, err := os.ReadFile("packages/nfpm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(text)) {
		for word := range strings.FieldsFuncSeq(line, func(r rune) bool { return strings.ContainsRune(" \t\n,{}\"", r) }) {
			if !strings.HasPrefix(word, "docs/") && word != "README.md" && word != "LICENSE" {
				continue
			}
			found++
			if all, err := filepath.Glob(filepath.Join("../..", word)); err != nil || len(all) == 0 {
				t.Errorf("%s is not there (%v)", word, err)
			}
		}
	}
	if found < 10 {
		t.Errorf("only %d files are found in nfpm.yaml", found)
	}
}
