package edge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// upstreamDial is how long an upstream may take to be connected to, and again for its TLS handshake.
	upstreamDial = 3 * time.Second
	// upstreamAnswer is how long it may think about a request that it has got.
	upstreamAnswer = time.Minute
	// upstreamIdle is how long a connection to it is kept between requests.
	upstreamIdle = 30 * time.Second
	// upstreamHeaders bounds the header of its answer.
	upstreamHeaders = 256 << 10
)

// Upstream passes requests on to the web server at target: an http or https URL, of which a path precedes those of
// requests, or unix:/path. The Host stays that of the request; X-Forwarded-For, -Host and -Proto are
// ours alone. WebSockets pass. Where the server cannot be reached, the answer is 502, and 504 where
// it does not answer in time; log hears of that at most once a minute, and of its end. Nil discards that.
func Upstream(target string, log *slog.Logger) (http.Handler, error) {
	u, socket, err := parseUpstream(target)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	log = log.With("upstream", target)
	outage := &outage{log: log}
	dialer := &net.Dialer{Timeout: upstreamDial}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { rewrite(r, u) },
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				if socket != "" {
					network, address = "unix", socket
				}
				return dialer.DialContext(ctx, network, address)
			},
			Protocols:              protocols,
			TLSHandshakeTimeout:    upstreamDial,
			ResponseHeaderTimeout:  upstreamAnswer,
			ExpectContinueTimeout:  time.Second,
			IdleConnTimeout:        upstreamIdle,
			MaxIdleConnsPerHost:    64,
			MaxResponseHeaderBytes: upstreamHeaders,
			DisableCompression:     true, // answers are not ours to unpack
		},
		FlushInterval:  -1,
		BufferPool:     new(bufferPool),
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ModifyResponse: func(*http.Response) error { outage.end(); return nil },
		ErrorHandler:   outage.answer,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != http.NoBody {
			r = r.WithContext(r.Context())
			r.Body = &clientBody{r.Body}
		}
		proxy.ServeHTTP(w, r)
	}), nil
}

// clientBody marks the errors that are not the upstream's.
type clientBody struct{ io.ReadCloser }

func (b *clientBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = clientError{err}
	}
	return n, err
}

type clientError struct{ error }

func (e clientError) Unwrap() error { return e.error }

// parseUpstream returns what requests are sent to, and the Unix socket that it is reached by, if it is.
func parseUpstream(target string) (u *url.URL, socket string, err error) {
	if path, isSocket := strings.CutPrefix(target, "unix:"); isSocket {
		if !filepath.IsAbs(path) {
			return nil, "", &siteError{fmt.Sprintf("upstream %q: the path of the socket is not absolute", target), "such as unix:/run/web.sock"}
		}
		return &url.URL{Scheme: "http", Host: "unix"}, path, nil
	}
	if u, err = parseSiteURL("upstream", target); err != nil {
		err.(*siteError).hint = "a URL such as http://127.0.0.1:8080, or unix:/run/web.sock"
		return nil, "", err
	}
	if u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return nil, "", &siteError{fmt.Sprintf("upstream %q: a query or a fragment", target), "leave out what begins with ? or #"}
	}
	return u, "", nil
}

// rewrite makes the request for the upstream.
func rewrite(r *httputil.ProxyRequest, target *url.URL) {
	r.SetURL(target)
	r.Out.URL.RawQuery = r.In.URL.RawQuery // to the letter: nobody here has drawn conclusions from it
	r.Out.Host = r.In.Host
	for name := range r.Out.Header {
		if isForwarding(name) {
			delete(r.Out.Header, name)
		}
	}
	r.SetXForwarded()
	// Whatever else a connection can turn into (h2c) would carry requests that nobody here has seen.
	if upgrade := r.Out.Header.Get("Upgrade"); upgrade != "" && (!strings.EqualFold(upgrade, "websocket") || r.In.Method != http.MethodGet) {
		r.Out.Header.Del("Upgrade")
		r.Out.Header.Del("Connection")
	}
}

// isForwarding tells whether a header field says who the client is, which the client must not say. Programs behind
// CGI do not tell an underscore from a hyphen.
func isForwarding(name string) bool {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	return strings.HasPrefix(name, "x-forwarded-") || name == "forwarded" || name == "x-real-ip"
}

// outage is the time in which an upstream does not answer.
type outage struct {
	log *slog.Logger

	mu       sync.Mutex
	failures int       // since the last line
	told     time.Time // the time of that
	telling  bool      // the log has a beginning without an end
}

// answer answers a request that could not be passed on. Err is of the upstream, or of the client.
func (o *outage) answer(w http.ResponseWriter, r *http.Request, err error) {
	var client clientError
	status := http.StatusBadGateway
	switch {
	case errors.As(err, &client) || r.Context().Err() != nil:
		status = http.StatusBadRequest // it has probably gone
	default:
		if isSlow(err) {
			status = http.StatusGatewayTimeout
		}
		o.begin(err)
	}
	http.Error(w, http.StatusText(status), status)
}

// isSlow tells whether an upstream that is there has not answered in time.
func isSlow(err error) bool {
	var timeout net.Error
	var op *net.OpError
	return errors.As(err, &timeout) && timeout.Timeout() && !(errors.As(err, &op) && op.Op == "dial")
}

func (o *outage) begin(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failures++
	if now := time.Now(); now.Sub(o.told) >= time.Minute {
		o.log.Warn("the web server behind the site fails", "error", err, "count", o.failures)
		o.failures, o.told, o.telling = 0, now, true
	}
}

func (o *outage) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.telling {
		o.log.Info("the web server behind the site answers again")
		o.telling = false
	}
}

// bufferPool is for copying answers.
type bufferPool struct{ sync.Pool }

func (p *bufferPool) Get() []byte {
	if b, ok := p.Pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, 32<<10)
}

func (p *bufferPool) Put(b []byte) { p.Pool.Put(&b) }
