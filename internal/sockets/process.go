package sockets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	// lookLimit is for a process that does not answer: stopped, or starved.
	lookLimit = 5 * time.Second
	maxAnswer = 16 << 20 // bytes: 10,000 names with errors
)

// Process is one that is running.
type Process struct {
	PID string // in its own container, if it is in one

	folder *Folder
	name   string // of the socket
}

// Look asks for what is at path, and reads it into value. It waits for five seconds.
func (p *Process) Look(ctx context.Context, path string, value any) error {
	limited, cancel := context.WithTimeoutCause(ctx, lookLimit, fmt.Errorf("no answer in %v", lookLimit))
	defer cancel()
	return p.ask(limited, http.MethodGet, path, value)
}

// Order gives the order that path is, and reads what came of it into value. It takes as long as the order does. Where
// the answer is no, the error is an *Error.
func (p *Process) Order(ctx context.Context, path string, value any) error {
	return p.ask(ctx, http.MethodPost, path, value)
}

// ask sends one request and reads the answer into value.
func (p *Process) ask(ctx context.Context, method, path string, value any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+p.folder.Of+path, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return p.folder.dial(ctx, p.name) },
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxHeader,
	}
	response, err := transport.RoundTrip(request) // no redirects, no cookies
	if err != nil {
		return p.lost(ctx, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return p.lost(ctx, err)
	}
	if response.StatusCode != http.StatusOK {
		said := &Error{}
		if json.Unmarshal(text, said) != nil || said.Text == "" {
			return fmt.Errorf("%s answers with status %d", p, response.StatusCode)
		}
		return said
	}
	if err := json.Unmarshal(text, value); err != nil {
		return fmt.Errorf("%s: its answer: %w", p, err)
	}
	return nil
}

// lost says what became of p; its context says why where that has ended.
func (p *Process) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it has ended before it answered")
	}
	return fmt.Errorf("%s: %w", p, err)
}

// String is what messages call p.
func (p *Process) String() string {
	return fmt.Sprintf("the %s with process id %s", p.folder.Of, p.PID)
}
