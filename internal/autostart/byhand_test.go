//go:build !darwin && !windows

package autostart

import "testing"

// The command that people are told has to mean the same to their shells.
func TestQuote(t *testing.T) {
	for s, want := range map[string]string{"/usr/bin/raimonc": "/usr/bin/raimonc", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$x": "'$x'"} {
		if got := quote(s); got != want {
			t.Errorf("%q: got %s, want %s", s, got, want)
		}
	}
}
