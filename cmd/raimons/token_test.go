package main

import (
	"encoding/base64"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"raimon/edge"
	"raimon/internal/command"
)

// What is printed for the edge lets in who has what is printed for the client.
func TestTokenOpens(t *testing.T) {
	tokens := &edge.Tokens{File: filepath.Join(t.TempDir(), "tokens"), Log: slog.New(slog.DiscardHandler)}
	var file strings.Builder
	made := make(map[string]string) // name by token
	for _, name := range []string{"alice", "alice@laptop", "dörte", strings.Repeat("x", 128)} {
		token, err := newToken(name)
		if err != nil {
			t.Fatal(err)
		}
		if random, err := base64.RawURLEncoding.DecodeString(token.Token); err != nil || len(random) != 32 {
			t.Errorf("the token has %d bytes, %v, want 32", len(random), err)
		}
		var printed strings.Builder
		if err := token.print(&printed); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(printed.String(), "\n")
		if len(lines) != 5 || lines[1] != token.Token || lines[3] != token.Line || made[token.Token] != "" {
			t.Errorf("printed %q", printed.String())
		}
		made[token.Token] = name
		file.WriteString(lines[2] + "\n" + lines[3] + "\n")
	}
	if err := os.WriteFile(tokens.File, []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := tokens.Load(); err != nil {
		t.Fatal(err)
	}
	for token, name := range made {
		if got, ok := tokens.User(token); got != name || !ok {
			t.Errorf("the token of %s is that of %q, %v", name, got, ok)
		}
		if strings.Contains(file.String(), token) {
			t.Errorf("the file holds the token of %s itself", name)
		}
	}
}

func TestTokenNames(t *testing.T) {
	for _, name := range []string{"", "two words", "#alice", "sha256:alice", "a\nb", "a\x1bb", "a\xa0b", "a\u00a0b", strings.Repeat("x", 129)} {
		token, err := newToken(name)
		if token != nil || command.Hint(err) == "" {
			t.Errorf("%q: %v, %v, want an error with a hint", name, token, err)
		}
	}
}
