package edge_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"raimon/internal/acmetest"
	"raimon/internal/commandtest"
)

// nobody is an address where nobody listens: tcpmux.
const nobody = "127.0.0.1:1"

// The CA comes to the port that clients are using, and no client notices, neither of the first certificate nor
// of renewals.
func TestTLSALPN01(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{Profiles: brief})
	e := start(t, ca, "acme=a.test;profile=brief")
	clients := gather(t, e.tunnels, "a.test", ca.IssuingRoot.Pool)
	ca.TLSALPN01.To(e.tunnels)
	for _, lines := range []string{`"certificate obtained"`, `"certificate renewed"`, `(?s)"certificate renewed".*"certificate renewed"`} {
		e.Log.Wait(t, lines)
	}
	eventually(t, func() error {
		if e.shows(t, ca, "a.test").SerialNumber.Cmp(ca.Issued()[2].SerialNumber) < 0 {
			return errors.New("an old certificate is served")
		}
		return nil
	})
	clients.wantHappy(t, 50)
	// Pebble makes three for each of three certificates.
	if n := ca.TLSALPN01.Count(); n < 9 || ca.HTTP01.Count() != 0 {
		t.Errorf("the CA came %d times to the tunnel's port and %d times to that of HTTP-01", n, ca.HTTP01.Count())
	}
	e.wantQuiet(t)
}

// A Unix socket cannot be reached by a CA: only HTTP-01 is left. Everybody else is redirected.
func TestHTTP01(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	e := startAt(t, "unix:"+filepath.Join(t.TempDir(), "edge"), complete(t, ca, "acme=a.test;http=127.0.0.1:0"))
	wantRedirect(t, e.web, "/")
	ca.HTTP01.To(e.web)
	e.shows(t, ca, "a.test")
	wantRedirect(t, e.web, "/any/path?and=query")
	wantRedirect(t, e.web, "/.well-known/acme-challenge/nonsense")
	if ca.TLSALPN01.Count() != 0 || ca.HTTP01.Count() < 3 {
		t.Errorf("the CA came %d times for TLS-ALPN-01, %d times for HTTP-01", ca.TLSALPN01.Count(), ca.HTTP01.Count())
	}
	e.wantQuiet(t)
}

func wantRedirect(t testing.TB, web, path string) {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, "http://"+web+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = "a.test"
	response, err := (&http.Client{
		Timeout:       commandtest.Patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	io.Copy(io.Discard, response.Body)
	if want := "https://a.test" + path; response.StatusCode/100 != 3 || response.Header.Get("Location") != want {
		t.Errorf("%s: %s to %q, want %q", path, response.Status, response.Header.Get("Location"), want)
	}
}

// Where one of the ports is not open to the world, the other one does it.
func TestOneChallengeBlocked(t *testing.T) {
	t.Parallel()
	for _, blocked := range []string{"TLS-ALPN-01", "HTTP-01"} {
		t.Run(blocked, func(t *testing.T) {
			t.Parallel()
			ca := acmetest.New(t, acmetest.Config{})
			e := start(t, ca, "acme=a.test;http=127.0.0.1:0")
			tls, web := e.tunnels, e.web
			if blocked == "HTTP-01" {
				web = nobody
			} else {
				tls = nobody
			}
			ca.HTTP01.To(web)
			ca.TLSALPN01.To(tls)
			e.shows(t, ca, "a.test")
			e.wantQuiet(t)
		})
	}
}

// Nothing is open: the log says once what to do, clients get an alert at once.
func TestNoChallengePossible(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	e := start(t, ca, "acme=localhost;http=127.0.0.1:0")
	ca.HTTP01.To(nobody)
	ca.TLSALPN01.To(nobody)
	e.wantAlert(t, "localhost", notYet)
	if failure := e.failure(t); failure.Name != "localhost" || !strings.Contains(failure.Hint, "443") {
		t.Errorf("log: %+v", failure)
	}
	e.wantAlert(t, "localhost", notYet)
	if n := len(ca.Issued()); n != 0 {
		t.Errorf("%d certificates were issued", n)
	}
}

// Several names, all at once.
func TestManyNames(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	var names []string
	for n := range 8 {
		names = append(names, fmt.Sprintf("host%d.test", n))
	}
	e := start(t, ca, "acme="+strings.Join(names, ","))
	ca.TLSALPN01.To(e.tunnels)
	serials := map[string]bool{}
	for _, name := range names {
		serials[e.shows(t, ca, name).SerialNumber.String()] = true
	}
	if len(serials) != len(names) || len(ca.Accounts()) != 1 {
		t.Errorf("%d certificates of %d accounts, want %d of one", len(serials), len(ca.Accounts()), len(names))
	}
	e.wantAlert(t, "unknown.test", unknownName)
	e.wantQuiet(t)
	// These certificates name no responder.
	if n := e.Log.Count(`(?i)ocsp|staple`); n != 0 {
		t.Errorf("%d lines about OCSP", n)
	}
}
