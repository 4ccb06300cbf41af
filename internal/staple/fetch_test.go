package staple

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ocsp"
)

// responder is a real one: it answers what it is asked about.
type responder struct {
	t      testing.TB
	ca     *authority
	change func(*ocsp.Response)
	asked  atomic.Int32
}

func (r *responder) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	r.asked.Add(1)
	body, err := io.ReadAll(request.Body)
	if err != nil {
		r.t.Error(err)
	}
	asked, err := ocsp.ParseRequest(body)
	if err != nil || request.Method != http.MethodPost || request.Header.Get("Content-Type") != "application/ocsp-request" {
		r.t.Errorf("request %s %s: %v", request.Method, request.Header.Get("Content-Type"), err)
		w.Write(ocsp.MalformedRequestErrorResponse)
		return
	}
	response := good(&x509.Certificate{SerialNumber: asked.SerialNumber})
	if r.change != nil {
		r.change(&response)
	}
	w.Header().Set("Content-Type", "application/ocsp-response")
	w.Write(r.ca.respond(r.t, response))
}

func serve(t testing.TB, handler http.Handler) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(func() {
		server.CloseClientConnections() // or a hanging handler would be waited for
		server.Close()
	})
	return server.URL
}

// handle is a server for answers that no responder should give.
func handle(t testing.TB, do func(http.ResponseWriter, *http.Request)) string {
	t.Helper()
	return serve(t, http.HandlerFunc(do))
}

// hanging reads the request and stays silent until the client goes away.
func hanging(_ http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// closedPort is an address that refuses connections.
func closedPort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

func chainFor(t testing.TB, ca *authority, servers ...string) []*x509.Certificate {
	t.Helper()
	leaf := ca.issue(t, newKey(t).Public(), func(c *x509.Certificate) { c.OCSPServer = servers })
	return []*x509.Certificate{leaf, ca.cert}
}

func TestFetch(t *testing.T) {
	ca := newAuthority(t, "Test CA")
	now := time.Now()
	respond := func(change func(*ocsp.Response)) string {
		return serve(t, &responder{t: t, ca: ca, change: change})
	}
	redirect := func(status int, to string) string {
		return handle(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, status) })
	}
	healthy := respond(nil)
	failing := handle(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	unknown := respond(func(r *ocsp.Response) { r.Status = ocsp.Unknown })
	revoked := respond(func(r *ocsp.Response) {
		r.Status, r.RevokedAt = ocsp.Revoked, time.Date(2026, 2, 3, 4, 5, 0, 0, time.UTC)
	})
	hop := redirect(http.StatusTemporaryRedirect, healthy)
	for range maxRedirects {
		hop = redirect(http.StatusPermanentRedirect, hop)
	}

	for name, test := range map[string]struct {
		servers []string
		want    string // in the error; empty if there is a staple
		is      error
	}{
		"good":     {[]string{healthy}, "", nil},
		"revoked":  {[]string{revoked}, "since 2026-02-03T04:05:00Z the certificate is revoked", ErrRevoked},
		"unknown":  {[]string{unknown}, "does not know the certificate", nil},
		"serial":   {[]string{respond(func(r *ocsp.Response) { r.SerialNumber = big.NewInt(7) })}, "no response matching", nil},
		"issuer":   {[]string{serve(t, &responder{t: t, ca: newAuthority(t, "Other CA")})}, `signature of "CN=Test CA"`, nil},
		"expired":  {[]string{respond(func(r *ocsp.Response) { r.NextUpdate = now.Add(-time.Hour) })}, "not valid after", nil},
		"future":   {[]string{respond(func(r *ocsp.Response) { r.ThisUpdate = now.Add(time.Hour) })}, "not valid before", nil},
		"500":      {[]string{failing}, "HTTP status 500", nil},
		"refused":  {[]string{closedPort(t)}, "connect", nil},
		"web page": {[]string{handle(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") })}, "asn1", nil},
		"later":    {[]string{handle(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(ocsp.TryLaterErrorResponse) })}, "try later", nil},
		"endless": {[]string{handle(t, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				w.Write(make([]byte, 1<<10))
			}
		})}, "larger than 65536 bytes", nil},
		"endless head": {[]string{handle(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Filler", strings.Repeat("x", maxHead))
		})}, "exceeded", nil},

		"lapsed revocation": {
			// Outside its time a response says nothing at all (RFC 6960, section 3.2).
			[]string{respond(func(r *ocsp.Response) { r.Status, r.NextUpdate = ocsp.Revoked, now.Add(-time.Hour) })}, "not valid after", nil,
		},
		"redirects":     {[]string{redirect(http.StatusTemporaryRedirect, healthy)}, "", nil},
		"too many":      {[]string{hop}, "more than 3 redirects", nil},
		"redirect loop": {[]string{handle(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusTemporaryRedirect) })}, "more than 3 redirects", nil},
		"redirect, GET": {[]string{redirect(http.StatusFound, healthy)}, "turns the request into a GET", nil},
		"redirect, ftp": {[]string{redirect(http.StatusTemporaryRedirect, "ftp://127.0.0.1/")}, "another protocol", nil},

		"second":         {[]string{failing, healthy}, "", nil},
		"fourth":         {[]string{failing, closedPort(t), unknown, healthy}, "", nil},
		"after ldap":     {[]string{"ldap://127.0.0.1/", healthy}, "", nil},
		"all fail":       {[]string{failing, unknown}, "HTTP status 500; ", nil},
		"revoked is all": {[]string{revoked, healthy}, "the certificate is revoked", ErrRevoked},
		"none":           {nil, "names no OCSP responder", ErrNoResponder},
		"ldap only":      {[]string{"ldap://127.0.0.1/", "http:", ":"}, "names no OCSP responder", ErrNoResponder},
	} {
		t.Run(name, func(t *testing.T) {
			chain := chainFor(t, ca, test.servers...)
			s, err := Fetch(t.Context(), nil, chain)
			if (s == nil) != (err != nil) {
				t.Fatalf("got %v and %v", s, err)
			}
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if _, err := Parse(s.DER, chain); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("error %v, want %q, %v", err, test.want, test.is)
			}
			if len(err.Error()) > 500 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

func TestFetchChain(t *testing.T) {
	ca := newAuthority(t, "Test CA")
	r := &responder{t: t, ca: ca}
	chain := chainFor(t, ca, serve(t, r))
	if _, err := Fetch(t.Context(), nil, chain[:1]); !errors.Is(err, ErrNoIssuer) {
		t.Errorf("without the issuer: %v, want ErrNoIssuer", err)
	}
	if _, err := Fetch(t.Context(), nil, nil); err == nil {
		t.Error("without a certificate: no error")
	}
	if n := r.asked.Load(); n != 0 {
		t.Errorf("asked %d times", n)
	}
}

// A client of the caller's is used, and left as it is.
func TestFetchClient(t *testing.T) {
	ca := newAuthority(t, "Test CA")
	server := httptest.NewTLSServer(&responder{t: t, ca: ca})
	defer server.Close()
	redirects := 0
	client := server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { redirects++; return nil }
	to := handle(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, server.URL, http.StatusTemporaryRedirect)
	})
	if _, err := Fetch(t.Context(), client, chainFor(t, ca, to)); err != nil {
		t.Error(err)
	}
	if redirects != 1 {
		t.Errorf("the client saw %d redirects, want 1", redirects)
	}
	if _, err := Fetch(t.Context(), nil, chainFor(t, ca, server.URL)); err == nil {
		t.Error("took the test's certificate without its client")
	}
}

// roundTrip answers without a network, so that time can be the bubble's.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestFetchTimeout(t *testing.T) {
	ca := newAuthority(t, "Test CA")
	t.Run("ctx", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		server := handle(t, func(w http.ResponseWriter, r *http.Request) {
			cancel()
			hanging(w, r)
		})
		healthy := &responder{t: t, ca: ca}
		_, err := Fetch(ctx, nil, chainFor(t, ca, server, serve(t, healthy)))
		if !errors.Is(err, context.Canceled) || strings.Count(err.Error(), "http://") != 1 {
			t.Errorf("error %v, want context.Canceled at the first responder", err)
		}
		if n := healthy.asked.Load(); n != 0 {
			t.Error("asked the next after ctx had ended")
		}
	})
	for name, test := range map[string]struct {
		servers []string
		takes   time.Duration
		want    string
	}{
		"one":            {[]string{"http://hangs.example"}, 10 * time.Second, "no answer within 10s"},
		"first of two":   {[]string{"http://hangs.example", "http://good.example"}, 5 * time.Second, ""},
		"body":           {[]string{"http://body.example"}, 10 * time.Second, "no answer within 10s"},
		"body, then not": {[]string{"http://body.example", "http://good.example"}, 5 * time.Second, ""},
		"both": {
			[]string{"http://hangs.example", "http://hangs.example/2"}, 10 * time.Second,
			`"http://hangs.example": no answer within 5s; "http://hangs.example/2": no answer within 5s`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := newAuthority(t, "Test CA")
				chain := chainFor(t, ca, test.servers...)
				client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
					answer := &http.Response{StatusCode: http.StatusOK, Request: r}
					switch r.URL.Host {
					case "hangs.example":
						<-r.Context().Done()
						return nil, r.Context().Err()
					case "body.example":
						answer.Body = body{r.Context()}
					default:
						answer.Body = io.NopCloser(bytes.NewReader(ca.respond(t, good(chain[0]))))
					}
					return answer, nil
				})}
				began := time.Now()
				_, err := Fetch(t.Context(), client, chain)
				if took := time.Since(began); took != test.takes {
					t.Errorf("took %v, want %v", took, test.takes)
				}
				if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("error %v, want %q", err, test.want)
				}
			})
		})
	}
}

// body never comes to an end.
type body struct{ ctx context.Context }

func (b body) Read(p []byte) (int, error) {
	<-b.ctx.Done()
	return 0, b.ctx.Err()
}

func (body) Close() error { return nil }
