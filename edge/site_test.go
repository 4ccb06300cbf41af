package edge_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"raimon/edge"
)

func TestRedirectTo(t *testing.T) {
	for _, test := range []struct{ to, target, want string }{
		{"https://www.test/", "/", "https://www.test/"},
		{"https://www.test/", "/a/b%2fc?d=e&f", "https://www.test/a/b%2fc?d=e&f"},
		{"https://www.test/new/", "/a", "https://www.test/new/a"},
		{"https://www.test/", "//evil.test/", "https://www.test//evil.test/"},
		{"https://www.test/", "/\\evil.test", "https://www.test/%5Cevil.test"},
		{"https://www.test", "/a?b", "https://www.test"},
		{"https://www.test/page", "/a?b", "https://www.test/page"},
		{"https://www.test/?to=/", "/a?b", "https://www.test/?to=/"},
		{"http://[::1]:8080/", "/a", "http://[::1]:8080/a"},
	} {
		redirect, err := edge.RedirectTo(test.to)
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := get(t, "GET", run(t, nil, &edge.Site{Behind: redirect}), test.target)
		if answer.StatusCode != http.StatusFound || answer.Header.Get("Location") != test.want {
			t.Errorf("%s for %s: got %s to %q, want %q", test.to, test.target, answer.Status, answer.Header.Get("Location"), test.want)
		}
	}
}

// What cannot be meant is refused with a hint, and a password in it is not repeated.
func TestSiteURLs(t *testing.T) {
	for _, url := range []string{"", "www.test", "/x", "ftp://www.test/", "https://", "https:///x", "http:www.test", "https://user:sesame@www.test/", "https://www.test:port/sesame", "\x00", "unix:x.sock"} {
		for name, make := range map[string]func() (http.Handler, error){
			"redirect": func() (http.Handler, error) { return edge.RedirectTo(url) },
			"upstream": func() (http.Handler, error) { return edge.Upstream(url, nil) },
		} {
			h, err := make()
			var hint interface{ Hint() string }
			if h != nil || !errors.As(err, &hint) || hint.Hint() == "" || !strings.HasPrefix(err.Error(), name) || strings.Contains(err.Error(), "sesame") {
				t.Errorf("%s %q: got %v", name, url, err)
			}
		}
	}
	for _, url := range []string{"http://www.test/?a=b", "http://www.test/#a", "unix:"} {
		if _, err := edge.Upstream(url, nil); err == nil {
			t.Errorf("%s is an upstream", url)
		}
	}
}
