package localproxy

import (
	"context"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
)

// run runs a program that has to be there, with input, and returns what it prints.
func run(t *testing.T, input, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, name, args...)
	command.Stdin = strings.NewReader(input)
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0"}
	command.WaitDelay = 5 * time.Second
	out, err := command.CombinedOutput()
	return string(out), err
}

// split is the host and the port of an address, as nc wants them.
func split(address string) (host, port string) {
	host, port, _ = strings.Cut(address, ":")
	return host, port
}

func TestCurl(t *testing.T) {
	secure := httptest.NewTLSServer(http.HandlerFunc(tellRequest))
	t.Cleanup(secure.Close) // after the parallel parts
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	site := startSite(t)
	names := map[string]string{
		"site.invalid:80":   site,                            // nobody but us knows that name
		"[2001:db8::1]:80":  site,                            // nor the way there
		"example.com:443":   secure.Listener.Addr().String(), // is in the certificate
		"nobody.invalid:80": "127.0.0.1:1",
	}
	unlocked, closed := startProxy(t, open, names), startProxy(t, locked, names)
	const asked = "GET /x HTTP/1.1\nHost: site.invalid\n"
	for name, test := range map[string]struct {
		args []string
		want string
		code int // of curl's end (curl(1)); 22 is an HTTP error
	}{
		"socks5h":                    {[]string{"--socks5-hostname", unlocked, "http://site.invalid/x"}, asked, 0},
		"socks5h, https":             {[]string{"--socks5-hostname", unlocked, "--cacert", ca, "https://example.com/x"}, "GET /x HTTP/1.1\nHost: example.com\n", 0},
		"socks5, IPv4":               {[]string{"--socks5", unlocked, "http://" + site + "/x"}, "GET /x HTTP/1.1\n", 0},
		"socks5, IPv6":               {[]string{"--socks5", unlocked, "http://[2001:db8::1]/x"}, "Host: [2001:db8::1]\n", 0},
		"socks5 with a password":     {[]string{"--socks5-hostname", closed, "--proxy-user", "ann:p:w", "http://site.invalid/x"}, asked, 0},
		"socks5, unasked password":   {[]string{"--socks5-hostname", unlocked, "--proxy-user", "ann:p:w", "http://site.invalid/x"}, asked, 0},
		"socks5, wrong password":     {[]string{"--socks5-hostname", closed, "--proxy-user", "ann:x", "http://site.invalid/x"}, "rejected", 97},
		"socks5, no password":        {[]string{"--socks5-hostname", closed, "http://site.invalid/x"}, "No authentication method", 97},
		"socks5, nobody there":       {[]string{"--socks5-hostname", unlocked, "http://nobody.invalid/x"}, "(5)", 97},
		"socks4":                     {[]string{"--socks4a", unlocked, "http://site.invalid/x"}, "rejected or failed", 97},
		"http":                       {[]string{"-x", "http://" + unlocked, "http://site.invalid/x"}, asked, 0},
		"http, a body":               {[]string{"-x", "http://" + unlocked, "--data", "abc", "http://site.invalid/x"}, "body: 3 <nil>\n", 0},
		"http, a body in chunks":     {[]string{"-x", "http://" + unlocked, "-H", "Transfer-Encoding: chunked", "--data", "abc", "http://site.invalid/x"}, "body: 3 <nil>\nclose: true\nchunked: true\n", 0},
		"http, two after each other": {[]string{"-x", "http://" + unlocked, "http://site.invalid/y", "http://site.invalid/x"}, asked, 0},
		"http, HTTP/1.0":             {[]string{"-x", "http://" + unlocked, "--http1.0", "http://site.invalid/x"}, "GET /x HTTP/1.0\n", 0},
		"http, nobody there":         {[]string{"-x", "http://" + unlocked, "http://nobody.invalid/x"}, "raimonc: nobody.invalid:80: nobody listens there\n", 0},
		"http with a password":       {[]string{"-x", "http://" + closed, "--proxy-user", "ann:p:w", "http://site.invalid/x"}, asked, 0},
		"http, asked for a password": {[]string{"-x", "http://" + closed, "--proxy-anyauth", "--proxy-user", "ann:p:w", "http://site.invalid/x"}, asked, 0},
		"http, wrong password":       {[]string{"-x", "http://" + closed, "-f", "--proxy-user", "ann:x", "http://site.invalid/x"}, "407", 22},
		"connect":                    {[]string{"-x", "http://" + unlocked, "--proxytunnel", "http://site.invalid/x"}, asked, 0},
		"connect, HTTP/1.0":          {[]string{"-x", "http://" + unlocked, "--proxytunnel", "--proxy1.0", unlocked, "http://site.invalid/x"}, asked, 0},
		"connect, https":             {[]string{"-x", "http://" + unlocked, "--cacert", ca, "https://example.com/x"}, "GET /x HTTP/1.1\nHost: example.com\n", 0},
		"connect with a password":    {[]string{"-x", "http://" + closed, "--proxytunnel", "--proxy-user", "ann:p:w", "http://site.invalid/x"}, asked, 0},
		"connect, asked":             {[]string{"-x", "http://" + closed, "--proxytunnel", "--proxy-anyauth", "--proxy-user", "ann:p:w", "http://site.invalid/x"}, asked, 0},
		"connect, wrong password":    {[]string{"-x", "http://" + closed, "--proxytunnel", "--proxy-user", "ann:x", "http://site.invalid/x"}, "407", 56},
		"connect, nobody there":      {[]string{"-x", "http://" + unlocked, "--proxytunnel", "http://nobody.invalid/x"}, "502", 56},
		"as a web server":            {[]string{"http://" + unlocked + "/x"}, "raimonc: this is a proxy and no web server", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := run(t, "", "curl", append([]string{"-sS", "--noproxy", ""}, test.args...)...)
			code := 0
			if exit, ok := err.(*exec.ExitError); ok {
				code = exit.ExitCode()
			}
			if code != test.code || !strings.Contains(out, test.want) {
				t.Errorf("curl prints %q and ends with %v, want %q and %d", out, err, test.want, test.code)
			}
		})
	}
}

func TestNetcat(t *testing.T) {
	if help, _ := run(t, "", "nc", "-h"); !strings.Contains(help, "-X proxy_protocol") && !strings.Contains(help, "[-X proxy") {
		t.Skip("this nc is not OpenBSD's and knows no -X")
	}
	echo := tunneltest.Echo(t)
	proxy := startProxy(t, open, map[string]string{"echo.invalid:7": echo})
	host, port := split(echo)
	for name, args := range map[string][]string{
		"socks5":        {"-X", "5", "-x", proxy, host, port},
		"socks5 name":   {"-X", "5", "-x", proxy, "echo.invalid", "7"},
		"connect":       {"-X", "connect", "-x", proxy, host, port},
		"connect, name": {"-X", "connect", "-x", proxy, "echo.invalid", "7"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const said = "there and back\n"
			if out, err := run(t, said, "nc", append([]string{"-N", "-w", "20"}, args...)...); out != said || err != nil {
				t.Errorf("nc prints %q, %v, want %q", out, err, said)
			}
		})
	}
}

// An ssh client by way of nc, as people write it into ProxyCommand, hears the server's first line.
func TestSSH(t *testing.T) {
	if _, err := exec.LookPath("nc"); err != nil {
		t.Skip("nc is not installed")
	}
	server := tunneltest.Serve(t, func(c *net.TCPConn) {
		io.WriteString(c, "SSH-2.0-raimontest\r\n"+strings.Repeat("\xff", 64)) // no packet that ssh takes
		io.Copy(io.Discard, c)
	})
	proxy := startProxy(t, open, map[string]string{"ssh.invalid:22": server})
	out, err := run(t, "", "ssh", "-v", "-F", "none", "-o", "BatchMode=yes", "-o", "ProxyCommand=nc -X 5 -x "+proxy+" %h %p", "ssh.invalid", "true")
	if err == nil || !strings.Contains(out, "remote software version raimontest") {
		t.Errorf("ssh does not hear the server: %v\n%s", err, out)
	}
}

func TestGit(t *testing.T) {
	folder := t.TempDir()
	work, bare := filepath.Join(folder, "work"), filepath.Join(folder, "site", "r.git")
	for _, args := range [][]string{
		{"init", "-q", work},
		{"-C", work, "-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-q", "--allow-empty", "-m", "the one"},
		{"clone", "-q", "--bare", work, bare},
		{"-C", bare, "update-server-info"}, // lets a plain web server serve it
	} {
		if out, err := run(t, "", "git", args...); err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
	}
	site := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(folder, "site"))))
	defer site.Close()
	proxy := startProxy(t, locked, map[string]string{"git.invalid:80": site.Listener.Addr().String()})
	for _, scheme := range []string{"socks5h", "http"} {
		t.Run(scheme, func(t *testing.T) {
			clone := filepath.Join(t.TempDir(), "clone")
			out, err := run(t, "", "git", "-c", "http.proxy="+scheme+"://ann:p%3Aw@"+proxy, "clone", "-q", "http://git.invalid/r.git", clone)
			if err != nil {
				t.Fatalf("git clone: %v\n%s", err, out)
			}
			if out, err := run(t, "", "git", "-C", clone, "log", "--format=%s"); out != "the one\n" || err != nil {
				t.Errorf("got %q, %v", out, err)
			}
		})
	}
}

func TestApt(t *testing.T) {
	const helper = "/usr/lib/apt/apt-helper"
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "package of "+r.Host) }))
	defer site.Close()
	proxy := startProxy(t, open, map[string]string{"deb.invalid:80": site.Listener.Addr().String()})
	for _, scheme := range []string{"http", "socks5h"} {
		t.Run(scheme, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "file")
			out, err := run(t, "", helper, "-o", "APT::Sandbox::User=", "-o", "Acquire::http::Proxy="+scheme+"://"+proxy, "download-file", "http://deb.invalid/a.deb", file)
			if err != nil {
				t.Fatalf("apt-helper: %v\n%s", err, out)
			}
			if got, err := os.ReadFile(file); string(got) != "package of deb.invalid" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}
