// Package program runs programs that a user names in an option.
package program

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unicode"
)

const (
	linger      = 2 * time.Second // for the output of what the program left running
	outputLimit = 2048            // bytes that are kept of it
)

// ErrNoProgram says that a command names none, or has a quote that is not closed.
var ErrNoProgram = errors.New("no program is named, or a quote is not closed")

// Program is a program, with the arguments that come before those of a run.
type Program struct {
	// Path is absolute: the working directory may change.
	Path string
	args []string
}

// Open finds the program that command names, in PATH if it has no folder. Arguments stand behind it with
// blanks between; "double quotes" hold one with blanks together. The error is ErrNoProgram, or says why
// the program cannot be run.
func Open(command string) (*Program, error) {
	words, err := splitCommand(command)
	if err != nil || len(words) == 0 || words[0] == "" {
		return nil, ErrNoProgram
	}
	path, err := exec.LookPath(words[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return nil, err
	}
	return &Program{Path: path, args: words[1:]}, nil
}

// Run runs p with further arguments, the environment of this process and nothing on stdin, and returns the
// end of what it printed, as one line. The end of ctx kills it with all that it has started (on Windows
// itself alone), and is the error then; else that is an *exec.ExitError, or says why it did not start.
func (p *Program) Run(ctx context.Context, args ...string) (output string, err error) {
	var printed tail
	err = p.run(ctx, &printed, &printed, args)
	return printed.String(), err
}

// ErrTooMuch says that a program printed more than it should.
var ErrTooMuch = errors.New("it printed too much")

// Output runs p as Run does, and returns what it printed on stdout, at most limit bytes; more is ErrTooMuch.
// The other errors are those of Run, with the end of what it printed on stderr, as one line. Stdout is in none of them: it may
// be a secret.
func (p *Program) Output(ctx context.Context, limit int, args ...string) ([]byte, error) {
	printed := head{limit: limit}
	var trouble tail
	err := p.run(ctx, &printed, &trouble, args)
	switch said := trouble.String(); {
	case err != nil && said != "":
		return nil, fmt.Errorf("%w: %s", err, said)
	case err != nil:
		return nil, err
	case printed.cut:
		return nil, ErrTooMuch
	}
	return printed.kept, nil
}

func (p *Program) run(ctx context.Context, stdout, stderr io.Writer, args []string) error {
	cmd := exec.CommandContext(ctx, p.Path, append(p.args[:len(p.args):len(p.args)], args...)...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.WaitDelay = linger
	killFamily(cmd)
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrWaitDelay):
		return nil // it ended well and left something running that kept its output open
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("killed: %w", ctx.Err())
	}
	return err
}

// splitCommand splits at blanks outside of double quotes. Backslashes are ordinary, as paths on Windows need it.
func splitCommand(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, quoted := false, false
	for _, r := range s {
		switch {
		case r == 0:
			return nil, errors.New("a zero byte")
		case r == '"':
			inWord, quoted = true, !quoted
		case unicode.IsSpace(r) && !quoted:
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			inWord = true
			word.WriteRune(r)
		}
	}
	if quoted {
		return nil, errors.New("an open quote")
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

// head keeps the first limit bytes that are written to it.
type head struct {
	limit int
	kept  []byte
	cut   bool
}

func (h *head) Write(b []byte) (int, error) {
	room := h.limit - len(h.kept)
	h.cut = h.cut || len(b) > room
	h.kept = append(h.kept, b[:min(room, len(b))]...)
	return len(b), nil
}

// tail keeps the last outputLimit bytes that are written to it: what a program says last says why it ended.
type tail struct {
	kept []byte
	cut  bool
}

func (t *tail) Write(b []byte) (int, error) {
	n := len(b)
	if n >= outputLimit {
		t.cut = t.cut || n > outputLimit || len(t.kept) > 0
		t.kept = append(t.kept[:0], b[n-outputLimit:]...)
		return n, nil
	}
	if over := len(t.kept) + n - outputLimit; over > 0 {
		t.cut = true
		t.kept = t.kept[:copy(t.kept, t.kept[over:])]
	}
	t.kept = append(t.kept, b...)
	return n, nil
}

// String makes one line of it that is safe to print.
func (t *tail) String() string {
	text := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return ' '
	}, string(t.kept))
	text = strings.Join(strings.Fields(text), " ")
	if t.cut {
		text = "..." + text
	}
	return text
}
