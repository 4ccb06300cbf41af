//go:build interop

package interop

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// Whoever does not ask for the tunnel meets an ordinary web server.
func TestSite(t *testing.T) {
	g := newTarget(t)
	s := newSecrets(t)
	_, edge := startRaimons(t, g.address, wsOption+";"+s.server())
	for _, c := range []struct{ flag, version string }{{"--http2", "2"}, {"--http1.1", "1.1"}, {"--no-alpn", "1.1"}} {
		for _, path := range []string{"/", "/tunnel", "/favicon.ico?x=1"} {
			// One connection carries both requests.
			url := "https://localhost:" + port(edge) + path
			out := curl(t, "--no-fail", c.flag, "--cacert", s.CA, "--resolve", "localhost:"+port(edge)+":127.0.0.1",
				"-o", "/dev/null", "-o", "/dev/null", "-w", "%{http_code} %{http_version} %{num_connects}\n", url, url)
			if want := fmt.Sprintf("404 %s 1\n404 %s 0\n", c.version, c.version); out != want {
				t.Errorf("%s %s: got %q, want %q", c.flag, path, out, want)
			}
		}
	}
	if out := curl(t, "--no-fail", "--http1.1", "--cacert", s.CA, "--resolve", "localhost:"+port(edge)+":127.0.0.1", "-o", "/dev/null",
		"-T", writeFile(t, "upload", strings.Repeat("x", megabyte)), "-w", "%{http_code}", "https://localhost:"+port(edge)+"/tunnel"); out != "404" {
		t.Errorf("an upload: got %q, want 404", out)
	}
}

// page sends pieces of binary data through a WebSocket and reports what came back.
const page = `<!doctype html><meta charset=utf-8><title>raimon</title>
<script>
const report = text => fetch("/report", {method: "POST", body: text});
const socket = new WebSocket("%s");
socket.binaryType = "arraybuffer";
const order = new TextEncoder().encode("echo\n");
const data = new Uint8Array(%d);
for (let i = 0; i < data.length; i += 65536) crypto.getRandomValues(data.subarray(i, i + 65536));
let got = 0, failed = "";
socket.onopen = () => {
	socket.send(order);
	for (let i = 0, n = 1; i < data.length; i += n, n = n * 3 + 1) socket.send(data.slice(i, i + n));
	socket.send("");
};
socket.onmessage = event => {
	if (!(event.data instanceof ArrayBuffer)) { report("a text message"); return; }
	for (const b of new Uint8Array(event.data)) if (b !== data[got++]) failed = failed || "another byte at " + (got - 1);
	if (failed || got === data.length) {
		report(failed || "whole");
		socket.onerror = null;
		socket.onclose = event => report("closed " + event.code + " " + event.wasClean);
		socket.close(1000);
	}
};
socket.onerror = () => report("error");
</script>`

func TestBrowser(t *testing.T) {
	g := newTarget(t)
	s := newSecrets(t)
	for _, name := range []string{"ws", "wss"} {
		t.Run(name, func(t *testing.T) {
			// The browser's Host has the port in it, which the option may leave out.
			option := "ws;host=127.0.0.1;path=/tunnel;ping=100ms"
			if name == "wss" {
				option += ";" + s.server()
			}
			_, edge := startRaimons(t, g.address, option)
			reports := make(chan string, 10)
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/":
					w.Header().Set("Content-Type", "text/html")
					fmt.Fprintf(w, page, name+"://"+edge+"/tunnel", 3*megabyte)
				case "/report":
					text, _ := io.ReadAll(r.Body)
					reports <- string(text)
				default:
					http.NotFound(w, r)
				}
			}))
			t.Cleanup(web.Close)
			startChromium(t, t.TempDir(), "--ignore-certificate-errors", web.URL+"/")
			for _, want := range []string{"whole", "closed 1000 true"} {
				select {
				case got := <-reports:
					if got != want {
						t.Fatalf("the page reports %q, want %q", got, want)
					}
				case <-time.After(3 * patience):
					t.Fatalf("the page does not report %q", want)
				}
			}
		})
	}
}

// startChromium starts a browser without a window and without a proxy; home is a folder of its own.
func startChromium(t testing.TB, home string, args ...string) *process {
	t.Helper()
	return start(t, "chromium", browserHome(home), append(browserArgs(t), append(args, "--no-proxy-server", "--remote-debugging-port=0")...)...)
}

func browserHome(home string) []string {
	return append(slices.Clone(noProxy), "HOME="+home, "XDG_DATA_HOME="+home+"/.local/share")
}

// browserArgs let it run without a window, and keep it from talking to others than the test.
func browserArgs(t testing.TB) []string {
	t.Helper()
	return []string{
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
		"--user-data-dir=" + t.TempDir(),
	}
}
