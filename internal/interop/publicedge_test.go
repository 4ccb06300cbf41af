//go:build interop

package interop

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pebble is a CA on this machine.
type pebble struct {
	Directory   string
	Root        string // file: what its own https is signed by
	IssuingRoot string // file: what its certificates are signed by
}

// startPebble starts a CA that validates at address, and at web for HTTP-01; its certificates are good for lifetime. Flags
// say what else is special about it.
func startPebble(t testing.TB, address, web, lifetime string, flags ...string) (ca pebble) {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-C", "../acmetest", "-o", dir, "./pebble")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v\n%s", build.Args, err, out)
	}
	p := start(t, filepath.Join(dir, "pebble"), nil, append([]string{"-dir", dir, "-tls-to", address, "-http-to", web, "-profile", "brief=" + lifetime}, flags...)...)
	if err := json.Unmarshal([]byte(p.await(t, `\{"directory".*\}`)[0]), &ca); err != nil {
		t.Fatal(err)
	}
	return ca
}

// publicEdge is raimons with a config file: all its sites are at address, and their names end in .test.
type publicEdge struct {
	*process
	address string // of the one port
	web     string // of what is port 80 elsewhere
	ca      pebble
	config  string // file
	storage string
	admin   string // Unix socket
}

const publicEdgeConfig = `
listen = ["%[1]s"]
http = "%[2]s"
storage = "%[3]s"
log-tunnels = "debug"
drain = "0"
%[7]s
[acme]
ca = ["%[4]s"]
root = "%[5]s"
profile = "brief"
[admin]
listen = "unix:%[6]s"
[limits]
rate = -1
per-address = -1
`

// newPublicEdge starts an edge that has yet to obtain its certificates, and a CA; sites is the end of the config file,
// flags are the CA's.
func newPublicEdge(t testing.TB, lifetime, sites string, flags ...string) *publicEdge {
	t.Helper()
	dir := t.TempDir()
	e := &publicEdge{address: freePort(), web: freePort(), config: filepath.Join(dir, "edge.toml"),
		storage: filepath.Join(dir, "storage"), admin: filepath.Join(dir, "admin.sock")}
	e.ca = startPebble(t, e.address, e.web, lifetime, flags...)
	e.write(t, "", sites)
	e.start(t)
	return e
}

// write changes the config file: top belongs to its beginning, sites to its end.
func (e *publicEdge) write(t testing.TB, top, sites string) {
	t.Helper()
	text := fmt.Appendf(nil, publicEdgeConfig, e.address, e.web, e.storage, e.ca.Directory, e.ca.Root, e.admin, top)
	replace(t, e.config, append(text, sites...))
}

// start starts the edge, or starts it again.
func (e *publicEdge) start(t testing.TB) {
	t.Helper()
	e.process = start(t, "raimons", nil, "-config", e.config, "-log-format", "json")
	e.await(t, listening)
}

// takeOver puts a new process in the place of the running one, which it returns: that keeps its tunnels.
func (e *publicEdge) takeOver(t testing.TB) (old *process) {
	t.Helper()
	old = e.process
	e.process = start(t, "raimons", nil, "-config", e.config, "-take-over", "-log-format", "json")
	e.await(t, listening)
	return old
}

// kill gives it no time for anything.
func (e *publicEdge) kill(t testing.TB) {
	t.Helper()
	if err := e.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-e.done
}

// shakeHands connects to a site and returns the certificate that it shows, which has to be good for name and signed by
// what is in the file roots.
func (e *publicEdge) shakeHands(name, roots string) (*x509.Certificate, error) {
	return shakeHands(e.address, name, roots)
}

func shakeHands(address, name, roots string) (*x509.Certificate, error) {
	text, err := os.ReadFile(roots)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", address, &tls.Config{ServerName: name, RootCAs: pool})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

// awaitCertificates waits until each name has one from the CA.
func (e *publicEdge) awaitCertificates(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		var err error
		defer func() {
			if err != nil {
				t.Logf("%s: %v", name, err)
			}
		}()
		eventually(t, 2*patience, "a certificate for "+name, func() bool {
			_, err = e.shakeHands(name, e.ca.IssuingRoot)
			return err == nil || e.ended(t)
		})
	}
}

// curl is curl with the trust in the CA, that finds the sites.
func (e *publicEdge) curl(t testing.TB, args ...string) string {
	t.Helper()
	return curl(t, append([]string{"--cacert", e.ca.IssuingRoot, "--connect-to", "::" + e.address}, args...)...)
}

// url is that of a site.
func (e *publicEdge) url(name, path string) string {
	return "https://" + name + ":" + port(e.address) + path
}

// hangup asks the edge to read its config file, and waits for the answer: whether it was taken up.
func (e *publicEdge) hangup(t testing.TB) bool {
	t.Helper()
	const taken, refused = `"config taken up"`, `"config refused, the old one goes on"`
	log := e.log.String()
	before, wrong := strings.Count(log, taken), strings.Count(log, refused)
	if err := e.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "an answer to SIGHUP in the log", func() bool {
		log = e.log.String()
		return strings.Count(log, taken)+strings.Count(log, refused) == before+wrong+1 || e.ended(t)
	})
	return strings.Count(log, taken) == before+1
}

// goroutines is how many the edge has, by its metrics.
func (e *publicEdge) goroutines(t testing.TB) int {
	t.Helper()
	n, found := e.metrics(t)["go_goroutines"]
	if !found {
		t.Fatal("no go_goroutines in the metrics")
	}
	return int(n)
}

// metrics are the values of all series.
func (e *publicEdge) metrics(t testing.TB) map[string]float64 {
	t.Helper()
	text := e.askAdmin(t, "/metrics")
	values := make(map[string]float64)
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		line = strings.TrimSpace(line)
		end := strings.LastIndex(line, " ") // labels may have some, too
		n, err := strconv.ParseFloat(line[end+1:], 64)
		if err != nil {
			t.Fatalf("metric %q: %v", line, err)
		}
		values[line[:max(end, 0)]] = n
	}
	return values
}

// askAdmin returns what the admin says at path, whatever the status.
func (e *publicEdge) askAdmin(t testing.TB, path string) string {
	t.Helper()
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", e.admin)
		}}}
	response, err := client.Get("http://localhost" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// complaints are the lines of the log above info whose message is none of expected.
func (p *process) complaints(t testing.TB, expected ...string) (lines []string) {
	t.Helper()
	expected = append(expected, "no CA may be able to reach us: it comes to port 443 or port 80 of the names")
	for text := range strings.Lines(p.log.String()) {
		var line struct{ Level, Msg string }
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Fatalf("log line %q: %v", text, err)
		}
		if line.Level != "INFO" && line.Level != "DEBUG" && !strings.Contains("\n"+strings.Join(expected, "\n")+"\n", "\n"+line.Msg+"\n") {
			lines = append(lines, text)
		}
	}
	return lines
}

// dump makes the edge end with a list of its goroutines in the log, for a test that has failed.
func (e *publicEdge) dump() {
	e.Process.Signal(syscall.SIGQUIT)
	select {
	case <-e.done:
	case <-time.After(patience):
	}
}
