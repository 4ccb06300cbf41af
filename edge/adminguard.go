package edge

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
)

const (
	minToken      = 16 // bytes
	maxAdminToken = 4 << 10
)

// guard lets only those in who may see what an Admin shows.
func (a *Admin) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "+
			"base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, http.StatusText(http.StatusMethodNotAllowed), http.StatusMethodNotAllowed)
		case !a.isExpectedHost(r):
			http.Error(w, "without a token the host has to be an IP address or localhost", http.StatusForbidden)
		case isFromElsewhere(r):
			http.Error(w, "another site asks for this", http.StatusForbidden)
		case a.TokenFile != "":
			a.askToken(w, r, next)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// isExpectedHost keeps pages of other sites out that have their name lead to this machine's loopback: a
// browser would take what they ask for as same-origin. They know no token, and Unix sockets have no names.
func (a *Admin) isExpectedHost(r *http.Request) bool {
	if a.TokenFile != "" {
		return true
	}
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && local.Network() == "unix" {
		return true
	}
	host := (&url.URL{Host: r.Host}).Hostname()
	return strings.EqualFold(host, "localhost") || net.ParseIP(host) != nil
}

// isFromElsewhere tells whether a page of another site makes the browser ask. It may lead to the status
// page, but not have profiles made.
func isFromElsewhere(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
		return false
	}
	return r.Header.Get("Sec-Fetch-Mode") != "navigate" || r.URL.Path != "/"
}

// askToken answers whoever shows the token.
func (a *Admin) askToken(w http.ResponseWriter, r *http.Request, next http.Handler) {
	want, err := readToken(a.TokenFile)
	if err != nil {
		a.log().Error("admin", "error", err, a.Server.hint(err))
		http.Error(w, "the token cannot be read: the log says why", http.StatusServiceUnavailable)
		return
	}
	got, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if _, password, ok := r.BasicAuth(); ok {
		got = password
	}
	// Of one length, and nothing of them shows in how long it takes.
	a1, a2 := sha256.Sum256([]byte(want)), sha256.Sum256([]byte(got))
	if subtle.ConstantTimeCompare(a1[:], a2[:]) != 1 {
		w.Header().Add("WWW-Authenticate", `Bearer realm="raimon"`)
		w.Header().Add("WWW-Authenticate", `Basic realm="raimon: the token is the password", charset="UTF-8"`)
		http.Error(w, http.StatusText(http.StatusUnauthorized), http.StatusUnauthorized)
		return
	}
	next.ServeHTTP(w, r)
}

// CheckAdminToken tells what is wrong with a file for Admin.TokenFile. The error may have a Hint.
func CheckAdminToken(file string) error {
	_, err := readToken(file)
	return err
}

// readToken reads the token of a file: one line, without the blanks around it.
func readToken(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", &tokenError{err, "the file of the token has to be there, and readable for the user that runs this"}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxAdminToken+1))
	if err != nil {
		return "", &tokenError{err, "it has to be a file with one line"}
	}
	token := string(bytes.TrimSpace(text))
	const fix = "openssl rand -hex 32 makes a good one"
	switch {
	case len(text) > maxAdminToken:
		return "", &tokenError{fmt.Errorf("%s is larger than %d bytes", name, maxAdminToken), fix}
	case strings.ContainsAny(token, " \t\r\n"):
		return "", &tokenError{fmt.Errorf("%s has more than one word", name), fix}
	case len(token) < minToken:
		return "", &tokenError{fmt.Errorf("the token in %s is shorter than %d characters", name, minToken), fix}
	}
	return token, nil
}

// tokenError says why there is no token.
type tokenError struct {
	err error
	fix string
}

func (e *tokenError) Error() string { return "admin token: " + e.err.Error() }
func (e *tokenError) Unwrap() error { return e.err }

// Hint says what to do.
func (e *tokenError) Hint() string { return e.fix }
