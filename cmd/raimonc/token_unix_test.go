//go:build unix

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"raimon/internal/command"
	"raimon/internal/program"
	"raimon/tunnel"
)

// tokenScript makes a program of text, and returns token= for it and its folder, which is also $FOLDER.
func tokenScript(t testing.TB, text string) (value, folder string) {
	t.Helper()
	folder = filepath.Join(t.TempDir(), "with blank")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nFOLDER='"+folder+"'\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	return `command:"` + path + `" alice`, folder
}

func tokenSource(t testing.TB, value string) func(context.Context) (string, error) {
	t.Helper()
	job, _ := tokenJob(t, "a.test:443", tokenOptions+value)
	source, err := token(job)
	if err != nil {
		t.Fatal(err)
	}
	return source
}

// A burst of connections runs the program once.
func TestTokenProgram(t *testing.T) {
	value, folder := tokenScript(t, `echo run >>"$FOLDER/log"; echo aside >&2; echo "token-of-$1"`)
	source := tokenSource(t, value)
	if _, err := os.Stat(filepath.Join(folder, "log")); err == nil {
		t.Error("the program ran before there was a connection")
	}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if got, err := source(t.Context()); got != "token-of-alice" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	all.Wait()
	if log, err := os.ReadFile(filepath.Join(folder, "log")); string(log) != "run\n" {
		t.Errorf("the program ran as %q says, %v, want once", log, err)
	}
}

func TestTokenProgramIsAskedAnew(t *testing.T) {
	value, _ := tokenScript(t, `echo run >>"$FOLDER/log"; wc -l <"$FOLDER/log"`)
	opened, err := program.Open(strings.TrimPrefix(value, "command:"))
	if err != nil {
		t.Fatal(err)
	}
	p := newSecretProgram(tokenSecret(), opened)
	for _, want := range []string{"1", "2"} {
		if got, err := p.ask(t.Context()); got != want || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
		p.until = time.Time{} // as if secretAge had gone by
	}
}

func TestTokenProgramFails(t *testing.T) {
	for text, want := range map[string]string{
		"echo s3cr3t; echo locked >&2; exit 3": "program: exit status 3: locked",
		"echo s3cr3t s3cr3t":                   "program: " + tunnel.ErrToken.Error(),
		"":                                     "program: " + tunnel.ErrToken.Error(),
		"head -c 10000 /dev/zero":              "program: " + tunnel.ErrToken.Error(),
	} {
		value, _ := tokenScript(t, text)
		got, err := tokenSource(t, value)(t.Context())
		if got != "" || err == nil || !strings.HasSuffix(err.Error(), want) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
	for _, value := range []string{"command:no-such-program-here", `command:"`, "command:/"} {
		job, _ := tokenJob(t, "a.test:443", tokenOptions+value)
		var mistake *command.ConfigError
		if _, err := token(job); !errors.As(err, &mistake) || mistake.Fix == "" {
			t.Errorf("%s: got %v, want a mistake with a hint", value, err)
		}
	}
}

// One connection that gives up takes neither the others with it, nor leaves the program running.
func TestTokenProgramHangs(t *testing.T) {
	value, folder := tokenScript(t, `test -e "$FOLDER/log" || { echo run >"$FOLDER/log"; sleep 60; }; echo t`)
	source := tokenSource(t, value)
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := source(ctx)
		first <- err
	}()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if _, err := os.Stat(filepath.Join(folder, "log")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the program was not run")
		}
	}
	go func() {
		_, err := source(t.Context())
		second <- err
	}()
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, err := source(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("who has left waits: %v", err)
	}
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("the second: %v", err)
	}
}
