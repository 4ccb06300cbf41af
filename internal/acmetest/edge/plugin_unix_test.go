//go:build unix

package edge_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"raimon/internal/acmetest"
	"raimon/internal/tunneltest"
)

// nobodyID is the user and group of nobody on Debian; any that owns nothing will do.
const nobodyID = 65534

// As a plugin of shadowsocks, for a user who may neither have port 80 nor write where root's certificates are.
func TestPlugin(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	home, err := os.MkdirTemp("", "raimon-home") // t.TempDir is in a folder that others may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	root := filepath.Join(home, "root.pem")
	if err := os.WriteFile(root, ca.Root.PEM, 0o644); err != nil {
		t.Fatal(err)
	}
	var user *syscall.SysProcAttr
	if os.Geteuid() == 0 {
		user = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobodyID, Gid: nobodyID}}
		for _, path := range []string{home, root} {
			if err := os.Chown(path, nobodyID, nobodyID); err != nil {
				t.Fatal(err)
			}
		}
	}

	for _, first := range []bool{true, false} {
		targetHost, targetPort, _ := strings.Cut(tunneltest.Echo(t), ":")
		cmd := exec.Command(filepath.Join(bin, "raimons"))
		cmd.Dir, cmd.SysProcAttr = "/", user
		cmd.Env = []string{
			"HOME=" + home, "GORACE=" + os.Getenv("GORACE"),
			"SS_REMOTE_HOST=127.0.0.1", "SS_REMOTE_PORT=" + tunneltest.FreePort(),
			"SS_LOCAL_HOST=" + targetHost, "SS_LOCAL_PORT=" + targetPort,
			"SS_PLUGIN_OPTIONS=tls;acme=a.test;acme-ca=" + ca.Directory + ";acme-root=" + root,
		}
		e := running(t, cmd)
		if first {
			ca.TLSALPN01.To(e.tunnels)
			e.Log.Wait(t, `"port 80 is not ours`)
		}
		e.shows(t, ca, "a.test")
		if n := len(ca.Issued()); n != 1 {
			t.Errorf("%d certificates were issued, want 1", n)
		}
		e.end(t)
	}

	// Nobody else may read what it has stored.
	stored := 0
	err = filepath.WalkDir(filepath.Join(home, ".local", "share", "raimon"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		stored++
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
		return nil
	})
	if err != nil || stored < 5 {
		t.Errorf("%d files and folders stored, %v", stored, err)
	}
}
