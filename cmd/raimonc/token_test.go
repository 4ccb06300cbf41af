package main

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"raimon/internal/command"
	"raimon/internal/options"
	"raimon/tunnel"
)

// tokenJob is what raimonc is asked to do with these options, and what it logs meanwhile.
func tokenJob(t testing.TB, remote, option string) (*command.Job, *bytes.Buffer) {
	t.Helper()
	o, err := options.Parse(options.Client, option)
	if err != nil {
		t.Fatal(err)
	}
	logged := new(bytes.Buffer)
	return &command.Job{Remote: remote, Options: o, Log: slog.New(slog.NewTextHandler(logged, nil))}, logged
}

const tokenOptions = "ws;host=a.test;path=/ws;tls;sni=a.test;token="

func TestTokenItself(t *testing.T) {
	job, logged := tokenJob(t, "a.test:443", tokenOptions+"s3cr3t")
	source, err := token(job)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := source(t.Context()); got != "s3cr3t" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if logged.Len() > 0 {
		t.Errorf("logged %q", logged)
	}
	job, _ = tokenJob(t, "a.test:443", "ws;host=a.test;path=/ws")
	if source, err := token(job); source != nil || err != nil {
		t.Errorf("without token=: %v", err)
	}
}

// A file is read anew for each connection; what is wrong with it is said without what is in it.
func TestTokenFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a token")
	put := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("\n one \r\n")
	job, _ := tokenJob(t, "a.test:443", tokenOptions+"file:"+strings.ReplaceAll(path, `\`, `\\`))
	source, err := token(job)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"one", "two"} {
		put(want)
		if got, err := source(t.Context()); got != want || err != nil {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	for _, text := range []string{"", "\n", "s3cr3t s3cr3t", "s3cr3t\nX: y", "s3cr3t\x00", strings.Repeat("s3cr3t", 1000), strings.Repeat(" ", secretLimit) + "x"} {
		put(text)
		_, err := source(t.Context())
		if !errors.Is(err, tunnel.ErrToken) || strings.Contains(err.Error(), "s3cr3t") || !strings.Contains(err.Error(), "a token") {
			t.Errorf("%.20q: got %v", text, err)
		}
		var mistake *command.ConfigError
		if _, err := token(job); !errors.As(err, &mistake) || mistake.Fix == "" {
			t.Errorf("%.20q: at the start: %v", text, err)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := source(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want os.ErrNotExist", err)
	}
	job.Options.Token = "file:" + t.TempDir()
	if _, err := token(job); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder: %v", err)
	}
}

func TestTokenInTheClear(t *testing.T) {
	for remote, want := range map[string]bool{
		"edge.example.com:80": true, "192.0.2.1:80": true, "[2001:db8::1]:80": true,
		"127.0.0.1:80": false, "127.8.8.8:80": false, "[::1]:80": false, "localhost:80": false, ":80": false, "unix:/tmp/x": false,
	} {
		job, logged := tokenJob(t, remote, "ws;host=a.test;path=/ws;token=s3cr3t")
		if _, err := token(job); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(logged.String(), "in the clear"); got != want || strings.Contains(logged.String(), "s3cr3t") {
			t.Errorf("%s: logged %q, want a warning: %v", remote, logged, want)
		}
	}
}
