//go:build interop

package interop

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// laptop is a client whose ~/.config/raimon/tunnels.toml and ~/.ssh/config are those of docs/client.md, behind a proxy that
// asks for a password, and the shell of its user.
type laptop struct {
	*office
	*process // raimonc
	ip       string
	home     string
	path     string // for programs
	replace  *strings.Replacer
	docs     string
}

// laptopTunnels come behind the file that docs/client.md shows, whose last table is that of the defaults.
const laptopTunnels = `
token = "file:/home/me/.config/raimon/token"
proxy = "%[1]s"
proxy-auth = "file:/home/me/.config/raimon/proxy"
ca = "%[2]s"

[shop]
listen = "127.0.0.1:3306"
remote = "wss://edge.example.com/shop"
pool = 2

[down]
listen = "127.0.0.1:2223"
remote = "wss://edge.example.com/down"
pool = 1
`

// laptopSSH comes behind the ~/.ssh/config that docs/client.md shows. What is 10.1.2.3 there is a name here, which only
// the edge can look up.
const laptopSSH = `
Host 10.1.2.3
	HostName ssh.internal
	Port %[1]s
Host *
	User %[2]s
	IdentityFile %[3]s
	UserKnownHostsFile %[4]s
	HostKeyAlias raimon
	IdentitiesOnly yes
	BatchMode yes
	StrictHostKeyChecking yes
`

func (o *office) newLaptop(t testing.TB, proxy string) *laptop {
	t.Helper()
	docs, err := os.ReadFile("../../docs/client.md")
	if err != nil {
		t.Fatal(err)
	}
	l := &laptop{office: o, ip: host(freePort()), home: t.TempDir(), docs: string(docs)}
	folder := filepath.Join(l.home, ".config", "raimon")
	programs := filepath.Join(l.home, "bin")
	for _, dir := range []string{folder, programs, filepath.Join(l.home, ".ssh")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l.path = programs + ":" + bin + ":" + os.Getenv("PATH")
	option := fmt.Sprintf("token=file:%s/token;ca=%s;proxy=%s;proxy-auth=file:%[1]s/proxy", folder, o.ca, proxy)
	l.replace = strings.NewReplacer(
		"127.0.0.1", l.ip,
		"edge.example.com", "edge.example.com:"+port(o.address),
		".internal/", ".internal:"+port(o.web)+"/",
		"'token=file:/home/me/.config/raimon/token'", "'"+option+"'",
		"/home/me", l.home,
		"me@", o.ssh.user+"@",
	)
	config := filepath.Join(l.home, ".ssh", "config")
	for path, text := range map[string]string{
		filepath.Join(folder, "token"):    o.tokens["me"] + "\n",
		filepath.Join(folder, "db.token"): o.tokens["db"] + "\n",
		filepath.Join(folder, "proxy"):    "jo:s3cr3t\n",
		filepath.Join(folder, "tunnels.toml"): l.replace.Replace(l.shown(t, "(?s)\n```toml\n(.*?)```\n") +
			fmt.Sprintf(laptopTunnels, proxy, o.ca)),
		config: l.replace.Replace(l.shown(t, `(?m)((?:^ {4}Host work\n)(?:^ {8}.*\n)+)`)) +
			fmt.Sprintf(laptopSSH, port(o.ssh.address), o.ssh.user, o.ssh.key, o.ssh.hosts),
	} {
		replace(t, path, []byte(text))
	}
	// They look for their config in the home folder that /etc/passwd has.
	for _, name := range []string{"ssh", "scp"} {
		script := filepath.Join(programs, name)
		replace(t, script, fmt.Appendf(nil, "#!/bin/sh\nexec %s -F %s \"$@\"\n", program(t, name), config))
		if err := os.Chmod(script, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l.process = start(t, "raimonc", noProxy, "-config", filepath.Join(folder, "tunnels.toml"), "-log-format", "json", "-v")
	l.await(t, listening)
	return l
}

// shown is what docs/client.md shows first that matches pattern.
func (l *laptop) shown(t testing.TB, pattern string) string {
	t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(l.docs)
	if m == nil {
		t.Fatalf("docs/client.md shows nothing that matches %q", pattern)
	}
	return m[1]
}

// command is one that docs/client.md shows, with more behind it, in the shell of the laptop's user.
func (l *laptop) command(t testing.TB, dir, command string, more ...string) *exec.Cmd {
	t.Helper()
	if !strings.Contains(l.docs, command) {
		t.Fatalf("docs/client.md does not show %q", command)
	}
	return l.shell(t, dir, command, more...)
}

// shell is for what docs/client.md does not show in full.
func (l *laptop) shell(t testing.TB, dir, command string, more ...string) *exec.Cmd {
	t.Helper()
	program(t, strings.Fields(command)[0])
	cmd := exec.CommandContext(minute(t), "sh", append([]string{"-c", l.replace.Replace(command) + ` "$@"`, "sh"}, more...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), l.env()...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// env is what the user's programs find beside what the test has.
func (l *laptop) env() []string {
	return append(slices.Clone(noProxy), "HOME="+l.home, "PATH="+l.path, "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_SSL_CAINFO="+l.ca, "CURL_CA_BUNDLE="+l.ca, "PGSSLROOTCERT="+l.ca, "PGUSER=me", "PGDATABASE=postgres")
}

// works wants a command to end well, and returns what it prints.
func works(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	out, _ := result(t, cmd)
	return out
}

// worksQuietly is works for a command that has nothing to say on standard error.
func worksQuietly(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	out, said := result(t, cmd)
	if said != "" {
		t.Errorf("%q says: %s", cmd.Args[2:], trim(said, 1000))
	}
	return out
}

// result is what a command that ends well prints on standard output, and on standard error.
func result(t testing.TB, cmd *exec.Cmd) (out, said string) {
	t.Helper()
	var failed strings.Builder
	cmd.Stderr = &failed
	b, err := cmd.Output()
	if err != nil {
		t.Errorf("%q: %v: %s", cmd.Args[2:], err, trim(failed.String(), 1000))
	}
	return string(b), failed.String()
}

// Everything that docs/client.md says of ssh, scp, rsync, git, databases and the proxy for programs, done by the programs
// themselves, through each kind of proxy.
func TestLaptop(t *testing.T) {
	for _, name := range []string{"squid", "tinyproxy", "microsocks"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOffice(t)
			l := o.newLaptop(t, o.startProxy(t, name))
			for name, test := range map[string]func(*testing.T){
				"ssh": l.testSSH, "scp": l.testSCP, "rsync": l.testRsync, "git": l.testGit, "postgres": l.testPostgres, "mariadb": l.testMariaDB,
				"curl": l.testCurl, "browser": l.testBrowser, "forbidden": l.testForbidden, "down": l.testDown,
			} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					test(t)
				})
			}
			t.Cleanup(func() { l.checkLogs(t) })
		})
	}
}

// checkLogs wants no secret in them, and no warning of raimonc but those that the tests have asked for.
func (l *laptop) checkLogs(t testing.TB) {
	t.Helper()
	for _, secret := range []string{"s3cr3t", l.tokens["me"], l.tokens["db"]} {
		if strings.Contains(l.log.String()+l.edge.log.String(), secret) {
			t.Error("a secret is in a log")
		}
	}
	// PostgreSQL resets a connection on which a close_notify is left to read; the edge passes that on, and a proxy makes an
	// end of it, so that raimonc sees a stream that was cut.
	expected := regexp.MustCompile(`"tunnel":"down"|"target":"(secret|down)\.internal:|"tunnel":"db".*"error":"stream was cut: unexpected EOF".*"reason":"target_cut"`)
	for line := range strings.Lines(l.log.String()) {
		if strings.Contains(line, `"level":"WARN"`) && !expected.MatchString(line) {
			t.Errorf("raimonc warns: %s", line)
		}
	}
}

// copied is how much is copied, in bytes.
const copied = 20 * megabyte

func (l *laptop) testSSH(t *testing.T) {
	program(t, "nc")
	for _, command := range []string{
		"ssh -p 2222 me@127.0.0.1",
		"ssh work",
		"ssh -o ProxyCommand='nc -X 5 -x 127.0.0.1:1080 %h %p' me@10.1.2.3",
	} {
		const n = megabyte
		cmd := l.command(t, l.home, command, "cat; exit 7")
		var failed strings.Builder
		got := newSum()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stream(n), got, &failed
		err := cmd.Run()
		if cmd.ProcessState.ExitCode() != 7 || got.String() != sumOf(n) || failed.Len() > 0 {
			t.Errorf("%s: %v with %v, want %v: %s", command, err, got, sumOf(n), trim(failed.String(), 1000))
		}
	}
}

func (l *laptop) testSCP(t *testing.T) {
	dir := t.TempDir()
	replace(t, filepath.Join(dir, "file"), read(t, stream(copied)))
	worksQuietly(t, l.command(t, dir, "scp file work:"))
	isFile(t, filepath.Join(l.office.home, "file"), copied)
	worksQuietly(t, l.command(t, dir, "scp work:file copy"))
	isFile(t, filepath.Join(dir, "copy"), copied)
}

func (l *laptop) testRsync(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"folder", "copy"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	replace(t, filepath.Join(dir, "folder", "big"), read(t, stream(copied)))
	replace(t, filepath.Join(dir, "folder", "small"), []byte("x"))
	worksQuietly(t, l.command(t, dir, "rsync -a folder/ work:folder/"))
	isFile(t, filepath.Join(l.office.home, "folder", "big"), copied)
	worksQuietly(t, l.command(t, dir, "rsync -a work:folder/ copy/"))
	isFile(t, filepath.Join(dir, "copy", "big"), copied)
	if out := worksQuietly(t, l.shell(t, dir, "rsync -ani --checksum work:folder/ copy/")); out != "" {
		t.Errorf("rsync sees a difference: %s", trim(out, 300))
	}
}

func (l *laptop) testGit(t *testing.T) {
	for _, command := range []string{
		"git clone work:repository",
		"git -c http.proxy=socks5h://127.0.0.1:1080 clone https://git.internal/repository",
	} {
		dir := t.TempDir()
		worksQuietly(t, l.command(t, dir, command, "-q"))
		isFile(t, filepath.Join(dir, "repository", "big"), repositoryFile)
	}
}

func (l *laptop) testPostgres(t *testing.T) {
	const rows = 150_000
	want := newSum()
	for n := range rows {
		fmt.Fprintf(want, "%d|%032x\n", n, n*n)
	}
	query := fmt.Sprintf("select n, lpad(to_hex(n * n), 32, '0') from generate_series(0::bigint, %d) n", rows-1)
	for _, command := range []string{
		"psql -h 127.0.0.1 -p 5432",
		`psql "host=db.internal hostaddr=127.0.0.1 port=5432 sslmode=verify-full"`,
	} {
		got := newSum()
		got.Write([]byte(works(t, l.command(t, l.home, command, "-XAtc", query))))
		if got.String() != want.String() {
			t.Errorf("%s: got %v, want %v", command, got, want)
		}
	}
	// The other direction, on one connection.
	cmd := l.shell(t, l.home, "psql -h 127.0.0.1 -p 5432", "-XqAt")
	var input strings.Builder
	input.WriteString("create temp table t (n bigint, text text);\n\\copy t from pstdin with (delimiter '|')\n")
	for n := range rows {
		fmt.Fprintf(&input, "%d|%032x\n", n, n*n)
	}
	input.WriteString("\\.\nselect count(*), sum(n), sum(length(text)) from t;\n")
	cmd.Stdin = strings.NewReader(input.String())
	if out, want := works(t, cmd), fmt.Sprintf("%d|%d|%d\n", rows, rows*(rows-1)/2, 32*rows); out != want {
		t.Errorf("after \\copy: got %q, want %q", out, want)
	}
}

func (l *laptop) testMariaDB(t *testing.T) {
	for range 4 { // more than the pool has
		if out := works(t, l.command(t, l.home, "mariadb -h 127.0.0.1 -P 3306", "-u", "root", "-BNe", "select 6 * 7")); out != "42\n" {
			t.Errorf("got %q", out)
		}
	}
	const n = 5 * megabyte
	if out := works(t, l.shell(t, l.home, "mariadb -h 127.0.0.1 -P 3306", "-u", "root", "-BNe", fmt.Sprintf("select repeat('x', %d)", n))); out != strings.Repeat("x", n)+"\n" {
		t.Errorf("a long answer: got %d bytes, want %d", len(out), n+1)
	}
}

func (l *laptop) testCurl(t *testing.T) {
	for _, scheme := range []string{"socks5h", "http"} {
		command := "curl --proxy " + scheme + "://127.0.0.1:1080 https://wiki.internal/"
		if out := works(t, l.command(t, l.home, command, "-sS")); out != wikiPage {
			t.Errorf("%s: got %q", scheme, trim(out, 300))
		}
	}
}

func (l *laptop) testBrowser(t *testing.T) {
	l.browser(t, "https://wiki.internal/?page")
	select {
	case got := <-l.reports:
		if want := fmt.Sprintf("page %x", sha256.Sum256(read(t, stream(pageData)))); got != want {
			t.Errorf("the page reports %q, want %q", got, want)
		}
	case <-time.After(3 * patience):
		t.Error("the page does not report")
	}
}

// browser prints the page at url, or why there is none.
func (l *laptop) browser(t testing.TB, url string) *process {
	t.Helper()
	args := append(browserArgs(t), "--ignore-certificate-errors", "--virtual-time-budget=5000", "--dump-dom", l.replace.Replace(url))
	cmd := l.command(t, l.home, "chromium --proxy-server=socks5://127.0.0.1:1080", args...)
	return start(t, "sh", append(l.env(), browserHome(t.TempDir())...), cmd.Args[1:]...)
}

// What is not among the targets of the edge is refused, in words that lead to its log.
func (l *laptop) testForbidden(t *testing.T) {
	const at = "https://secret.internal/"
	l.refused(t, "curl --proxy socks5h://127.0.0.1:1080", at, 97, "Can't complete SOCKS5 connection to secret.internal. (2)")
	l.refused(t, "curl --proxy http://127.0.0.1:1080", at, 56, "CONNECT tunnel failed, response 403")
	browser := l.browser(t, at)
	eventually(t, 3*patience, "the browser says why", func() bool { return strings.Contains(browser.log.String(), "ERR_SOCKS_CONNECTION_FAILED") })
	l.edge.await(t, `"target":"secret.internal:`+port(l.web)+`",.*"hint":"[^"]*add .*secret.internal:`+port(l.web)+`.* to its targets"`)
}

// A target that is down is told of at once, and the logs say what was tried.
func (l *laptop) testDown(t *testing.T) {
	at := "https://down.internal:" + port(l.down) + "/"
	l.refused(t, "curl --proxy socks5h://127.0.0.1:1080", at, 97, "Can't complete SOCKS5 connection to down.internal. (5)")
	l.refused(t, "curl --proxy http://127.0.0.1:1080", at, 56, "CONNECT tunnel failed, response 502")
	cmd := l.shell(t, l.home, "psql -h 127.0.0.1 -p 2223", "-Xc", "select 1")
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 2 { // psql(1): the connection went bad
		t.Errorf("psql: %v: %s", err, trim(string(out), 300))
	}
	l.await(t, `"tunnel":"down".*"hint":"`)
	l.edge.await(t, `"error":"dial tcp `+l.down+`: connect: connection refused"`)
}

// refused wants a program to get no connection, to end with code, and to say why.
func (l *laptop) refused(t testing.TB, command, address string, code int, want string) {
	t.Helper()
	cmd := l.command(t, l.home, command, "-sS", l.replace.Replace(address))
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != code || !strings.Contains(string(out), want) {
		t.Errorf("%s %s: %v, want status %d: %q", command, address, err, code, trim(string(out), 300))
	}
}
