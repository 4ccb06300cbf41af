//go:build unix

package program

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script makes a program of text, with one argument.
func script(t testing.TB, text string) *Program {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	p, err := Open(`"` + path + `" "one two"`)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOutput(t *testing.T) {
	const want = "one two|three|end\n"
	p := script(t, `echo aside >&2; printf '%s|' "$@"; echo end`)
	if got, err := p.Output(t.Context(), len(want), "three"); err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if got, err := p.Output(t.Context(), len(want)-1, "three"); !errors.Is(err, ErrTooMuch) || got != nil {
		t.Errorf("got %q, %v, want ErrTooMuch", got, err)
	}
}

// What a program says on stderr tells why it failed; what it says on stdout may be a secret.
func TestOutputFails(t *testing.T) {
	got, err := script(t, `echo s3cr3t; printf 'no \033[1mway\n' >&2; exit 3`).Output(t.Context(), 100)
	var exit *exec.ExitError
	if got != nil || !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.HasSuffix(err.Error(), ": no [1mway") || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := (&Program{Path: filepath.Join(t.TempDir(), "none")}).Output(t.Context(), 100); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want os.ErrNotExist", err)
	}
}

func TestOutputEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := script(t, "echo s3cr3t; sleep 60 & wait").Output(ctx, 100); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %v", took)
	}
}
