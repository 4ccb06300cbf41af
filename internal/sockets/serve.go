package sockets

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

const (
	maxConnections = 32
	maxHeader      = 4 << 10 // bytes; net/http adds as much
	requestLimit   = 5 * time.Second
	answerLimit    = 10 * time.Second
	// endLimit is how long those who wait for an answer get to hear that there is none.
	endLimit = 500 * time.Millisecond
)

// Serve answers requests, which have no body, on a socket in f until ctx ends. The socket is gone when it returns, and
// the contexts of requests have ended. Where it cannot be made, the error has a hint, and nothing else is affected.
func (f *Folder) Serve(ctx context.Context, handler http.Handler, log *slog.Logger) error {
	listener, remove, err := f.listen()
	if err != nil {
		return &Error{Text: fmt.Sprintf("control socket in %s: %v", f.path(), err), Fix: cmp.Or(hintOf(err), f.PlaceFix)}
	}
	defer remove()
	log.Debug("commands are answered", "folder", f.path())

	orders, stop := context.WithCancel(ctx)
	defer stop()
	server := &http.Server{
		Handler:           withoutBody(handler),
		BaseContext:       func(net.Listener) context.Context { return orders },
		ReadHeaderTimeout: requestLimit,
		IdleTimeout:       requestLimit,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { f.sweep(orders) })
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
	return fmt.Errorf("control socket in %s: %w", f.path(), err)
}

// withoutBody refuses requests that have one: unread, it would keep us from noticing that the client has gone.
func withoutBody(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
			Answer(w, http.StatusRequestEntityTooLarge, &Error{Text: "a request has no body here"})
			return
		}
		handler.ServeHTTP(w, r)
	})
}

// Answer sends value, which is an *Error unless status is 200.
func Answer(w http.ResponseWriter, status int, value any) {
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

// Error is what a process, or the way to it, has to say.
type Error struct {
	Text string `json:"error"`
	Fix  string `json:"hint,omitempty"` // what to do; empty if there is nothing to say
}

// Told is err as an Error, with its hint where it has one.
func Told(err error) *Error { return &Error{Text: err.Error(), Fix: hintOf(err)} }

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
