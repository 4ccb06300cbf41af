package edge

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/net/netutil"
)

// Redirect is what port 80 is for, beside the challenges of CAs: it sends everybody to https.
type Redirect struct {
	// Port is where https is served; 443 and empty are left out of URLs.
	Port string
	// Log takes errors of the listener. Nil discards them.
	Log *slog.Logger
}

const (
	// Nobody has a reason to stay on port 80, or to say much.
	redirectTimeout     = 10 * time.Second
	redirectHeaders     = 16 << 10
	redirectConnections = 1000
)

// ServeHTTP implements http.Handler: 308 to the same host and path. A request that names no usable host is refused.
func (r *Redirect) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	w.Header().Set("Connection", "close")
	host := request.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
		if strings.Contains(name, ":") {
			host = "[" + name + "]"
		}
	}
	if host == "" || strings.ContainsAny(host, " /\\@?#%<>\"") {
		http.Error(w, "Bad Request: no usable Host", http.StatusBadRequest)
		return
	}
	if r.Port != "" && r.Port != "443" {
		host += ":" + r.Port
	}
	target := request.URL.RequestURI()
	if !strings.HasPrefix(target, "/") {
		target = "/" // CONNECT
	}
	http.Redirect(w, request, "https://"+host+target, http.StatusPermanentRedirect)
}

// Serve answers on l with handler, which may be r itself, until ctx ends. It closes l.
func (r *Redirect) Serve(ctx context.Context, l net.Listener, handler http.Handler) error {
	logger := r.Log
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	server := &http.Server{
		Handler:        handler,
		ReadTimeout:    redirectTimeout,
		WriteTimeout:   redirectTimeout,
		IdleTimeout:    redirectTimeout,
		MaxHeaderBytes: redirectHeaders,
		ErrorLog:       slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err := server.Serve(netutil.LimitListener(l, redirectConnections))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	logger.Error("port 80", "error", err)
	return err
}
