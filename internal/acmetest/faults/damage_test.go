//go:build unix

package faults

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"raimon/internal/acmetest"
)

// damages are what can happen to a file.
var damages = map[string]func(file string) error{
	"cut short": func(file string) error {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		return os.Truncate(file, info.Size()/2)
	},
	"emptied": func(file string) error { return os.Truncate(file, 0) },
	"garbage": func(file string) error {
		return os.WriteFile(file, bytes.Repeat([]byte("\x00\xff-----BEGIN \n{"), 100), 0o600)
	},
	"unreadable": func(file string) error { return os.Chmod(file, 0) },
	"a folder": func(file string) error {
		if err := os.Remove(file); err != nil {
			return err
		}
		return os.MkdirAll(filepath.Join(file, "with", "something in it"), 0o700)
	},
}

// Each file that raimons has written is damaged in each way: the start succeeds, an error line names the
// file, it is set aside, and there is a new one in its place.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	for about, damage := range damages {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			ca := acmetest.New(t, acmetest.Config{OCSP: true, RenewalWindow: atEveryStart})
			dir := filepath.Join(openDir(t), "storage")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			// To root no file is unreadable.
			s := setup{cas: []*acmetest.CA{ca}, storage: dir, prepare: func(c *exec.Cmd) { asNobody(t, c, dir) }}
			e := s.start(t)
			reachable(e)
			e.servedSoon(t, name)
			eventually(t, func() error { return complete(dir) })
			e.kill(t)

			for _, key := range keys(t, dir) {
				t.Run(kindOf(key), func(t *testing.T) { testDamage(t, s, key, damage) })
			}
		})
	}
}

// atEveryStart makes each start renew at once, which needs all files.
func atEveryStart(notBefore, _ time.Time) (start, end time.Time) {
	return notBefore.Add(-time.Hour), notBefore.Add(-time.Minute)
}

func testDamage(t *testing.T, s setup, key string, damage func(string) error) {
	file := filepath.Join(s.storage, key)
	if strings.HasPrefix(key, "accounts/") {
		// It is read where there is no account yet.
		for _, folder := range []string{"acme", "certificates"} {
			if err := os.RemoveAll(filepath.Join(s.storage, folder)); err != nil {
				t.Fatal(err)
			}
		}
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := damage(file); err != nil {
		t.Fatal(err)
	}

	e := s.start(t)
	reachable(e)
	e.servedSoon(t, name)
	e.Log.Wait(t, `"level":"ERROR".*`+regexp.QuoteMeta(key))
	eventually(t, func() error {
		if _, err := os.Lstat(file + ".corrupt"); err != nil {
			return err
		}
		if err := complete(s.storage); err != nil {
			return err
		}
		now, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if len(now) < len(whole)/2 || bytes.HasPrefix(now, []byte{0, 0xff}) {
			return fmt.Errorf("%s still is what was damaged", key)
		}
		return nil
	})
	if secret := regexp.MustCompile(`PRIVATE KEY|[A-Za-z0-9+/=]{64}`).FindString(e.Log.String()); secret != "" {
		t.Errorf("in the log there is %q", secret)
	}
	e.terminate(t)
	if status := e.Ended(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
}

// kindOf is a key without the address of the CA.
func kindOf(key string) string {
	return regexp.MustCompile(`127\.0\.0\.1-\d+-dir`).ReplaceAllString(key, "CA")
}

// complete is nil if the storage has everything that raimons writes.
func complete(dir string) error {
	for _, pattern := range []string{
		"accounts/*/default.key", "acme/*/users/default/default.json", "acme/*/users/default/default.key",
		"certificates/*/" + name + "/" + name + ".pem", "ocsp/*/" + name, "ticket-keys",
	} {
		found, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(pattern)))
		if err != nil {
			return err
		}
		if len(found) != 1 {
			return fmt.Errorf("%d files %s", len(found), pattern)
		}
		if info, err := os.Stat(found[0]); err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o600 {
			return errors.Join(err, fmt.Errorf("%s is no private file", pattern))
		}
	}
	return nil
}

// keys are all files of the storage, but for locks.
func keys(t testing.TB, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		key, err := filepath.Rel(dir, file)
		if err == nil && !strings.Contains(key, ".~") {
			all = append(all, filepath.ToSlash(key))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 6 {
		t.Fatalf("files in the storage: %q, want 6", all)
	}
	slices.Reverse(all) // accounts last: its test takes others away
	return all
}

// asNobody lets root's tests run a program as an ordinary user, who owns dir and all that is in it.
func asNobody(t testing.TB, cmd *exec.Cmd, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	const nobody = 65534
	err := filepath.WalkDir(dir, func(file string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(file, nobody, nobody))
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
}
