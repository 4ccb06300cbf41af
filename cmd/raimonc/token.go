package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"raimon/internal/command"
	"raimon/internal/program"
	"raimon/tunnel"
)

const (
	// tokenLimit is how many bytes a file or a program may give: a token and what stands around it.
	tokenLimit = 8 << 10
	// tokenAge is how long what a program has printed is good: a burst of connections runs it once.
	tokenAge = 5 * time.Second
)

// token is where the token of token= comes from; nil: there is none. The token itself is never in an error.
func token(job *command.Job) (func(context.Context) (string, error), error) {
	value := job.Options.Token
	if value == "" {
		return nil, nil
	}
	if !job.Options.TLS && !staysHere(job.Remote) {
		job.Log.Warn("the token goes over the network in the clear: whoever sits on the line can use it",
			"hint", "add tls on both ends")
	}
	if path, found := strings.CutPrefix(value, "file:"); found {
		if _, err := readToken(path); err != nil {
			return nil, &command.ConfigError{Err: fmt.Errorf("option \"token\": %w", err), Fix: tokenFix(err, "the file holds the token and nothing else")}
		}
		return func(context.Context) (string, error) { return readToken(path) }, nil
	}
	if words, found := strings.CutPrefix(value, "command:"); found {
		p, err := program.Open(words)
		if err != nil {
			return nil, &command.ConfigError{Err: fmt.Errorf("option \"token\": %w", err), Fix: tokenFix(err, "write token=command:/path/to/program, with arguments behind it")}
		}
		return newTokenProgram(p).token, nil
	}
	return func(context.Context) (string, error) { return value, nil }, nil
}

func tokenFix(err error, otherwise string) string {
	if hint := command.Hint(err); hint != "" {
		return hint
	}
	return otherwise
}

// staysHere tells whether nobody else hears what is said to address.
func staysHere(address string) bool {
	kind, name, err := tunnel.ParseAddress(address)
	if err != nil || kind == "unix" {
		return err == nil
	}
	host, _, err := net.SplitHostPort(name)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "" || strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}

// readToken reads the file at path, which holds a token and blanks around it.
func readToken(path string) (string, error) {
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
	text, err := io.ReadAll(io.LimitReader(f, tokenLimit+1))
	if err != nil {
		return "", err
	}
	token, err := tokenIn(text)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return token, nil
}

func tokenIn(text []byte) (string, error) {
	token := strings.TrimSpace(string(text))
	if len(text) > tokenLimit || !tunnel.IsToken(token) {
		return "", tunnel.ErrToken
	}
	return token, nil
}

// tokenProgram asks a program for tokens, for all connections together.
type tokenProgram struct {
	program *program.Program
	idle    chan struct{} // empty while somebody asks
	last    string
	until   time.Time // last is good
}

func newTokenProgram(p *program.Program) *tokenProgram {
	t := &tokenProgram{program: p, idle: make(chan struct{}, 1)}
	t.idle <- struct{}{}
	return t
}

// token is what the program prints, or has printed a moment ago. The end of ctx ends the program.
func (t *tokenProgram) token(ctx context.Context) (string, error) {
	select {
	case <-t.idle:
		defer func() { t.idle <- struct{}{} }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if time.Now().Before(t.until) {
		return t.last, nil
	}
	text, err := t.program.Output(ctx, tokenLimit)
	if errors.Is(err, program.ErrTooMuch) {
		err = tunnel.ErrToken
	}
	if err == nil {
		t.last, err = tokenIn(text)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", t.program.Path, err)
	}
	t.until = time.Now().Add(tokenAge)
	return t.last, nil
}
