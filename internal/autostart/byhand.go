//go:build !darwin && !windows

package autostart

import (
	"strings"
	"unicode"
)

// byHand says what to do where there is no manager.
func (s *Service) byHand() string {
	quoted := []string{quote(s.Program)}
	for _, a := range s.Arguments {
		quoted = append(quoted, quote(a))
	}
	return "start it with your login in another way; the command is: cd " + quote(s.Folder) + " && " + strings.Join(quoted, " ")
}

// quote makes one word of s for a shell.
func quote(s string) string {
	safe := func(r rune) bool {
		return !(unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("-_./:=@", r))
	}
	if s != "" && !strings.ContainsFunc(s, safe) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
