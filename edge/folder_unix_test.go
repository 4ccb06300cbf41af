//go:build unix

package edge_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Nothing outside of the folder is served, and nothing that is no file.
func TestFolderIsNotLeft(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "www")
	write(t, parent, map[string]string{"secret.txt": "secret", "www/index.html": "welcome", "www/real.txt": "real"})
	for name, target := range map[string]string{"up.txt": "../secret.txt", "absolute.txt": filepath.Join(parent, "secret.txt"), "up": "..", "loop": "loop", "inside.txt": "real.txt"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	address := folderSite(t, dir)
	for target, status := range map[string]int{"/up.txt": 404, "/absolute.txt": 404, "/up/secret.txt": 404, "/up/": 404, "/loop": 404, "/pipe": 404, "/inside.txt": 200} {
		if answer, body := get(t, "GET", address, target); answer.StatusCode != status || body == "secret" {
			t.Errorf("%s: got %s, %q", target, answer.Status, body)
		}
	}
}
