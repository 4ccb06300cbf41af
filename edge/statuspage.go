package edge

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"
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
		"bytes": bytesText, "rate": func(n int64) string { return bytesText(n) + "/s" },
		"span":   func(since time.Time) string { return spanText(s.Now.Sub(since)) },
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

// bytesText is a number of bytes in units of 1000.
func bytesText(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, units := float64(n), []string{"B", "kB", "MB", "GB", "TB", "PB", "EB"}
	unit := 0
	for value >= 999.5 && unit < len(units)-1 {
		value /= 1000
		unit++
	}
	if value < 9.95 {
		return fmt.Sprintf("%.1f %s", value, units[unit])
	}
	return fmt.Sprintf("%.0f %s", value, units[unit])
}

// spanText is a time in its two largest units.
func spanText(d time.Duration) string {
	seconds := int64(max(0, d).Seconds())
	switch {
	case seconds < 60:
		return fmt.Sprintf("%d s", seconds)
	case seconds < 3600:
		return fmt.Sprintf("%d min %d s", seconds/60, seconds%60)
	case seconds < 86400:
		return fmt.Sprintf("%d h %d min", seconds/3600, seconds/60%60)
	}
	return fmt.Sprintf("%d d %d h", seconds/86400, seconds/3600%24)
}

// leftText is how long something is still good.
func leftText(d time.Duration) string {
	switch {
	case d <= 0:
		return "expired"
	case d < 48*time.Hour:
		return spanText(d)
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
