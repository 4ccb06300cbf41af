package edge

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// siteError is a URL that no site can be made of.
type siteError struct{ problem, hint string }

func (e *siteError) Error() string { return e.problem }

// Hint says what to do.
func (e *siteError) Hint() string { return e.hint }

// RedirectTo sends everybody to target, which is an absolute http or https URL. The path and query of a request
// are appended to a target that ends with a slash; any other is where all requests go.
//
// The answer is 302 Found. Browsers keep a permanent redirect for as long as they like, also after
// the configuration has changed, and 307 and 308 would make them post a form once more, to another server.
func RedirectTo(target string) (http.Handler, error) {
	u, err := parseSiteURL("redirect", target)
	if err != nil {
		return nil, err
	}
	base := u.String()
	appends := strings.HasSuffix(u.Path, "/") && u.RawQuery == "" && u.Fragment == ""
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		location := base
		if appends {
			location += strings.TrimPrefix(r.URL.EscapedPath(), "/")
			if r.URL.RawQuery != "" {
				location += "?" + r.URL.RawQuery
			}
		}
		w.Header().Set("Location", location)
		http.Error(w, http.StatusText(http.StatusFound), http.StatusFound)
	}), nil
}

// parseSiteURL parses an absolute http or https URL. Use names it in errors.
func parseSiteURL(use, raw string) (*url.URL, error) {
	hint := "a URL such as https://www.example.com/"
	u, err := url.Parse(raw)
	switch {
	case err != nil: // whose text has the URL, and what is secret in it
		return nil, &siteError{use + ": not a URL", hint}
	case u.User != nil:
		return nil, &siteError{use + ": the URL has a user name or a password", "leave out what stands before the @"}
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, &siteError{fmt.Sprintf("%s %q: neither http nor https", use, raw), hint}
	case u.Hostname() == "" || u.Opaque != "":
		return nil, &siteError{fmt.Sprintf("%s %q: no host", use, raw), hint}
	}
	return u, nil
}
