//go:build linux || darwin || windows

package autostart

import (
	"fmt"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"
)

func (s *Service) notInstalled() error { return fmt.Errorf("%s: %w", s.Name, ErrNotInstalled) }

func (s *Service) isOther() error { return fmt.Errorf("%s: %w", s.Name, ErrOther) }

func (s *Service) installedAlready(where string) error {
	return &Error{Text: fmt.Sprintf("%s is installed already: %s", s.Name, where), Fix: "uninstall it first, to have it made anew"}
}

// check refuses what a line of a service's description cannot say.
func (s *Service) check() error {
	for _, path := range append([]string{s.Program, s.Folder}, s.Arguments...) {
		if !utf8.ValidString(path) || strings.ContainsFunc(path, unicode.IsControl) || strings.TrimSpace(path) != path {
			return &Error{Text: fmt.Sprintf("%q: service managers know no such name", path), Fix: "rename it: control characters, and spaces at the ends, have no place in it"}
		}
	}
	for _, path := range []string{s.Program, s.Folder} {
		if !filepath.IsAbs(path) {
			return &Error{Text: path + " is no absolute path"}
		}
	}
	return nil
}
