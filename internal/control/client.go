package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"raimon/acme"
)

const (
	dialLimit = 2 * time.Second
	// listLimit is for an edge that does not answer: stopped, or starved.
	listLimit = 5 * time.Second
	maxAnswer = 16 << 20 // bytes: 10,000 names with errors
)

// Edge is a running edge.
type Edge struct {
	PID string // in the edge's own container, if it is in one

	folder, name string // of the socket
}

// Find returns the edges that run on the storage folder root; none is no error.
func Find(ctx context.Context, root string) ([]*Edge, error) {
	folder := filepath.Join(root, folderName)
	names, err := sockets(folder)
	if errors.Is(err, fs.ErrPermission) {
		return nil, &Error{Text: err.Error(), Fix: "only the owner of the storage may talk to its edges: become that user, or root"}
	}
	if err != nil {
		return nil, err
	}
	var edges []*Edge
	for _, name := range names {
		if !dead(ctx, folder, name) {
			pid, _, _ := strings.Cut(name, "-")
			edges = append(edges, &Edge{PID: pid, folder: folder, name: name})
		}
	}
	return edges, ctx.Err()
}

// Certificates tells of all certificates that e keeps, by name.
func (e *Edge) Certificates(ctx context.Context) ([]acme.Status, error) {
	limited, cancel := context.WithTimeoutCause(ctx, listLimit, fmt.Errorf("no answer in %v", listLimit))
	defer cancel()
	var all []acme.Status
	err := e.ask(limited, http.MethodGet, "/certificates", &all)
	return all, err
}

// Renew replaces the certificate of name and returns what is known of the new one. It takes as long as
// the CA does. Where e or the CA says no, the error is an *Error.
func (e *Edge) Renew(ctx context.Context, name string) (acme.Status, error) {
	return e.order(ctx, name, "renew")
}

// Revoke is like Renew, but the CA is told first that the old certificate must not be trusted any more.
func (e *Edge) Revoke(ctx context.Context, name string) (acme.Status, error) {
	return e.order(ctx, name, "revoke")
}

// Reload makes e take up what another process has stored.
func (e *Edge) Reload(ctx context.Context, name string) (acme.Status, error) {
	return e.order(ctx, name, "reload")
}

// ReloadConfig makes e take up its config file anew. Where that is wrong, the error is an *Error.
func (e *Edge) ReloadConfig(ctx context.Context) error {
	return e.ask(ctx, http.MethodPost, "/reload", &struct{}{})
}

func (e *Edge) order(ctx context.Context, name, verb string) (s acme.Status, err error) {
	err = e.ask(ctx, http.MethodPost, "/certificates/"+url.PathEscape(name)+"/"+verb, &s)
	return s, err
}

// ask sends one request and reads the answer into value.
func (e *Edge) ask(ctx context.Context, method, path string, value any) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://edge"+path, nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, e.folder, e.name) },
		DisableKeepAlives:      true,
		MaxResponseHeaderBytes: maxHeader,
	}
	response, err := transport.RoundTrip(request) // no redirects, no cookies
	if err != nil {
		return e.lost(ctx, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return e.lost(ctx, err)
	}
	if response.StatusCode != http.StatusOK {
		said := &Error{}
		if json.Unmarshal(text, said) != nil || said.Text == "" {
			return fmt.Errorf("the edge with process id %s answers with status %d", e.PID, response.StatusCode)
		}
		return said
	}
	if err := json.Unmarshal(text, value); err != nil {
		return fmt.Errorf("the edge with process id %s: its answer: %w", e.PID, err)
	}
	return nil
}

// lost says what became of e; its context says why where that has ended.
func (e *Edge) lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it has ended before it answered")
	}
	return fmt.Errorf("the edge with process id %s: %w", e.PID, err)
}

// sockets are the names of all that lie in folder, dead ones too.
func sockets(folder string) ([]string, error) {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), extension) {
			names = append(names, entry.Name())
		}
	}
	return names, err
}

// dead tells whether nobody listens any more. One that does not answer lives.
func dead(ctx context.Context, folder, name string) bool {
	c, err := dial(ctx, folder, name)
	if err == nil {
		c.Close()
		return false
	}
	return errors.Is(err, errRefused) || errors.Is(err, fs.ErrNotExist)
}

func dial(ctx context.Context, folder, name string) (c net.Conn, err error) {
	err = withPath(folder, name, func(path string) (err error) {
		dialer := net.Dialer{Timeout: dialLimit}
		c, err = dialer.DialContext(ctx, "unix", path)
		return err
	})
	return c, err
}
