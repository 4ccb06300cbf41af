package edge

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"

	"raimon/internal/text"
)

// statusFiles are what browsers get. The tables are there without JavaScript; with it they keep themselves fresh.
//
//go:embed page
var statusFiles embed.FS

// pageFiles serves style and script.
func pageFiles() http.Handler {
	files := http.FileServerFS(statusFiles)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/") || strings.HasSuffix(r.URL.Path, ".html") {
			http.NotFound(w, r)
			return
		}
		files.ServeHTTP(w, r)
	})
}

// tellPage answers with the status page.
func (a *Admin) tellPage(w http.ResponseWriter, r *http.Request) {
	s := a.status(r.Context(), shownTunnels)
	t, err := template.New("status.html").Funcs(template.FuncMap{
		"bytes": text.Bytes, "rate": func(n int64) string { return text.Bytes(n) + "/s" },
		"span":   func(since time.Time) string { return text.Span(s.Now.Sub(since)) },
		"left":   func(until time.Time) string { return leftText(until.Sub(s.Now)) },
		"worry":  func(c CertificateStatus) string { return worry(c, s.Now) },
		"stamp":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") },
		"issuer": issuerText,
	}).ParseFS(statusFiles, "page/status.html")
	var body bytes.Buffer
	if err == nil {
		err = t.Execute(&body, s)
	}
	if err != nil {
		a.log().Error("status page", "error", err)
		http.Error(w, "the page cannot be written: the log says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(body.Bytes())
}

// worrying is how much time a certificate has left when something has gone wrong: renewal begins much sooner.
const worrying = 10 * 24 * time.Hour

// worry is how bad the state of a certificate is: "bad", "warn" or "good".
func worry(c CertificateStatus, now time.Time) string {
	switch left := c.NotAfter.Sub(now); {
	case left <= 0:
		return "bad"
	case c.LastError != "", left < worrying && left < c.NotAfter.Sub(c.NotBefore)/4: // some live for six days
		return "warn"
	}
	return "good"
}

// leftText is how long something is still good.
func leftText(d time.Duration) string {
	switch {
	case d <= 0:
		return "expired"
	case d < 48*time.Hour:
		return text.Span(d)
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// issuerText is the host of a CA's directory.
func issuerText(directory string) string {
	_, rest, found := strings.Cut(directory, "://")
	if !found {
		return directory
	}
	host, _, _ := strings.Cut(rest, "/")
	return host
}
