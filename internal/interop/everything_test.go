//go:build interop

package interop

import (
	"fmt"
	"io"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"raimon/internal/tunneltest"
)

// hangups is how often the config changes while everybody works.
const hangups = 100

// lifetime is that of the CA's certificates: each is renewed a few times while the test runs.
const lifetime = "40s"

// One port has a website, tunnels on its paths, a tunnel without HTTP and a site of somebody else's. Programs of all
// kinds use them at the same time, while the config changes, certificates are renewed and a new process takes over, and none notices.
func TestEverythingAtOnce(t *testing.T) {
	h := newHouse(t)
	clients := h.clients(t)
	for name, round := range clients { // whatever is opened once is open after this
		if err := round(t); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	files, goroutines := h.rest(t, 0, 0)

	work := newShift(t)
	for name, round := range clients {
		work.repeat(name, round)
	}
	for name, errand := range h.errands(t) {
		work.once(name, errand)
	}
	browser := h.browse(t)
	h.change(t, hangups/2, work.failed)
	old := h.takeOver(t)
	h.change(t, hangups/2, work.failed)
	work.end(t)
	h.browserEnds(t, browser)

	select {
	case <-old.done:
		if status := old.ProcessState.ExitCode(); status != 0 {
			t.Errorf("the old process ends with status %d", status)
		}
	case <-time.After(patience):
		t.Error("the old process does not end with its last tunnel")
	}
	renewals := 0
	for _, p := range []*process{old, h.process} {
		renewals += strings.Count(p.log.String(), `"certificate renewed"`)
		if complaints := p.complaints(t, "config refused, the old one goes on"); len(complaints) > 0 {
			t.Errorf("the edge complains:\n%s", trim(strings.Join(complaints, ""), 4000))
		}
	}
	if t.Logf("%d renewals", renewals); renewals < 5 { // four were asked for
		t.Error("that are too few to disturb anybody")
	}
	h.rest(t, files, goroutines)
}

// house is an edge with all kinds of sites, and what lies behind them.
type house struct {
	*publicEdge
	one, two, raw *target
	web           *httptest.Server // behind web.test, and what shadowsocks is used for
	over          atomic.Bool      // the page may end
	reports       chan string
	passed        secretSite // behind pass.test
	rawRoots      string     // file
	token         string     // opens /private
	sites         string     // of the config, as it is at first
	socks         []string   // SOCKS5 servers
}

// secretSite is a web server whose TLS is its own.
type secretSite struct{ address, roots string }

const houseSites = `
[[site]]
names = ["web.test"]
upstream = "%[1]s"
[[site.route]]
path = "/one"
target = "%[2]s"
[[site.route]]
path = "/two"
target = "%[3]s"
[[site.route]]
path = "/ss-server"
target = "%[4]s"
[[site.route]]
path = "/ssserver"
target = "%[5]s"
[[site.route]]
path = "/private"
target = "%[3]s"
tokens = "%[11]s"

[[site]]
names = ["files.test"]
root = "%[6]s"

[[site]]
names = ["raw.test"]
cert = "%[7]s"
key = "%[8]s"
target = "%[9]s"

[[site]]
names = ["pass.test"]
pass = "%[10]s"
`

// bigFile is in the root of files.test and of pass.test.
const bigFile = 24 * megabyte

func newHouse(t testing.TB) *house {
	t.Helper()
	h := &house{one: newTarget(t), two: newTarget(t), raw: newTarget(t), reports: make(chan string, 10)}
	h.web = httptest.NewServer(h.website())
	t.Cleanup(h.web.Close)
	root := t.TempDir()
	data, err := io.ReadAll(stream(bigFile))
	if err != nil {
		t.Fatal(err)
	}
	replace(t, filepath.Join(root, "big"), data)
	replace(t, filepath.Join(root, "small"), data[:0])
	h.passed = startSecretSite(t, root)
	ca := tunneltest.NewCA(t)
	raw := ca.Write(t, t.TempDir(), ca.Issue(t, "raw.test", "extra.test"))
	h.rawRoots = raw.CA
	servers := []string{shadowsockses[0].startPlainServer(t), shadowsockses[1].startPlainServer(t)}
	token, line := newToken(t, "alice")
	h.token = token
	h.sites = fmt.Sprintf(houseSites, h.web.URL, h.one.address, h.two.address, servers[0], servers[1], root,
		raw.Cert, raw.Key, h.raw.address, h.passed.address, writeFile(t, "tokens", line+"\n"))
	h.publicEdge = newPublicEdge(t, lifetime, h.sites)
	h.awaitCertificates(t, "web.test", "files.test")
	for _, s := range shadowsockses {
		_, socks := s.startClient(t, h.address, h.tunnel("/"+s.server))
		h.socks = append(h.socks, socks)
	}
	return h
}

// tunnel are the options of raimonc for a path of web.test.
func (h *house) tunnel(path string) string {
	return "ws;host=web.test;path=" + path + ";tls;sni=web.test;ca=" + h.ca.IssuingRoot
}

// newToken has raimons make a token, and the line for the file of those that are good.
func newToken(t testing.TB, name string) (token, line string) {
	t.Helper()
	out, err := exec.Command(program(t, "raimons"), "token", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "#") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	if len(lines) != 2 {
		t.Fatalf("raimons token prints %d lines that are no comments, want 2", len(lines))
	}
	return lines[0], lines[1]
}

const secretSiteConf = nginxHead + `	server {
		listen %[2]s ssl http2;
		ssl_certificate %[3]s;
		ssl_certificate_key %[4]s;
		root %[5]s;
	}
}
`

// startSecretSite starts an nginx for pass.test that serves root.
func startSecretSite(t testing.TB, root string) secretSite {
	t.Helper()
	dir := t.TempDir()
	ca := tunneltest.NewCA(t)
	f := ca.Write(t, t.TempDir(), ca.Issue(t, "pass.test"))
	site := secretSite{freePort(), f.CA}
	conf := writeFile(t, "nginx.conf", fmt.Sprintf(secretSiteConf, dir, site.address, f.Cert, f.Key, root))
	start(t, "nginx", nil, "-p", dir, "-e", "stderr", "-c", conf).awaitPort(t, site.address)
	return site
}

// change gives the edge another config again and again, some of them wrong, and renews a certificate now and
// then, that many times or until a failure. At the end it has the first config.
func (h *house) change(t testing.TB, times int, failed func() bool) {
	t.Helper()
	second := freePort()
	rest, found := strings.CutPrefix(h.sites, "\n[[site]]\n")
	if !found {
		t.Fatal("the sites begin otherwise")
	}
	// Another order, more sites and routes, one more name for the CA, one more listener.
	more := fmt.Sprintf("[[listener]]\naddress = %q\n[[site]]\nnames = [\"third.test\"]\n[[site]]\nnames = [\"extra.test\"]\n%s\n[[site.route]]\npath = \"/three\"\ntarget = %q\n"+
		"[[site]]\n%s", second, strings.Join(certificateLines(h.sites), "\n"), h.one.address, rest)
	wrong := []string{"[[site]\n", "nonsense = 1\n", h.sites + h.sites, strings.Replace(h.sites, "cert = ", "ocsp = ", 1), "[[site]]\nnames = [\"web.test\"]\ncert = \"/nowhere\"\n"}
	isMore := false
	for n := range times {
		if failed() {
			t.Fatalf("after %d changes of the config", n)
		}
		switch {
		case n%10 == 3 || n%10 == 8:
			h.write(t, "", wrong[n/5%len(wrong)])
			if h.hangup(t) {
				t.Errorf("a wrong config is taken up: %d", n/5%len(wrong))
			}
		default:
			isMore = !isMore
			top, sites := "", h.sites
			if isMore {
				top, sites = "linger = \"45s\"\nping = \"20s\"\n", more
			}
			h.write(t, top, sites)
			if !h.hangup(t) {
				t.Error("a good config is refused")
			}
		}
		for _, address := range []string{h.address, second} {
			_, err := shakeHands(address, "extra.test", h.rawRoots)
			if (err == nil) != isMore {
				t.Errorf("change %d: extra.test at %s: %v, want it to be there: %v", n, address, err, isMore)
			}
		}
		if n%20 == 10 {
			h.renew(t, []string{"web.test", "files.test"}[n/20%2])
		}
	}
	h.write(t, "", h.sites)
	if !h.hangup(t) {
		t.Error("the first config is refused")
	}
}

// certificateLines are the cert and key of a config's sites.
func certificateLines(sites string) (lines []string) {
	for line := range strings.Lines(sites) {
		if strings.HasPrefix(line, "cert = ") || strings.HasPrefix(line, "key = ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// renew has a certificate replaced, as an administrator does.
func (h *house) renew(t testing.TB, name string) {
	t.Helper()
	before, err := h.shakeHands(name, h.ca.IssuingRoot)
	if err != nil {
		t.Error(err)
		return
	}
	cmd := exec.CommandContext(minute(t), program(t, "raimons"), "certs", "renew", name, "storage="+h.storage)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("certs renew: %v\n%s", err, out)
	}
	after, err := h.shakeHands(name, h.ca.IssuingRoot)
	if err != nil {
		t.Error(err)
	} else if after.SerialNumber.Cmp(before.SerialNumber) == 0 {
		t.Errorf("%s shows the same certificate after its renewal", name)
	}
}

// rest waits until what does not last has gone: what is open then is little and does not get less. Where files
// and goroutines are given, there must not be more of them. It returns their numbers.
func (h *house) rest(t testing.TB, files, goroutines int) (leastFiles, least int) {
	t.Helper()
	h.web.CloseClientConnections() // those that the edge keeps for its next request
	leastFiles, least = h.files(t), h.goroutines(t)
	since, begin := time.Now(), time.Now()
	eventually(t, 4*patience, "the edge is at rest", func() bool {
		if f, g := h.files(t), h.goroutines(t); f < leastFiles || g < least {
			leastFiles, least, since = min(f, leastFiles), min(g, least), time.Now()
		}
		enough := files > 0 && leastFiles <= files && least <= goroutines
		return enough || time.Since(since) > patience/5 && (files == 0 || time.Since(begin) > 2*patience)
	})
	t.Logf("at rest: %d files, %d goroutines", leastFiles, least)
	if files > 0 && (leastFiles > files || least > goroutines) {
		h.dump()
		t.Errorf("%d files and %d goroutines are left, want %d and %d", leastFiles, least, files, goroutines)
	}
	return leastFiles, least
}
