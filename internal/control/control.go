// Package control lets the commands of raimons talk to the edges that run on the same storage folder. Package sockets
// says how, and who may.
//
// Who can open the socket can have certificates revoked.
package control

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"time"

	"raimon/acme"
	"raimon/internal/sockets"
)

// A name waits for its turn, and each of several CAs may take ten minutes.
const orderLimit = time.Hour

// folder has the sockets of edges on the storage root.
func folder(root string) *sockets.Folder {
	return &sockets.Folder{
		Root: root, Name: "control", // certmagic has no values of that name
		Of:       "edge",
		OwnerFix: "only the owner of the storage may talk to its edges: become that user, or root",
		PlaceFix: "storage= names a folder that this user may write, with a short path, on a file system of this machine",
	}
}

// Edge is a running edge.
type Edge struct{ *sockets.Process }

// Find returns the edges that run on the storage folder root; none is no error.
func Find(ctx context.Context, root string) ([]*Edge, error) {
	found, err := folder(root).Find(ctx)
	var edges []*Edge
	for _, p := range found {
		edges = append(edges, &Edge{p})
	}
	return edges, err
}

// Certificates tells of all certificates that e keeps, by name.
func (e *Edge) Certificates(ctx context.Context) ([]acme.Status, error) {
	var all []acme.Status
	err := e.Look(ctx, "/certificates", &all)
	return all, err
}

// Renew replaces the certificate of name and returns what is known of the new one. It takes as long as
// the CA does. Where e or the CA says no, the error is a *sockets.Error.
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

// ReloadConfig makes e take up its config file anew. Where that is wrong, the error is a *sockets.Error.
func (e *Edge) ReloadConfig(ctx context.Context) error {
	return e.Order(ctx, "/reload", &struct{}{})
}

func (e *Edge) order(ctx context.Context, name, verb string) (s acme.Status, err error) {
	err = e.Order(ctx, "/certificates/"+url.PathEscape(name)+"/"+verb, &s)
	return s, err
}

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

// Serve answers commands on a socket below the folder root until ctx ends. The socket is gone
// when it returns. Where it cannot be made, the error has a hint, and nothing else is affected.
func Serve(ctx context.Context, root string, service Service, log *slog.Logger) error {
	return folder(root).Serve(ctx, handler(service), log)
}

func handler(service Service) http.Handler {
	mux := http.NewServeMux()
	if m := service.Certificates; m != nil {
		mux.HandleFunc("GET /certificates", func(w http.ResponseWriter, _ *http.Request) {
			sockets.Answer(w, http.StatusOK, m.Status())
		})
		for verb, do := range map[string]func(context.Context, string) error{"renew": m.Renew, "revoke": m.Revoke, "reload": m.Reload} {
			mux.HandleFunc("POST /certificates/{name}/"+verb, func(w http.ResponseWriter, r *http.Request) {
				order(w, r, m, do)
			})
		}
	} else {
		mux.HandleFunc("GET /certificates", func(w http.ResponseWriter, _ *http.Request) {
			sockets.Answer(w, http.StatusOK, []acme.Status{})
		})
	}
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		if service.Reload == nil {
			sockets.Answer(w, http.StatusNotFound, &sockets.Error{Text: "it has no config file", Fix: "an edge with an option string is restarted; certificate files are followed without that"})
			return
		}
		if err := service.Reload(r.Context()); err != nil {
			sockets.Answer(w, http.StatusUnprocessableEntity, sockets.Told(err))
			return
		}
		sockets.Answer(w, http.StatusOK, struct{}{})
	})
	return mux
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
		sockets.Answer(w, http.StatusServiceUnavailable, &sockets.Error{Text: "the edge is shutting down", Fix: "ask again when it has been started"})
		return
	case errors.As(err, &unknown):
		sockets.Answer(w, http.StatusNotFound, sockets.Told(err))
		return
	default:
		sockets.Answer(w, http.StatusBadGateway, sockets.Told(err))
		return
	}
	all := m.Status()
	n := slices.IndexFunc(all, func(s acme.Status) bool { return s.Name == name })
	if n < 0 {
		sockets.Answer(w, http.StatusOK, acme.Status{Name: name})
		return
	}
	sockets.Answer(w, http.StatusOK, all[n])
}
