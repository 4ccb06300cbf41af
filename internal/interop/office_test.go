//go:build interop

package interop

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"raimon/internal/tunneltest"
)

// office is a network behind an edge, with what people want of it. Its names are known to the edge, and to a proxy that
// is started with knowing, but not to the machine of the test.
type office struct {
	edge    *process
	address string // of the edge
	ca      string // file: that of the edge and of all servers
	tokens  map[string]string
	hosts   string // file

	ssh  sshServer
	home string // folder in which people are who have logged in
	db   string
	shop mariaDB
	web  string // wiki.internal and git.internal
	down string // nobody is there

	reports chan string // of the page that wiki.internal has
}

const officeConfig = `
listen = ["%[1]s"]
http = "off"
storage = "%[2]s"

[limits]
rate = -1
per-address = -1

[[site]]
names = ["edge.example.com"]
cert = "%[3]s"
key = "%[4]s"

[[site.route]]
path = "/ssh"
target = "%[5]s"
tokens = "%[6]s"

[[site.route]]
path = "/db"
target = "%[7]s"
tokens = "%[8]s"

[[site.route]]
path = "/shop"
target = "%[9]s"
tokens = "%[6]s"

[[site.route]]
path = "/down"
target = "%[10]s"
tokens = "%[6]s"

[[site.route]]
path = "/any"
targets = ["wiki.internal:*", "git.internal:*", "ssh.internal:*", "down.internal:*"]
tokens = "%[6]s"
`

func newOffice(t testing.TB) *office {
	t.Helper()
	ca := tunneltest.NewCA(t)
	edge := ca.Write(t, t.TempDir(), ca.Issue(t, "edge.example.com"))
	inside := ca.Write(t, t.TempDir(), ca.Issue(t, "db.internal"))
	o := &office{
		address: freePort(), ca: edge.CA, tokens: make(map[string]string), home: t.TempDir(),
		db: startPostgres(t, inside), shop: startMariaDB(t), down: freePort(), reports: make(chan string, 10),
	}
	// Bash reads ~/.bashrc for sshd if it is no shell within another: what that has to say is not for those who log in here.
	o.ssh = startSSH(t, "Subsystem sftp /usr/lib/openssh/sftp-server", "SetEnv SHLVL=2", "ForceCommand cd '"+o.home+"' && exec sh -c \"$SSH_ORIGINAL_COMMAND\"")
	o.web = o.startWeb(t, ca)
	lines := make(map[string]string)
	for _, name := range []string{"me", "db"} {
		var line string
		o.tokens[name], line = newToken(t, name)
		lines[name] = writeFile(t, "tokens", line+"\n")
	}
	o.hosts = writeFile(t, "hosts", fmt.Sprintf("%s edge.example.com\n%s wiki.internal git.internal\n%s ssh.internal\n%s down.internal\n%s secret.internal\n",
		host(o.address), host(o.web), host(o.ssh.address), host(o.down), host(o.web)))
	if err := os.Chmod(o.hosts, 0o644); err != nil {
		t.Fatal(err)
	}
	config := writeFile(t, "edge.toml", fmt.Sprintf(officeConfig, o.address, t.TempDir(), edge.Cert, edge.Key,
		o.ssh.address, lines["me"], o.db, lines["db"], o.shop.address, o.down))
	o.edge = o.startKnowing(t, "raimons", "-config", config, "-log-format", "json")
	o.edge.await(t, listening)
	return o
}

// startKnowing starts a program for which /etc/hosts is that of the office.
func (o *office) startKnowing(t testing.TB, name string, args ...string) *process {
	t.Helper()
	own := []string{"--mount"}
	if os.Geteuid() != 0 {
		own = append(own, "--map-root-user")
	}
	own = append(own, "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, o.hosts, program(t, name))
	return start(t, "unshare", nil, append(own, args...)...)
}

// wikiPage loads a file and reports its digest; whoever loads the page names itself behind the question mark.
const wikiPage = `<!doctype html><meta charset=utf-8><title>wiki</title>
<script>
const report = text => fetch("/report", {method: "POST", body: location.search.slice(1) + " " + text});
fetch("/data").then(answer => answer.arrayBuffer()).then(data => crypto.subtle.digest("SHA-256", data)).then(
	digest => report([...new Uint8Array(digest)].map(b => b.toString(16).padStart(2, "0")).join("")), report);
</script>`

// pageData is how many bytes the page loads.
const pageData = 3 * megabyte

// startWeb starts a web server for wiki.internal, and for git.internal with the repository "repository", which is in o.home.
func (o *office) startWeb(t testing.TB, ca *tunneltest.CA) (address string) {
	t.Helper()
	work, repository := filepath.Join(t.TempDir(), "work"), filepath.Join(o.home, "repository")
	ran(t, "git", "init", "-q", work)
	replace(t, filepath.Join(work, "big"), read(t, stream(repositoryFile)))
	ran(t, "git", "-C", work, "add", "big")
	ran(t, "git", "-C", work, "-c", "user.name=me", "-c", "user.email=me@example.com", "commit", "-q", "-m", "the one")
	ran(t, "git", "clone", "-q", "--bare", work, repository)
	git := &cgi.Handler{
		Path: filepath.Join(ran(t, "git", "--exec-path"), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + o.home, "GIT_HTTP_EXPORT_ALL=1", "REMOTE_USER=me"},
	}
	mux := http.NewServeMux()
	mux.Handle("git.internal/repository/", git)
	mux.HandleFunc("wiki.internal/{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, wikiPage)
	})
	mux.HandleFunc("wiki.internal/data", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, stream(pageData)) })
	mux.HandleFunc("wiki.internal/report", func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		o.reports <- string(text)
	})
	web := httptest.NewUnstartedServer(mux)
	web.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "wiki.internal", "git.internal")}}
	web.StartTLS()
	t.Cleanup(web.Close)
	return web.Listener.Addr().String()
}

// repositoryFile is the size of the file "big" in the repository.
const repositoryFile = 3 * megabyte

// read is all of r.
func read(t testing.TB, r io.Reader) []byte {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// isFile wants the file at path to be stream(n).
func isFile(t testing.TB, path string, n int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
		return
	}
	got := newSum()
	io.Copy(got, bytes.NewReader(data))
	if got.String() != sumOf(n) {
		t.Errorf("%s: got %v, want %v", filepath.Base(path), got, sumOf(n))
	}
}

// startProxy starts one of the proxies that ask jo for a password, and returns its URL.
func (o *office) startProxy(t testing.TB, name string) string {
	t.Helper()
	address := freePort()
	switch name {
	case "tinyproxy":
		conf := writeFile(t, "tinyproxy.conf", fmt.Sprintf("Port %s\nListen %s\nTimeout 60\nMaxClients 100\nBasicAuth jo s3cr3t\n", port(address), host(address)))
		o.startKnowing(t, name, "-d", "-c", conf).awaitPort(t, address)
		return "http://" + address
	case "microsocks":
		o.startKnowing(t, name, "-i", host(address), "-p", port(address), "-u", "jo", "-P", "s3cr3t").awaitPort(t, address)
		return "socks5://" + address
	}
	dir := foreignFolder(t)
	hosts, err := os.ReadFile(o.hosts)
	if err != nil {
		t.Fatal(err)
	}
	known := filepath.Join(dir, "hosts")
	replace(t, known, hosts)
	return "http://" + startSquid(t, dir, "", strings.Join([]string{
		"hosts_file " + known,
		"auth_param basic program /usr/lib/squid/basic_ncsa_auth " + squidUser(t, dir),
		"acl users proxy_auth REQUIRED",
		"http_access allow users",
	}, "\n"))
}
