package handover_test

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Another user gets nothing even where file modes would let him in.
func TestAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can become somebody else")
	}
	dir := shortDir(t)
	binary := filepath.Join(dir, "test")
	copyFile(t, os.Args[0], binary)
	path := filepath.Join(dir, "h", "s")
	ended, _ := serve(t, path, map[string]net.Listener{"x": listen(t, "tcp", "127.0.0.1:0")})
	for name, mode := range map[string]os.FileMode{dir: 0o755, filepath.Dir(path): 0o755, path: 0o666} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(binary)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), roleVariable+"=hang", pathVariable+"="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 1234}}
	out, err := cmd.CombinedOutput()
	if err == nil || strings.Contains(string(out), "taken") || !strings.Contains(string(out), "error:") {
		t.Errorf("user 1234: %v, output %q; want an error", err, out)
	}
	if len(ended) > 0 {
		t.Errorf("the old process has ended: %v", <-ended)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}
