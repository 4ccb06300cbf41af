package control_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"raimon/acme"
	"raimon/internal/control"
	"raimon/internal/sockets"
)

const patience = 20 * time.Second

// manager keeps names. Orders for them wait until hold is closed, if it is not nil, or their client has gone.
type manager struct {
	names []string
	hold  chan struct{}
	begun chan string // takes "verb name" of each order
	ended chan error  // takes what each order came to
	err   error
}

func newManager(names ...string) *manager {
	return &manager{names: names, begun: make(chan string, 100), ended: make(chan error, 100)}
}

func (m *manager) Status() []acme.Status {
	all := []acme.Status{}
	for _, name := range m.names {
		all = append(all, acme.Status{Name: name, Issuer: "https://ca.test/dir", NotAfter: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)})
	}
	return all
}

func (m *manager) order(ctx context.Context, verb, name string) (err error) {
	m.begun <- verb + " " + name
	defer func() { m.ended <- err }()
	if !slices.Contains(m.names, name) {
		return &acme.ConfigError{Problem: "no certificate is kept for " + name, Fix: "look at the list"}
	}
	if m.hold != nil {
		select {
		case <-m.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return m.err
}

func (m *manager) Renew(ctx context.Context, name string) error  { return m.order(ctx, "renew", name) }
func (m *manager) Revoke(ctx context.Context, name string) error { return m.order(ctx, "revoke", name) }
func (m *manager) Reload(ctx context.Context, name string) error { return m.order(ctx, "reload", name) }

// serve runs an edge's side until the test ends or stop is called, which returns Serve's error.
func serve(t testing.TB, root string, m control.Manager) (stop func() error) {
	t.Helper()
	before := living(t, root)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		result <- control.Serve(ctx, root, control.Service{Certificates: m}, slog.New(slog.DiscardHandler))
	}()
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-result:
			return err
		case <-time.After(patience):
			return errors.New("Serve does not return")
		}
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	eventually(t, "the edge is not found", func() bool { return living(t, root) > before })
	return stop
}

// living is how many edges are found.
func living(t testing.TB, root string) int {
	t.Helper()
	edges, err := control.Find(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	return len(edges)
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// files are those where edges are found.
func files(t testing.TB, root string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, "control", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// find wants n edges.
func find(t testing.TB, root string, n int) []*control.Edge {
	t.Helper()
	edges, err := control.Find(t.Context(), root)
	if err != nil || len(edges) != n {
		t.Fatalf("found %d edges, %v; want %d", len(edges), err, n)
	}
	return edges
}

// received waits for the next value.
func received[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing happens")
		panic("unreachable")
	}
}

func TestCommands(t *testing.T) {
	root := t.TempDir()
	m := newManager("*.example.com", "2001:db8::1", "a.test")
	serve(t, root, m)
	e := find(t, root, 1)[0]
	if want := fmt.Sprint(os.Getpid()); e.PID != want {
		t.Errorf("process id %s, want %s", e.PID, want)
	}
	if got, err := e.Certificates(t.Context()); err != nil || !slices.Equal(got, m.Status()) {
		t.Errorf("got %v, %v; want %v", got, err, m.Status())
	}
	for _, want := range m.Status() {
		for verb, ask := range map[string]func(context.Context, string) (acme.Status, error){"renew": e.Renew, "revoke": e.Revoke, "reload": e.Reload} {
			if got, err := ask(t.Context(), want.Name); err != nil || got != want {
				t.Errorf("%s %s: %v, %v; want %v", verb, want.Name, got, err, want)
			}
			if got := received(t, m.begun); got != verb+" "+want.Name {
				t.Errorf("the edge was asked to %s, want %s %s", got, verb, want.Name)
			}
		}
	}
}

func TestRefusalsArriveWithTheirHints(t *testing.T) {
	root := t.TempDir()
	m := newManager("a.test")
	m.err = fmt.Errorf("revoked, but: %w", &acme.Failure{Reason: "ca.test says: no", Fix: "ask nicely"})
	serve(t, root, m)
	e := find(t, root, 1)[0]
	for name, want := range map[string]sockets.Error{
		"a.test": {Text: "revoked, but: ca.test says: no", Fix: "ask nicely"},
		"b.test": {Text: "no certificate is kept for b.test", Fix: "look at the list"},
		"../x":   {Text: "no certificate is kept for ../x", Fix: "look at the list"},
	} {
		_, err := e.Renew(t.Context(), name)
		var got *sockets.Error
		if !errors.As(err, &got) || *got != want {
			t.Errorf("%s: got %v, want %v", name, err, &want)
		}
	}
}

func TestSeveralEdgesOnOneStorage(t *testing.T) {
	root := t.TempDir()
	serve(t, root, newManager("a.test"))
	stop := serve(t, root, newManager("b.test"))
	var names []string
	for _, e := range find(t, root, 2) {
		all, err := e.Certificates(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			names = append(names, s.Name)
		}
	}
	if slices.Sort(names); !slices.Equal(names, []string{"a.test", "b.test"}) {
		t.Errorf("the edges keep %v, want one name each", names)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if left := files(t, root); len(left) != 1 {
		t.Errorf("after the end of one edge there are %v, want the socket of the other", left)
	}
	find(t, root, 1)
}

func TestTwoRequestsAtOnce(t *testing.T) {
	root := t.TempDir()
	m := newManager("a.test", "b.test")
	m.hold = make(chan struct{})
	serve(t, root, m)
	e := find(t, root, 1)[0]
	errs := make(chan error, 2)
	for _, name := range m.names {
		go func() {
			_, err := e.Renew(t.Context(), name)
			errs <- err
		}()
	}
	received(t, m.begun)
	received(t, m.begun)
	if _, err := e.Certificates(t.Context()); err != nil {
		t.Errorf("list while both wait: %v", err)
	}
	close(m.hold)
	for range m.names {
		if err := received(t, errs); err != nil {
			t.Error(err)
		}
	}
}

func TestClientGoesAway(t *testing.T) {
	root := t.TempDir()
	m := newManager("a.test")
	m.hold = make(chan struct{})
	serve(t, root, m)
	e := find(t, root, 1)[0]
	ctx, leave := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := e.Renew(ctx, "a.test")
		result <- err
	}()
	received(t, m.begun)
	leave()
	if err := received(t, result); !errors.Is(err, context.Canceled) {
		t.Errorf("the client got %v, want %v", err, context.Canceled)
	}
	if err := received(t, m.ended); !errors.Is(err, context.Canceled) {
		t.Errorf("the order ended with %v, want %v", err, context.Canceled)
	}
	if _, err := e.Certificates(t.Context()); err != nil {
		t.Errorf("the next client: %v", err)
	}
}

func TestShutdownTellsWhoWaits(t *testing.T) {
	root := t.TempDir()
	m := newManager("a.test")
	m.hold = make(chan struct{})
	stop := serve(t, root, m)
	e := find(t, root, 1)[0]
	result := make(chan error, 1)
	go func() {
		_, err := e.Renew(t.Context(), "a.test")
		result <- err
	}()
	received(t, m.begun)
	begun := time.Now()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the end took %v", took)
	}
	if err := received(t, result); err == nil || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("the client got %v, want that the edge is shutting down", err)
	}
	find(t, root, 0)
}

func TestStrangeRequests(t *testing.T) {
	root := t.TempDir()
	serve(t, root, newManager("a.test"))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", files(t, root)[0])
	}}}
	for request, want := range map[string]int{
		"GET /certificates":                   200,
		"GET /":                               404,
		"POST /certificates":                  405,
		"GET /certificates/a.test/renew":      405,
		"POST /certificates/a.test/destroy":   404,
		"POST /certificates/%00%ff/renew":     404,
		"POST /certificates/a.test/renew/now": 404,
		"GET /reload":                         405,
		"POST /reload":                        404, // there is no config file
	} {
		method, path, _ := strings.Cut(request, " ")
		r, err := http.NewRequest(method, "http://edge"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(r)
		if err != nil {
			t.Errorf("%s: %v", request, err)
			continue
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s: status %d, want %d", request, response.StatusCode, want)
		}
	}
}
