//go:build unix

package control_test

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"raimon/internal/control"
)

// edgeRoot in the environment makes this test binary an edge that serves on that storage.
const edgeRoot = "CONTROL_TEST_EDGE_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(edgeRoot); root != "" {
		syscall.Umask(0)
		if err := control.Serve(context.Background(), root, control.Service{Certificates: newManager("a.test")}, slog.Default()); err != nil {
			slog.Error(err.Error())
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// startEdge starts a process that serves on root and returns it when it does.
func startEdge(t *testing.T, root string) *exec.Cmd {
	t.Helper()
	before := living(t, root)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), edgeRoot+"="+root)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	eventually(t, "the edge is not found", func() bool { return living(t, root) > before })
	return cmd
}

func TestKilledEdge(t *testing.T) {
	root := t.TempDir()
	killed := startEdge(t, root)
	dead := sockets(t, root)[0]
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	killed.Wait()
	find(t, root, 0)
	if _, err := os.Lstat(dead); err != nil {
		t.Fatalf("the socket of a killed process has gone by itself: %v", err)
	}

	alive := newManager("b.test")
	serve(t, root, alive)
	eventually(t, "the next edge does not remove the dead socket", func() bool {
		_, err := os.Lstat(dead)
		return os.IsNotExist(err)
	})
	if _, err := find(t, root, 1)[0].Renew(t.Context(), "b.test"); err != nil {
		t.Error(err)
	}
}

// A stopped edge lives: its socket stays, and a client does not wait for it for ever.
func TestStoppedEdge(t *testing.T) {
	root := t.TempDir()
	stopped := startEdge(t, root)
	if err := stopped.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(stopped.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Fatalf("waiting for the stop: status %v, %v", status, err)
	}
	serve(t, root, newManager("b.test"))
	answers := 0
	for _, e := range find(t, root, 2) {
		_, err := e.Certificates(t.Context())
		switch {
		case err == nil:
			answers++
		case !strings.Contains(err.Error(), "no answer in"):
			t.Errorf("got %v, want that there is no answer", err)
		}
	}
	if answers != 1 || len(sockets(t, root)) != 2 {
		t.Errorf("%d edges answer and there are %v; want 1 and two sockets", answers, sockets(t, root))
	}
}

func TestSocketIsPrivate(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "control"), 0o755); err != nil {
		t.Fatal(err)
	}
	startEdge(t, root) // with umask 0
	socket := sockets(t, root)[0]
	eventually(t, "the socket stays open to others", func() bool {
		info, err := os.Lstat(socket)
		return err == nil && info.Mode().Perm() == 0o600
	})
	info, err := os.Lstat(filepath.Dir(socket))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v; want mode 0700", info.Mode(), err)
	}
}

func TestSocketBelongsToTheOwnerOfTheStorage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can give files away")
	}
	root := t.TempDir()
	if err := os.Chown(root, 1234, 1235); err != nil {
		t.Fatal(err)
	}
	serve(t, root, newManager())
	socket := sockets(t, root)[0]
	eventually(t, "the socket stays root's", func() bool {
		info, err := os.Lstat(socket)
		return err == nil && info.Sys().(*syscall.Stat_t).Uid == 1234
	})
	info, err := os.Lstat(filepath.Dir(socket))
	if err != nil || info.Sys().(*syscall.Stat_t).Uid != 1234 {
		t.Errorf("the folder: %v, %v; want owner 1234", info, err)
	}
}

func TestLinkInPlaceOfTheFolder(t *testing.T) {
	root, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(root, "control")); err != nil {
		t.Fatal(err)
	}
	if err := control.Serve(t.Context(), root, control.Service{Certificates: newManager()}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a socket was made through a symbolic link")
	}
}

func TestLongPath(t *testing.T) {
	root := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if runtime.GOOS != "linux" {
		err := control.Serve(t.Context(), root, control.Service{Certificates: newManager()}, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), "too long") {
			t.Errorf("got %v, want that the path is too long", err)
		}
		return
	}
	stop := serve(t, root, newManager("a.test"))
	if all, err := find(t, root, 1)[0].Certificates(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("got %v, %v; want one certificate", all, err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if left := sockets(t, root); len(left) > 0 {
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
		stop := serve(t, root, newManager("a.test"))
		if _, err := find(t, root, 1)[0].Renew(t.Context(), "a.test"); err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	round() // the runtime opens what it keeps
	files, goroutines := count(), runtime.NumGoroutine()
	for range 5 {
		round()
	}
	eventually(t, "files or goroutines are left", func() bool { return count() <= files && runtime.NumGoroutine() <= goroutines })
}
