//go:build unix

package dns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"raimon/internal/tunneltest"
)

// script makes a program of text and returns its spec, with its folder in $FOLDER.
func script(t testing.TB, text string) (spec, folder string) {
	t.Helper()
	folder = filepath.Join(t.TempDir(), "with blank")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "hook")
	write(t, path, "#!/bin/sh\nFOLDER='"+folder+"'\n"+text, 0o700)
	return fmt.Sprintf("exec:%q", path), folder
}

func TestProgram(t *testing.T) {
	tunneltest.NoLeaks(t)
	t.Setenv("DNS_TOKEN", "passed on")
	spec, folder := script(t, `{ printf '<%s>' "$@"; printf ' %s' "$DNS_TOKEN"; wc -c; } >>"$FOLDER/log"`)
	s := openSolver(t, spec+` -v "two words"`)
	c := challenge("www.example.com", "one")
	if err := errors.Join(s.Present(t.Context(), c), s.Wait(t.Context(), c), s.CleanUp(t.Context(), c)); err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, verb := range []string{"present", "cleanup"} {
		fmt.Fprintf(&want, "<-v><two words><%s><_acme-challenge.www.example.com.><%s> passed on0\n", verb, c.DNS01KeyAuthorization())
	}
	if got := read(t, filepath.Join(folder, "log")); got != want.String() {
		t.Errorf("the program saw:\n%swant:\n%s", got, want.String())
	}
}

func TestProgramFails(t *testing.T) {
	tunneltest.NoLeaks(t)
	spec, _ := script(t, `yes "much $RANDOM output" | head -c 100000; printf 'not \033[31mallowed\n by\tzone' >&2; exit 3`)
	err := openSolver(t, spec).Present(t.Context(), challenge("example.com", "one"))
	if err == nil || !strings.HasSuffix(err.Error(), "not [31mallowed by zone") || !strings.Contains(err.Error(), "exit status 3: ...") {
		t.Errorf("%.100q ... %v", err, err)
	}
	if err != nil && (len(err.Error()) > 2*2048 || strings.ContainsAny(err.Error(), "\x1b\n")) {
		t.Errorf("%d bytes: %q", len(err.Error()), err)
	}
	if !strings.Contains(hintOf(err), "by hand") {
		t.Errorf("hint %q", hintOf(err))
	}
}

// What a program starts ends with it when its time is up.
func TestProgramIsKilledWithItsChildren(t *testing.T) {
	tunneltest.NoLeaks(t)
	_, folder := script(t, "")
	path := filepath.Join(folder, "hook")
	write(t, path, "#!/bin/sh\nsleep 600 &\necho waiting for godot\necho $! >'"+folder+"/pid.new'; mv '"+folder+"/pid.new' '"+folder+"/pid'\nwait\n", 0o700)
	s := openSolver(t, fmt.Sprintf("exec:%q", path))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Present(ctx, challenge("example.com", "one")) }()
	var pid int
	eventually(t, "the child", func() bool {
		data, err := os.ReadFile(filepath.Join(folder, "pid"))
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(data)))
		}
		return err == nil
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "waiting for godot") {
		t.Errorf("present: %v", err)
	}
	eventually(t, "the end of the child", func() bool {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || zombie(pid)
	})
}

// zombie tells whether a process has ended and nobody has asked for it, as in a container without an init.
func zombie(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(data), ") Z ")
}

func TestProgramLimit(t *testing.T) {
	tunneltest.NoLeaks(t)
	spec, _ := script(t, "sleep 600")
	s := openSolver(t, spec)
	s.provider.(*hook).limit = 50 * time.Millisecond
	if err := s.Present(t.Context(), challenge("example.com", "one")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("present: %v", err)
	}
}

// A program may leave something running that keeps its output open.
func TestProgramLeavesDaemon(t *testing.T) {
	spec, folder := script(t, `sleep 600 & echo $! >"$FOLDER/pid"`)
	if err := openSolver(t, spec).Present(t.Context(), challenge("example.com", "one")); err != nil {
		t.Error(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(read(t, filepath.Join(folder, "pid"))))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the daemon is gone: %v", err)
	}
}
