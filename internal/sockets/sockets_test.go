package sockets_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"raimon/internal/sockets"
)

const patience = 20 * time.Second

func folder(root string) *sockets.Folder {
	return &sockets.Folder{Root: root, Name: "control", Of: "edge", OwnerFix: "become the owner", PlaceFix: "choose another folder"}
}

// said is what a process tells of itself.
type said struct{ Name string }

// named is a process that says its name, and orders of which wait until their client has gone.
func named(name string, ended chan<- error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /name", func(w http.ResponseWriter, _ *http.Request) { sockets.Answer(w, 200, said{name}) })
	mux.HandleFunc("POST /wait", func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		ended <- context.Cause(r.Context())
	})
	mux.HandleFunc("POST /refuse", func(w http.ResponseWriter, _ *http.Request) {
		sockets.Answer(w, 422, sockets.Told(fmt.Errorf("no: %w", &sockets.Error{Text: "not today", Fix: "ask tomorrow"})))
	})
	return mux
}

// serve runs a process's side until the test ends or stop is called, which returns Serve's error.
func serve(t testing.TB, root string, handler http.Handler) (stop func() error) {
	t.Helper()
	before := living(t, root)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- folder(root).Serve(ctx, handler, slog.New(slog.DiscardHandler)) }()
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
	eventually(t, "the process is not found", func() bool { return living(t, root) > before })
	return stop
}

// living is how many processes are found.
func living(t testing.TB, root string) int {
	t.Helper()
	found, err := folder(root).Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(found)
}

func eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// files are what lies where processes are found.
func files(t testing.TB, root string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, "control", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// find wants n processes.
func find(t testing.TB, root string, n int) []*sockets.Process {
	t.Helper()
	found, err := folder(root).Find(t.Context())
	if err != nil || len(found) != n {
		t.Fatalf("found %d processes, %v; want %d", len(found), err, n)
	}
	return found
}

// wantName asks p for its name.
func wantName(t testing.TB, p *sockets.Process, want string) {
	t.Helper()
	var got said
	if err := p.Look(t.Context(), "/name", &got); err != nil || got.Name != want {
		t.Errorf("got %q, %v; want %q", got.Name, err, want)
	}
}

func TestAskAProcess(t *testing.T) {
	root := t.TempDir()
	serve(t, root, named("a", nil))
	p := find(t, root, 1)[0]
	if want := fmt.Sprint(os.Getpid()); p.PID != want || p.String() != "the edge with process id "+want {
		t.Errorf("%s with process id %s, want %s", p, p.PID, want)
	}
	wantName(t, p, "a")
	err := p.Order(t.Context(), "/refuse", &struct{}{})
	var refusal *sockets.Error
	if !errors.As(err, &refusal) || *refusal != (sockets.Error{Text: "no: not today", Fix: "ask tomorrow"}) {
		t.Errorf("got %v, want the refusal with its hint", err)
	}
	if err := p.Look(t.Context(), "/nothing", &struct{}{}); err == nil || !strings.Contains(err.Error(), "status 404") {
		t.Errorf("got %v, want status 404", err)
	}
}

func TestAskerGoesAway(t *testing.T) {
	root, ended := t.TempDir(), make(chan error, 1)
	serve(t, root, named("a", ended))
	p := find(t, root, 1)[0]
	ctx, leave := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer leave()
	if err := p.Order(ctx, "/wait", &struct{}{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the asker got %v, want %v", err, context.DeadlineExceeded)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Error("the order goes on")
	}
	wantName(t, p, "a")
}

// A connection that says nothing holds up neither others nor the end.
func TestSilentConnections(t *testing.T) {
	root := t.TempDir()
	stop := serve(t, root, named("a", nil))
	for range 10 {
		c, err := net.Dial("unix", files(t, root)[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	wantName(t, find(t, root, 1)[0], "a")
	begun := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("the end took %v", took)
	}
}

func TestStrangeRequests(t *testing.T) {
	root := t.TempDir()
	serve(t, root, named("a", nil))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", files(t, root)[0])
	}}}
	for _, test := range []struct {
		method, path string
		header       string
		body         io.Reader
		want         int
	}{
		{method: "GET", path: "/name", want: 200},
		{method: "GET", path: "/", want: 404},
		{method: "POST", path: "/name", want: 405},
		{method: "POST", path: "/wait", body: strings.NewReader("x"), want: 413},
		{method: "POST", path: "/wait", body: io.LimitReader(endless{}, 1<<20), want: 413},
		{method: "GET", path: "/name", header: strings.Repeat("x", 64<<10), want: 431},
	} {
		request, err := http.NewRequest(test.method, "http://edge"+test.path, test.body)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-Test", test.header)
		response, err := client.Do(request)
		if err != nil {
			t.Errorf("%s %s: %v", test.method, test.path, err)
			continue
		}
		response.Body.Close()
		if response.StatusCode != test.want {
			t.Errorf("%s %s: status %d, want %d", test.method, test.path, response.StatusCode, test.want)
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte("x"), len(p))), nil }

// What listens there need not be one of ours.
func TestStrangeAnswers(t *testing.T) {
	for name, test := range map[string]struct{ answer, want string }{
		"no HTTP":     {"hello\r\n\r\n", "malformed HTTP"},
		"nothing":     {"", "ended before it answered"},
		"no JSON":     {"HTTP/1.1 200 OK\r\n\r\nhello", "its answer"},
		"empty error": {"HTTP/1.1 500 No\r\n\r\n{}", "status 500"},
		"redirect":    {"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "status 302"},
		"cut":         {"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", "ended before it answered"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			folder := filepath.Join(root, "control")
			if err := os.Mkdir(folder, 0o700); err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("unix", filepath.Join(folder, "1-x.sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.SetDeadline(time.Now().Add(patience))
					c.Read(make([]byte, 4096))
					io.WriteString(c, test.answer)
					c.Close()
				}
			}()
			err = find(t, root, 1)[0].Look(t.Context(), "/name", &said{})
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "process id 1") {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestNobody(t *testing.T) {
	find(t, filepath.Join(t.TempDir(), "nowhere"), 0)
	find(t, t.TempDir(), 0)
}

func TestNoPlaceForASocket(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T) (root string){
		"root is a file": func(t *testing.T) string {
			root := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(root, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return root
		},
		"a file has the folder's name": func(t *testing.T) string {
			root := t.TempDir()
			if err := os.WriteFile(filepath.Join(root, "control"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return root
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := folder(prepare(t)).Serve(t.Context(), named("a", nil), slog.New(slog.DiscardHandler))
			var problem *sockets.Error
			if !errors.As(err, &problem) || problem.Hint() != "choose another folder" {
				t.Errorf("got %v, want an error with the hint", err)
			}
		})
	}
}
