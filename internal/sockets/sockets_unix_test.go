//go:build unix

package sockets_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"raimon/internal/sockets"
)

// childRoot in the environment makes this test binary a process that serves there.
const childRoot = "SOCKETS_TEST_ROOT"

// childFinds in the environment makes it one that looks for others there.
const childFinds = "SOCKETS_TEST_FINDS"

func TestMain(m *testing.M) {
	if root := os.Getenv(childRoot); root != "" {
		var err error
		if os.Getenv(childFinds) != "" {
			_, err = folder(root).Find(context.Background())
		} else {
			syscall.Umask(0)
			err = folder(root).Serve(context.Background(), named("child", nil), slog.Default())
		}
		var problem *sockets.Error
		if errors.As(err, &problem) {
			slog.Error(problem.Text, "hint", problem.Fix)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// startChild starts a process that serves on root and returns it when it does.
func startChild(t *testing.T, root string) *exec.Cmd {
	t.Helper()
	before := living(t, root)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childRoot+"="+root)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	eventually(t, "the process is not found", func() bool { return living(t, root) > before })
	return cmd
}

func TestKilledProcess(t *testing.T) {
	root := t.TempDir()
	killed := startChild(t, root)
	dead := files(t, root)[0]
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed.Wait()
	find(t, root, 0)
	if _, err := os.Lstat(dead); err != nil {
		t.Fatalf("the socket of a killed process has gone by itself: %v", err)
	}

	serve(t, root, named("b", nil))
	eventually(t, "the next process does not remove the dead socket", func() bool {
		_, err := os.Lstat(dead)
		return os.IsNotExist(err)
	})
	wantName(t, find(t, root, 1)[0], "b")
}

// A stopped process lives: its socket stays, and a client does not wait for it for ever.
func TestStoppedProcess(t *testing.T) {
	root := t.TempDir()
	stopped := startChild(t, root)
	if err := stopped.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(stopped.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("waiting for the stop: status %v, %v", status, err)
	}
	serve(t, root, named("b", nil))
	answers := 0
	for _, p := range find(t, root, 2) {
		err := p.Look(t.Context(), "/name", &said{})
		switch {
		case err == nil:
			answers++
		case !strings.Contains(err.Error(), "no answer in"):
			t.Errorf("got %v, want that there is no answer", err)
		}
	}
	if answers != 1 || len(files(t, root)) != 2 {
		t.Errorf("%d processes answer and there are %v; want 1 and two sockets", answers, files(t, root))
	}
}

func TestSocketIsPrivate(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	startChild(t, root) // with umask 0
	socket := files(t, root)[0]
	eventually(t, "the socket stays open to others", func() bool {
		info, err := os.Lstat(socket)
		return err == nil && info.Mode().Perm() == 0o600
	})
	info, err := os.Lstat(filepath.Dir(socket))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v; want mode 0700", info.Mode(), err)
	}
}

func TestSocketBelongsToTheOwnerOfTheRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can give files away")
	}
	root := t.TempDir()
	if err := os.Chown(root, 1234, 1235); err != nil {
		t.Fatal(err)
	}
	serve(t, root, named("a", nil))
	socket := files(t, root)[0]
	eventually(t, "the socket stays root's", func() bool {
		info, err := os.Lstat(socket)
		return err == nil && info.Sys().(*syscall.Stat_t).Uid == 1234
	})
	info, err := os.Lstat(filepath.Dir(socket))
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != 1234 {
		t.Errorf("the folder: %v, %v; want owner 1234", info, err)
	}
}

// What another user has put there is neither used nor asked.
func TestFolderOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can give files away")
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{root: 0o777, filepath.Dir(root): 0o755} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(root, "test")
	if err := os.WriteFile(binary, text, 0o755); err != nil {
		t.Fatal(err)
	}
	for task, want := range map[string][]string{
		"":                {"belongs to another user", "choose another folder"},
		childFinds + "=1": {"belongs to another user", "become the owner"},
	} {
		cmd := exec.Command(binary)
		cmd.Env = append(os.Environ(), childRoot+"="+root, task)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 1234}}
		out, err := cmd.CombinedOutput()
		for _, want := range want {
			if err == nil || !strings.Contains(string(out), want) {
				t.Errorf("%s: %v, %s; want %q", task, err, out, want)
			}
		}
	}
}

func TestLinkInPlaceOfTheFolder(t *testing.T) {
	root, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(root, "control")); err != nil {
		t.Fatal(err)
	}
	if err := folder(root).Serve(t.Context(), named("a", nil), slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a socket was made through a symbolic link")
	}
}

func TestLongPath(t *testing.T) {
	root := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if runtime.GOOS != "linux" {
		err := folder(root).Serve(t.Context(), named("a", nil), slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), "too long") {
			t.Errorf("got %v, want that the path is too long", err)
		}
		return
	}
	stop := serve(t, root, named("a", nil))
	wantName(t, find(t, root, 1)[0], "a")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if left := files(t, root); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

func TestNothingIsLeftOpen(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("counts /proc/self/fd")
	}
	count := func() int {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	root := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	round := func() {
		stop := serve(t, root, named("a", nil))
		wantName(t, find(t, root, 1)[0], "a")
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	round() // the runtime opens what it keeps
	open, goroutines := count(), runtime.NumGoroutine()
	for range 5 {
		round()
	}
	eventually(t, "files or goroutines are left", func() bool { return count() <= open && runtime.NumGoroutine() <= goroutines })
}
