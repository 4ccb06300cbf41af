package main

import (
	"os"
	"strings"
	"testing"

	"raimon/internal/options"
)

// The table of options in README.md stands between these two.
const (
	optionsBegin = "<!-- options -->"
	optionsEnd   = "<!-- /options -->"
)

func TestReadmeHasTheOptions(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Skip(err)
	}
	_, rest, found := strings.Cut(string(readme), optionsBegin)
	if !found {
		t.Skipf("README.md has no %s", optionsBegin)
	}
	table, _, found := strings.Cut(rest, optionsEnd)
	if !found {
		t.Fatalf("README.md has %s without %s", optionsBegin, optionsEnd)
	}
	got, want := strings.TrimSpace(table), strings.TrimSpace(options.Markdown())
	if got == want {
		return
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want, "\n")
	for n := range min(len(gotLines), len(wantLines)) {
		if gotLines[n] != wantLines[n] {
			t.Fatalf("the table in README.md differs from options.Markdown() in line %d:\n got %s\nwant %s", n+1, gotLines[n], wantLines[n])
		}
	}
	t.Fatalf("the table in README.md has %d lines, options.Markdown() has %d", len(gotLines), len(wantLines))
}
