// Package control lets the commands of raimons talk to the edges that run on the same storage folder:
// HTTP with JSON, over a Unix socket of each edge.
//
// Who can open the socket can have certificates revoked. So it is for the owner of the storage alone, and
// for the superuser.
package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"raimon/acme"
	"raimon/internal/ownership"
)

// Service is what an edge can do for those who ask. What is nil it cannot do.
type Service struct {
	// Certificates are those that the edge keeps.
	Certificates Manager
	// Reload takes up the config file anew.
	Reload func(ctx context.Context) error
}

// Manager is what an edge is asked for; see acme.Manager.
type Manager interface {
	Status() []acme.Status
	Renew(ctx context.Context, name string) error
	Revoke(ctx context.Context, name string) error
	Reload(ctx context.Context, name string) error
}

const (
	folderName = "control" // in the storage; certmagic has no values of that name
	extension  = ".sock"

	folderMode = 0o700
	socketMode = 0o600

	maxConnections = 32
	maxHeader      = 4 << 10 // bytes; net/http adds as much
	requestLimit   = 5 * time.Second
	// A name waits for its turn, and each of several CAs may take ten minutes.
	orderLimit  = time.Hour
	answerLimit = 10 * time.Second
	// endLimit is how long those who wait for an answer get to hear that there is none.
	endLimit = 500 * time.Millisecond
)

// Serve answers commands on a socket below the folder root until ctx ends. The socket is gone
// when it returns. Where it cannot be made, the error has a hint, and nothing else is affected.
func Serve(ctx context.Context, root string, service Service, log *slog.Logger) error {
	folder := filepath.Join(root, folderName)
	listener, remove, err := listen(root, folder)
	if err != nil {
		return &Error{Text: fmt.Sprintf("control socket in %s: %v", folder, err), Fix: listenFix(err)}
	}
	defer remove()
	log.Debug("commands are answered", "folder", folder)

	orders, stop := context.WithCancel(ctx)
	defer stop()
	server := &http.Server{
		Handler:           handler(service),
		BaseContext:       func(net.Listener) context.Context { return orders },
		ReadHeaderTimeout: requestLimit,
		IdleTimeout:       requestLimit,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { sweep(orders, folder) })
	running.Go(func() {
		<-orders.Done()
		remove() // first, so that nobody comes any more
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
		defer cancel()
		if server.Shutdown(limited) != nil {
			server.Close()
		}
	})
	err = server.Serve(netutil.LimitListener(listener, maxConnections))
	stop()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("control socket in %s: %w", folder, err)
}

// listen makes a socket of a name that no other process has, whatever process ids mean to it.
func listen(root, folder string) (listener net.Listener, remove func(), err error) {
	if err := makeFolder(root); err != nil {
		return nil, nil, err
	}
	name := fmt.Sprintf("%d-%s%s", os.Getpid(), rand.Text()[:8], extension)
	err = withPath(folder, name, func(path string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err == nil {
			l.SetUnlinkOnClose(false) // the path may have been good for now only
			listener = l
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	path := filepath.Join(folder, name)
	remove = sync.OnceFunc(func() { os.Remove(path) })
	if err := protect(root, name); err != nil {
		remove()
		listener.Close()
		return nil, nil, err
	}
	return listener, remove, nil
}

// makeFolder makes the folder of the sockets, private whatever the umask and whoever made it.
func makeFolder(root string) error {
	if err := os.MkdirAll(root, folderMode); err != nil {
		return err
	}
	opened, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer opened.Close()
	if err := opened.Mkdir(folderName, folderMode); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	info, err := opened.Lstat(folderName)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is in its place, and no folder", info.Mode().Type())
	}
	if err := private(opened, folderName, info, folderMode); err != nil {
		return err
	}
	return ownership.Inherit(opened, folderName)
}

// protect closes the new socket to others; until now the folder did that alone.
func protect(root, name string) error {
	opened, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer opened.Close()
	name = filepath.Join(folderName, name)
	info, err := opened.Lstat(name)
	if err != nil {
		return err
	}
	if err := private(opened, name, info, socketMode); err != nil {
		return err
	}
	return ownership.Inherit(opened, name)
}

// sweep removes the sockets of those who were killed.
func sweep(ctx context.Context, folder string) {
	names, err := sockets(folder)
	if err != nil {
		return // who lists them says why
	}
	for _, name := range names {
		if !dead(ctx, folder, name) {
			continue
		}
		// Between its bind and its listen a socket of the living refuses too, for microseconds.
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return
		}
		if dead(ctx, folder, name) {
			os.Remove(filepath.Join(folder, name))
		}
	}
}

func handler(service Service) http.Handler {
	mux := http.NewServeMux()
	if m := service.Certificates; m != nil {
		mux.HandleFunc("GET /certificates", func(w http.ResponseWriter, _ *http.Request) {
			answer(w, http.StatusOK, m.Status())
		})
		for verb, do := range map[string]func(context.Context, string) error{"renew": m.Renew, "revoke": m.Revoke, "reload": m.Reload} {
			mux.HandleFunc("POST /certificates/{name}/"+verb, func(w http.ResponseWriter, r *http.Request) {
				order(w, r, m, do)
			})
		}
	} else {
		mux.HandleFunc("GET /certificates", func(w http.ResponseWriter, _ *http.Request) {
			answer(w, http.StatusOK, []acme.Status{})
		})
	}
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		if service.Reload == nil {
			answer(w, http.StatusNotFound, &Error{Text: "it has no config file", Fix: "an edge with an option string is restarted; certificate files are followed without that"})
			return
		}
		if err := service.Reload(r.Context()); err != nil {
			answer(w, http.StatusUnprocessableEntity, &Error{Text: err.Error(), Fix: hintOf(err)})
			return
		}
		answer(w, http.StatusOK, struct{}{})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 { // unread, it would keep us from noticing that the client has gone
			w.Header().Set("Connection", "close")
			answer(w, http.StatusRequestEntityTooLarge, &Error{Text: "a request has no body here"})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// order does what is asked, and answers with what is known of the certificate then.
func order(w http.ResponseWriter, r *http.Request, m Manager, do func(context.Context, string) error) {
	name := r.PathValue("name")
	limited, cancel := context.WithTimeout(r.Context(), orderLimit)
	defer cancel()
	err := do(limited, name)
	var unknown *acme.ConfigError
	switch {
	case err == nil:
	case r.Context().Err() != nil: // else nobody is there to read it
		answer(w, http.StatusServiceUnavailable, &Error{Text: "the edge is shutting down", Fix: "ask again when it has been started"})
		return
	case errors.As(err, &unknown):
		answer(w, http.StatusNotFound, &Error{Text: err.Error(), Fix: unknown.Fix})
		return
	default:
		answer(w, http.StatusBadGateway, &Error{Text: err.Error(), Fix: hintOf(err)})
		return
	}
	all := m.Status()
	n := slices.IndexFunc(all, func(s acme.Status) bool { return s.Name == name })
	if n < 0 {
		answer(w, http.StatusOK, acme.Status{Name: name})
		return
	}
	answer(w, http.StatusOK, all[n])
}

func answer(w http.ResponseWriter, status int, value any) {
	text, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	// Who does not read does not keep us. Nothing is left to do about the errors of both.
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerLimit))
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(text, '\n'))
}

// Error is what an edge, or the way to it, has to say.
type Error struct {
	Text string `json:"error"`
	Fix  string `json:"hint,omitempty"` // what to do; empty if there is nothing to say
}

func (e *Error) Error() string { return e.Text }

// Hint says what to do.
func (e *Error) Hint() string { return e.Fix }

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func listenFix(err error) string {
	return cmp.Or(hintOf(err), "storage= names a folder that this user may write, on a file system of this machine")
}
