package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"raimon/internal/command"
	"raimon/internal/program"
)

const (
	// secretLimit is how many bytes a file or a program may give: a secret and what stands around it.
	secretLimit = 8 << 10
	// secretAge is how long what a program has printed is good: a burst of connections runs it once.
	secretAge = 5 * time.Second
)

// secret is what an option says of something that nobody should see. It is in no error.
type secret struct {
	option string // as errors call it
	// find takes off what may stand around the secret; false: there is none.
	find  func(text string) (string, bool)
	wrong error  // where there is none
	fix   string // what a user should do about a file that cannot be used
}

// open returns where the secret comes from: "file:" and a path, "command:" and a program with its arguments,
// each asked anew for each connection; or value is the secret itself. Its error is a *command.ConfigError.
func (s *secret) open(value string) (func(context.Context) (string, error), error) {
	if path, found := strings.CutPrefix(value, "file:"); found {
		if _, err := s.read(path); err != nil {
			return nil, s.mistake(err, s.fix)
		}
		return func(context.Context) (string, error) { return s.read(path) }, nil
	}
	if words, found := strings.CutPrefix(value, "command:"); found {
		p, err := program.Open(words)
		if err != nil {
			return nil, s.mistake(err, "write command:/path/to/program, with arguments behind it")
		}
		return newSecretProgram(s, p).ask, nil
	}
	found, err := s.in([]byte(value))
	if err != nil {
		return nil, s.mistake(err, s.fix)
	}
	return func(context.Context) (string, error) { return found, nil }, nil
}

func (s *secret) mistake(err error, otherwise string) error {
	fix := command.Hint(err)
	if fix == "" {
		fix = otherwise
	}
	return &command.ConfigError{Err: fmt.Errorf("%s: %w", s.option, err), Fix: fix}
}

// read reads the file at path.
func (s *secret) read(path string) (string, error) {
	// Opening a pipe would wait for its writer.
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s: not a regular file, so it could not be read for each connection", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, secretLimit+1))
	if err != nil {
		return "", err
	}
	found, err := s.in(text)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return found, nil
}

func (s *secret) in(text []byte) (string, error) {
	found, ok := s.find(string(text))
	if len(text) > secretLimit || !ok {
		return "", s.wrong
	}
	return found, nil
}

// secretProgram asks a program for a secret, for all connections together.
type secretProgram struct {
	secret  *secret
	program *program.Program
	idle    chan struct{} // empty while somebody asks
	last    string
	until   time.Time // last is good
}

func newSecretProgram(s *secret, p *program.Program) *secretProgram {
	asked := &secretProgram{secret: s, program: p, idle: make(chan struct{}, 1)}
	asked.idle <- struct{}{}
	return asked
}

// ask returns what the program prints, or has printed a moment ago. The end of ctx ends the program.
func (p *secretProgram) ask(ctx context.Context) (string, error) {
	select {
	case <-p.idle:
		defer func() { p.idle <- struct{}{} }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if time.Now().Before(p.until) {
		return p.last, nil
	}
	text, err := p.program.Output(ctx, secretLimit)
	if errors.Is(err, program.ErrTooMuch) {
		err = p.secret.wrong
	}
	if err == nil {
		p.last, err = p.secret.in(text)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", p.program.Path, err)
	}
	p.until = time.Now().Add(secretAge)
	return p.last, nil
}
