package edge_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"raimon/edge"
)

// get asks the site at address for target, with header fields in pairs.
func get(t testing.TB, method, address, target string, fields ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(method, "http://"+address, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.URL.Opaque, r.Host = target, "edge.test"
	if strings.HasPrefix(target, "//") { // would be taken for an authority
		r.URL.Opaque, r.URL.Path = "", target
	}
	r.Header.Set("Accept-Encoding", "identity")
	for n := 0; n < len(fields); n += 2 {
		r.Header.Set(fields[n], fields[n+1])
	}
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

func folderSite(t testing.TB, dir string) string {
	t.Helper()
	folder, err := edge.Folder(dir)
	if err != nil {
		t.Fatal(err)
	}
	return run(t, nil, &edge.Site{Behind: folder})
}

func TestFolder(t *testing.T) {
	dir := website(t)
	address := folderSite(t, dir)
	const missing, hidden = "<h1>not here</h1>", "<h1>not here</h1>"
	for _, test := range []struct {
		target string
		status int
		body   string
		media  string
	}{
		{"/", 200, "<h1>welcome</h1>", "text/html; charset=utf-8"},
		{"/index.html", 200, "<h1>welcome</h1>", "text/html; charset=utf-8"},
		{"/style.css?x=y", 200, "h1 { color: teal }", "text/css; charset=utf-8"},
		{"/%73tyle.css", 200, "h1 { color: teal }", "text/css; charset=utf-8"},
		{"/docs/", 200, "<h1>docs</h1>", "text/html; charset=utf-8"},
		{"/docs/../style.css", 200, "h1 { color: teal }", "text/css; charset=utf-8"},
		{"/.well-known/security.txt", 200, "Contact: mailto:a@edge.test", "text/plain; charset=utf-8"},
		{"/style.css/", 404, missing, "text/html; charset=utf-8"},
		{"/empty/", 404, missing, "text/html; charset=utf-8"},
		{"/empty", 404, missing, "text/html; charset=utf-8"},
		{"/nothing", 404, missing, "text/html; charset=utf-8"},
		{"/style.css/x", 404, missing, "text/html; charset=utf-8"},
		{"/" + strings.Repeat("x", 5000), 404, missing, "text/html; charset=utf-8"},
		{"/.git/config", 404, hidden, "text/html; charset=utf-8"},
		{"/%2egit/config", 404, hidden, "text/html; charset=utf-8"},
		{"/.htpasswd", 404, hidden, "text/html; charset=utf-8"},
		{"/docs/.env", 404, hidden, "text/html; charset=utf-8"},
		{"/docs/.well-known/x", 404, hidden, "text/html; charset=utf-8"},
		{"/../../../../etc/passwd", 404, missing, "text/html; charset=utf-8"},
		{"/%2e%2e/%2e%2e/etc/passwd", 404, missing, "text/html; charset=utf-8"},
		{"/..%2f..%2fetc%2fpasswd", 404, missing, "text/html; charset=utf-8"},
		{"/x%00y", 404, missing, "text/html; charset=utf-8"},
	} {
		answer, body := get(t, "GET", address, test.target)
		if answer.StatusCode != test.status || body != test.body || answer.Header.Get("Content-Type") != test.media {
			t.Errorf("%.60s: got %s, %q, %s", test.target, answer.Status, body, answer.Header.Get("Content-Type"))
		}
		head, _ := get(t, "HEAD", address, test.target)
		if head.StatusCode != test.status || head.ContentLength != int64(len(test.body)) {
			t.Errorf("HEAD %.60s: got %s of %d bytes, want %d of %d", test.target, head.Status, head.ContentLength, test.status, len(test.body))
		}
	}
}

func TestFolderSendsToTheSlash(t *testing.T) {
	dir := website(t)
	address := folderSite(t, dir)
	for target, want := range map[string]string{"/docs": "/docs/", "/docs?a=b": "/docs/?a=b", "//docs": "/docs/", "///docs": "/docs/"} {
		if answer, _ := get(t, "GET", address, target); answer.StatusCode != 301 || answer.Header.Get("Location") != want {
			t.Errorf("%s: got %s to %s, want %s", target, answer.Status, answer.Header.Get("Location"), want)
		}
	}
	if runtime.GOOS == "windows" {
		return
	}
	write(t, dir, map[string]string{`\evil.test/index.html`: "x"}) // browsers take a backslash for a slash
	if answer, _ := get(t, "GET", address, "/%5Cevil.test"); answer.Header.Get("Location") != "/%5Cevil.test/" {
		t.Errorf("got %q", answer.Header.Get("Location"))
	}
}

func TestFolderIsReadOnly(t *testing.T) {
	address := folderSite(t, website(t))
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH"} {
		if answer, _ := get(t, method, address, "/"); answer.StatusCode != 405 || answer.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: got %s, Allow: %s", method, answer.Status, answer.Header.Get("Allow"))
		}
	}
}

func TestFolderSavesTransfers(t *testing.T) {
	dir := website(t)
	address := folderSite(t, dir)
	answer, _ := get(t, "GET", address, "/style.css")
	tag, date := answer.Header.Get("ETag"), answer.Header.Get("Last-Modified")
	if tag == "" || date == "" {
		t.Fatalf("ETag %q, Last-Modified %q", tag, date)
	}
	for _, fields := range [][]string{{"If-None-Match", tag}, {"If-Modified-Since", date}} {
		if answer, body := get(t, "GET", address, "/style.css", fields...); answer.StatusCode != 304 || body != "" {
			t.Errorf("%s: got %s, %q", fields, answer.Status, body)
		}
	}
	if answer, body := get(t, "GET", address, "/style.css", "Range", "bytes=5-9"); answer.StatusCode != 206 || body != "color" {
		t.Errorf("range: got %s, %q", answer.Status, body)
	}
	if answer, _ := get(t, "GET", address, "/style.css", "Range", "bytes=500-"); answer.StatusCode != 416 {
		t.Errorf("range behind the end: got %s", answer.Status)
	}
	many := "bytes=0-0" + strings.Repeat(",1-1", 16)
	if answer, body := get(t, "GET", address, "/style.css", "Range", many); answer.StatusCode != 200 || body != "h1 { color: teal }" {
		t.Errorf("many ranges: got %s, %q", answer.Status, body)
	}
	write(t, dir, map[string]string{"style.css": "h1 { color: navy }"})
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(filepath.Join(dir, "style.css"), later, later); err != nil {
		t.Fatal(err)
	}
	if answer, body := get(t, "GET", address, "/style.css", "If-None-Match", tag); answer.StatusCode != 200 || body != "h1 { color: navy }" {
		t.Errorf("changed: got %s, %q", answer.Status, body)
	}
}

func TestFolderServesCompressedFiles(t *testing.T) {
	dir := website(t)
	write(t, dir, map[string]string{"style.css.gz": "as gzip", "style.css.br": "as brotli", "index.html.gz": "old"})
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "index.html.gz"), past, past); err != nil {
		t.Fatal(err)
	}
	address := folderSite(t, dir)
	tags := make(map[string]bool)
	for _, test := range []struct{ target, accept, coding, body string }{
		{"/style.css", "gzip, br", "br", "as brotli"},
		{"/style.css", "gzip", "gzip", "as gzip"},
		{"/style.css", "GZIP;q=0.5, br;q=0.0", "gzip", "as gzip"},
		{"/style.css", "br;q=0, gzip;q=0", "", "h1 { color: teal }"},
		{"/style.css", "deflate", "", "h1 { color: teal }"},
		{"/", "gzip", "", "<h1>welcome</h1>"}, // its compressed form is older
	} {
		answer, body := get(t, "GET", address, test.target, "Accept-Encoding", test.accept)
		h := answer.Header
		if answer.StatusCode != 200 || h.Get("Content-Encoding") != test.coding || body != test.body || h.Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s of %s: got %s, %q, %q", test.accept, test.target, answer.Status, h.Get("Content-Encoding"), body)
		}
		if test.target == "/style.css" && !strings.HasPrefix(h.Get("Content-Type"), "text/css") {
			t.Errorf("%s: Content-Type: %s", test.accept, h.Get("Content-Type"))
		}
		tags[h.Get("ETag")] = true
	}
	if len(tags) != 4 {
		t.Errorf("%d ETags for three forms of one file and one of another", len(tags))
	}
}

// Who replaces the whole website does not restart the edge.
func TestFolderIsReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "www")
	write(t, dir, map[string]string{"index.html": "old"})
	address := folderSite(t, dir)
	if _, body := get(t, "GET", address, "/"); body != "old" {
		t.Fatalf("got %q", body)
	}
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if answer, _ := get(t, "GET", address, "/"); answer.StatusCode != 404 {
		t.Errorf("without the folder: got %s", answer.Status)
	}
	write(t, dir+".new", map[string]string{"index.html": "new"})
	if err := os.Rename(dir+".new", dir); err != nil {
		t.Fatal(err)
	}
	if _, body := get(t, "GET", address, "/"); body != "new" {
		t.Errorf("got %q", body)
	}
}

func TestFolderHasToBeThere(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "none"), filepath.Join(website(t), "index.html")} {
		if _, err := edge.Folder(name); err == nil || !strings.Contains(err.Error(), filepath.Base(name)) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
