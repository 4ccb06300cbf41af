package edge

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"

	"raimon/tunnel"
)

// Admin shows what a Server does, over HTTP: a page for people at /, the same as JSON at /status.json,
// /metrics for Prometheus, /healthz and /readyz for whoever restarts and balances, /debug/pprof/ for Go's
// profiles. It changes nothing. It tells clients' addresses, so it is not for strangers: see CheckAdminAddress.
//
// Set the fields, then call Serve once.
type Admin struct {
	Server *Server
	// Metrics are those of Server; nil shows the live ones only.
	Metrics *Metrics
	// Certificates are those that are obtained and renewed, in the order of the page. Nil: none.
	Certificates func() []CertificateStatus
	// Storage says why the storage cannot be written to. It is asked by /readyz, at most every ten seconds,
	// never twice at a time, and should end with its context. Nil: there is none.
	Storage func(context.Context) error
	// TokenFile holds a token of at least 16 characters that every request has to carry, as
	// "Authorization: Bearer …", or as the password of Basic, which browsers ask for. It is read at every
	// request: a new token counts at once. Empty: no token, and loopback and Unix sockets only.
	TokenFile string
	// Recent has the warnings of the page; nil: none.
	Recent *RecentLog
	// Log takes errors. Nil discards them.
	Log *slog.Logger
	// Version is that of the program.
	Version string

	checkTimeout    time.Duration // zero: checkTimeout
	started         time.Time
	history         recorder
	storageCheck    check
	certificateShow check
	prepare         sync.Once
}

const (
	adminConnections = 64
	adminHeaders     = 16 << 10
	adminRead        = 10 * time.Second
	// Profiles take the seconds that they are asked for, less than this.
	adminWrite = 2 * time.Minute
	adminIdle  = time.Minute
	// adminEnd is how long answers may finish when all ends.
	adminEnd = 500 * time.Millisecond
	scrapes  = 4 // at a time
)

// Serve answers on l until ctx ends, and closes l. It returns when every goroutine that it started has
// ended. The error says that l is no address for an Admin without a token, that the token is missing or
// too short, or what became of l; it may have a Hint.
func (a *Admin) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if a.TokenFile == "" && !isPrivate(l.Addr()) {
		return &AdminError{Text: fmt.Sprintf("admin address %s: others than this machine could connect to it, and there is no token", l.Addr()), Fix: needsToken}
	}
	if a.TokenFile != "" {
		if _, err := readToken(a.TokenFile); err != nil {
			return err
		}
	}
	ctx, stop := context.WithCancel(ctx)
	var running, connections sync.WaitGroup
	defer a.storageCheck.wait.Wait()
	defer a.certificateShow.wait.Wait()
	defer connections.Wait()
	defer running.Wait()
	defer stop()
	server := &http.Server{
		Handler:           a.Handler(),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: adminRead, ReadTimeout: adminRead, WriteTimeout: adminWrite, IdleTimeout: adminIdle,
		MaxHeaderBytes: adminHeaders,
		ErrorLog:       slog.NewLogLogger(a.log().Handler(), slog.LevelDebug),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew: // on this goroutine
				connections.Add(1)
			case http.StateClosed:
				connections.Done()
			}
		},
	}
	running.Go(func() { a.history.run(ctx, a.Server) })
	running.Go(func() {
		<-ctx.Done()
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminEnd)
		defer cancel()
		if server.Shutdown(limited) != nil {
			server.Close()
		}
	})
	err := server.Serve(netutil.LimitListener(l, adminConnections))
	stop()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("admin %s: %w", l.Addr(), err)
}

// Handler is what Serve answers with. Without Serve nobody measures, so speeds and the chart stay empty.
func (a *Admin) Handler() http.Handler {
	a.prepare.Do(func() {
		a.started = time.Now()
		timeout := cmp.Or(a.checkTimeout, checkTimeout)
		a.storageCheck = check{what: "storage", good: storageCheckedFor, timeout: timeout, ask: a.storageProblems}
		a.certificateShow = check{what: "certificates", good: checkedFor, timeout: timeout, ask: a.Server.certificateProblems}
	})
	mux := http.NewServeMux()
	mux.Handle("/metrics", a.metricsHandler())
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", a.tellReady)
	mux.HandleFunc("/status.json", a.tellStatus)
	mux.HandleFunc("/{$}", a.tellPage)
	mux.Handle("/page/", pageFiles())
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.Handle("/debug/pprof/cmdline", http.NotFoundHandler()) // options may be secrets
	return a.guard(mux)
}

func (a *Admin) metricsHandler() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&liveCollector{a, newLiveDescs()})
	sources := prometheus.Gatherers{registry}
	if a.Metrics != nil {
		sources = append(sources, a.Metrics.registry)
	}
	return promhttp.HandlerFor(sources, promhttp.HandlerOpts{
		ErrorLog: scrapeErrors{a.log()}, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: scrapes, EnableOpenMetrics: true,
	})
}

// scrapeErrors implements promhttp.Logger.
type scrapeErrors struct{ log *slog.Logger }

func (e scrapeErrors) Println(v ...any) { e.log.Error("metrics", "error", fmt.Sprint(v...)) }

// tellReady answers 503, and why, where this edge should get no connections.
func (a *Admin) tellReady(w http.ResponseWriter, r *http.Request) {
	problems := a.problems(r.Context())
	if len(problems) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		for _, p := range problems {
			fmt.Fprintln(w, p)
		}
		return
	}
	fmt.Fprintln(w, "ready")
}

// problems are why this edge should get no connections; empty: it should.
func (a *Admin) problems(ctx context.Context) []string {
	problems := []string{}
	if err := a.Server.serves(); err != nil {
		problems = append(problems, err.Error())
	}
	problems = append(problems, a.certificateShow.problems(ctx)...)
	if a.Storage != nil {
		problems = append(problems, a.storageCheck.problems(ctx)...)
	}
	return problems
}

func (a *Admin) storageProblems(ctx context.Context) []string {
	if err := a.Storage(ctx); err != nil {
		a.Metrics.StorageFailed("check")
		return []string{fmt.Sprintf("storage: %v", err)}
	}
	return nil
}

// tellStatus answers with JSON. The number of tunnels in it is that of the query's key tunnels.
func (a *Admin) tellStatus(w http.ResponseWriter, r *http.Request) {
	limit := shownTunnels
	if text := r.URL.Query().Get("tunnels"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > maxShownTunnels {
			http.Error(w, fmt.Sprintf("tunnels= is a number up to %d", maxShownTunnels), http.StatusBadRequest)
			return
		}
		limit = n
	}
	body, err := json.MarshalIndent(a.status(r.Context(), limit), "", "\t")
	if err != nil {
		a.log().Error("status", "error", err)
		http.Error(w, "the status cannot be written: the log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(body, '\n'))
}

func (a *Admin) certificates() []CertificateStatus {
	if a.Certificates == nil {
		return nil
	}
	return a.Certificates()
}

func (a *Admin) log() *slog.Logger {
	if a.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return a.Log
}

// CheckAdminAddress says why an Admin must not listen on address, which is in the form of tunnel.ParseAddress:
// without a token, only what is on this machine may connect. Its error has a Hint.
func CheckAdminAddress(address string, hasToken bool) error {
	kind, name, err := tunnel.ParseAddress(address)
	if err != nil {
		return &AdminError{Text: "admin " + err.Error(), Fix: "write 127.0.0.1:9180 or unix:/run/raimon/admin.sock"}
	}
	host, _, _ := net.SplitHostPort(name)
	if kind == "unix" || hasToken || host == "localhost" || net.ParseIP(host).IsLoopback() {
		return nil
	}
	return &AdminError{Text: fmt.Sprintf("admin address %q: others than this machine could connect to it, and there is no token", address), Fix: needsToken}
}

const needsToken = "listen on 127.0.0.1 or a unix socket, or name a token-file"

// isPrivate tells whether only what is on this machine can connect.
func isPrivate(a net.Addr) bool {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.IP.IsLoopback()
	}
	return a.Network() == "unix"
}

// AdminError says what is wrong with the settings of an Admin.
type AdminError struct{ Text, Fix string }

func (e *AdminError) Error() string { return e.Text }

// Hint says what to do.
func (e *AdminError) Hint() string { return e.Fix }
