//go:build interop

package interop

import (
	"context"
	"html"
	"io"
	"log/slog"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"raimon/edge"
	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// A browser shows the status page, and its script keeps it fresh: what it writes is what the server writes.
// With -artifacts the test leaves pictures of it.
func TestStatusPage(t *testing.T) {
	recent := edge.NewRecentLog(slog.DiscardHandler)
	log := slog.New(recent)
	server := &edge.Server{Log: log, Metrics: edge.NewMetrics()}
	site := &edge.Site{Names: []string{"edge.example.com"}, Raw: &edge.Route{Target: tunneltest.Echo(t), Label: "<b>bold</b>", Limit: 10}}
	config := &edge.Config{Sites: []*edge.Site{{Raw: site.Raw}, site}, Drain: -1,
		Listeners: []edge.Listener{{Address: "127.0.0.1:0", Plain: true}}}
	now := time.Now()
	admin := &edge.Admin{Server: server, Metrics: server.Metrics, Recent: recent, Log: log, Version: "v1.0",
		Certificates: func() []edge.CertificateStatus {
			return []edge.CertificateStatus{
				{Name: "good.example.com", Issuer: "https://ca.example/directory", NotBefore: now.AddDate(0, 0, -30),
					NotAfter: now.AddDate(0, 0, 60), NextRenewal: now.AddDate(0, 0, 30), StapleUntil: now.AddDate(0, 0, 4)},
				{Name: "late.example.com", NotBefore: now.AddDate(0, 0, -85), NotAfter: now.AddDate(0, 0, 5), LastError: "the CA is away", Hint: "it is tried again"},
				{Name: "new.example.com", LastError: "<img src=x onerror=alert(1)>"},
				{Name: "old.example.com", NotBefore: now.AddDate(0, 0, -90), NotAfter: now.AddDate(0, 0, -1)},
			}
		}}
	log.Warn("a warning", "name", "<script>document.title = 'taken over'</script>")
	log.Error("an error")
	address, url := runEdge(t, server, config, admin)
	c, err := new(tunnel.Dialer).Dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, strings.Repeat("x", 1500)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1500)); err != nil {
		t.Fatal(err)
	}
	awaitSamples(t, url)

	written := fetch(t, url)
	shown := chromium(t, "--virtual-time-budget=9000", "--dump-dom", url)
	if !regexp.MustCompile(`data-updates="[2-9]`).MatchString(shown) {
		t.Error("the script has not updated the page twice")
	}
	for _, id := range []string{"sites", "certificates", "log"} {
		if got, want := words(t, shown, id), words(t, written, id); got != want {
			t.Errorf("the script writes %s as\n%s\nthe server as\n%s", id, got, want)
		}
	}
	for _, want := range []string{`<polyline class="line sent"`, `<polyline class="line count"`, `state warn">4 days`, `state bad">expired`, `state bad">none yet`, "1.5 kB", "1 / 10"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	if strings.Contains(shown, "<title>taken over") || strings.Contains(shown, "<img src=\"x\"") || strings.Contains(shown, "not fresh") {
		t.Errorf("the page is\n%s", shown)
	}
	for name, flag := range map[string]string{"light": "--window-size=1280,1400", "dark": "--blink-settings=preferredColorScheme=0", "narrow": "--window-size=500,1400"} {
		file := filepath.Join(t.ArtifactDir(), name+".png")
		chromium(t, "--virtual-time-budget=5000", "--hide-scrollbars", flag, "--screenshot="+file, url)
	}
}

// runEdge runs both until the test ends.
func runEdge(t *testing.T, server *edge.Server, config *edge.Config, admin *edge.Admin) (address, url string) {
	t.Helper()
	if err := server.Apply(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	l := tunneltest.Listen(t)
	ended := make(chan error, 2)
	go func() { ended <- server.Run(ctx) }()
	go func() { ended <- admin.Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	return server.Listeners()[config.Listeners[0].Address].Addr().String(), "http://" + l.Addr().String() + "/"
}

// awaitSamples waits until there is something to draw.
func awaitSamples(t *testing.T, url string) {
	t.Helper()
	for deadline := time.Now().Add(patience); strings.Count(fetch(t, url+"status.json"), `"tunnels": 1`) < 2; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is measured")
		}
	}
}

func fetch(t *testing.T, url string) string {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// chromium shows one page and returns what it prints.
func chromium(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	args = append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--disable-sync", "--disable-dev-shm-usage", "--no-proxy-server", "--user-data-dir=" + t.TempDir()}, args...)
	cmd := exec.CommandContext(ctx, program(t, "chromium"), args...)
	cmd.Env = append(cmd.Environ(), "HOME="+t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("chromium: %v", err)
	}
	return string(out)
}

var (
	tags   = regexp.MustCompile(`<[^>]*>`)
	blanks = regexp.MustCompile(`\s+`)
)

// words is the text in the element of a table that has the id, without tags, a blank between words.
func words(t *testing.T, page, id string) string {
	t.Helper()
	_, rest, found := strings.Cut(page, `id="`+id+`">`)
	text, _, closed := strings.Cut(rest, "</tbody>")
	if !found || !closed {
		t.Fatalf("the page has no %s:\n%s", id, page)
	}
	text = html.UnescapeString(tags.ReplaceAllString(text, " "))
	return strings.TrimSpace(blanks.ReplaceAllString(text, " "))
}
