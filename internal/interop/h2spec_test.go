//go:build interop

package interop

import (
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"crypto/tls"
)

// The edge is no worse than net/http, which answers for it: what neither does as RFC 9113 wants it is not for us to mend.
// Some cases pass or fail by chance, so a case counts only if it fails at the edge, and passes alone, every time.
func TestH2spec(t *testing.T) {
	const times = 20
	s := newSecrets(t)
	website := t.TempDir()
	replace(t, filepath.Join(website, "index.html"), []byte("<!doctype html><title>hello</title>"))
	program := h2spec(t)
	edge, alone := startWebsite(t, s, website), startNetHTTP(t, s, website)

	atEdge, atNetHTTP := program.run(t, edge), program.run(t, alone)
	if len(atNetHTTP) < 100 {
		t.Errorf("h2spec has %d cases, which cannot be all", len(atNetHTTP))
	}
	suspects := map[specCase]string{}
	for c, failure := range atNetHTTP {
		why, ran := atEdge[c]
		if !ran {
			t.Errorf("%v did not run at the edge", c)
		}
		if why != "" && failure == "" {
			suspects[c] = why
		}
	}
	t.Logf("%d cases, %d fail at the edge, %d at net/http, %d at the edge only", len(atNetHTTP), failed(atEdge), failed(atNetHTTP), len(suspects))
	for c, why := range suspects {
		for range times {
			if !program.fails(t, edge, c) || program.fails(t, alone, c) {
				delete(suspects, c)
				break
			}
		}
		if suspects[c] != "" {
			t.Errorf("%v fails at the edge only, %d times in a row: %s", c, times+1, why)
		}
	}
}

// startWebsite starts an edge with a website and a tunnel.
func startWebsite(t testing.TB, s secrets, root string) (address string) {
	t.Helper()
	config := writeFile(t, "edge.toml", fmt.Sprintf(`
listen = ["127.0.0.1:0"]
http = "off"
[limits]
rate = -1
per-address = -1
[[site]]
names = ["localhost"]
cert = %q
key = %q
root = %q
[[site.route]]
path = "/tunnel"
target = "127.0.0.1:9"
`, s.Cert, s.Key, root))
	return start(t, "raimons", nil, "-config", config, "-log-format", "json").await(t, listening)[1]
}

// startNetHTTP starts the same without an edge.
func startNetHTTP(t testing.TB, s secrets, root string) (address string) {
	t.Helper()
	certificate, err := tls.LoadX509KeyPair(s.Cert, s.Key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.FileServer(http.Dir(root)))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// report is what h2spec writes in the manner of JUnit.
type report struct {
	Suites []struct {
		Section string `xml:"package,attr"`
		Cases   []struct {
			Title   string    `xml:"classname,attr"`
			Skipped *struct{} `xml:"skipped"`
			Failure *string   `xml:"failure"`
			Error   *string   `xml:"error"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

// specCase is a case of h2spec.
type specCase struct {
	section string // such as http2/5.1
	number  int    // within it, from 1
	title   string
}

func (c specCase) String() string { return fmt.Sprintf("%s/%d (%s)", c.section, c.number, c.title) }

// spec is the file of the program h2spec.
type spec string

// h2spec finds the program; where it could not be had the test is skipped.
func h2spec(t testing.TB) spec {
	t.Helper()
	found := peers(t, "h2spec-*", "h2spec")
	if len(found) == 0 {
		t.Skip("program h2spec is missing: internal/interop/install.sh gets it from the Go module proxy")
	}
	return spec(found[len(found)-1])
}

// run returns what the cases of some sections, or of all, have failed with: empty if they have not. Those that h2spec
// skips are not there.
func (s spec) run(t testing.TB, address string, sections ...string) map[specCase]string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report.xml")
	cmd := exec.CommandContext(minute(t), string(s), append([]string{"--tls", "--insecure", "--strict", "--timeout", "1",
		"--host", host(address), "--port", port(address), "--junit-report", file}, sections...)...)
	out, err := cmd.CombinedOutput() // its status says that a case has failed
	data, unwritten := os.ReadFile(file)
	if unwritten != nil {
		t.Fatalf("%v, %v\n%s", err, unwritten, out)
	}
	var r report
	if err := xml.Unmarshal(data, &r); err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	outcomes := map[specCase]string{}
	for _, suite := range r.Suites {
		for n, c := range suite.Cases {
			which := specCase{suite.Section, n + 1, c.Title}
			switch {
			case c.Skipped != nil:
			case c.Failure != nil:
				outcomes[which] = "failure: " + *c.Failure
			case c.Error != nil:
				outcomes[which] = "error: " + *c.Error
			default:
				outcomes[which] = ""
			}
		}
	}
	return outcomes
}

// fails runs a case again, with all of its section: that is where it has its number.
func (s spec) fails(t testing.TB, address string, c specCase) bool {
	t.Helper()
	why, ran := s.run(t, address, c.section)[c]
	if !ran {
		t.Fatalf("%v does not run again at %s", c, address)
	}
	return why != ""
}

func failed(outcomes map[specCase]string) (n int) {
	for _, why := range outcomes {
		if why != "" {
			n++
		}
	}
	return n
}
