package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"raimon/internal/command"
	"raimon/internal/options"
)

func rewrite(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// quoted is path as the value of an option.
func quoted(path string) string { return strings.ReplaceAll(path, `\`, `\\`) }

// User and password are read anew for each connection; what is wrong with the file is said without what is in it.
func TestProxyAuthFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "login")
	rewrite(t, path, "jo:a b:c \r\n")
	job, _ := tokenJob(t, "a.test:443", "proxy-auth=file:"+quoted(path))
	source, err := proxyUser(job)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a b:c ", "", "päss"} {
		rewrite(t, path, "jo:"+want+"\n")
		user, err := source(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if password, _ := user.Password(); user.Username() != "jo" || password != want {
			t.Errorf("got %q and %q, want jo and %q", user.Username(), password, want)
		}
	}
	for _, text := range []string{"", "\n", "s3cr3t", ":s3cr3t", "jo:s3cr3t\njo:s3cr3t", "jo:s3cr3t\x00", "jo:" + strings.Repeat("s3cr3t", 2000)} {
		rewrite(t, path, text)
		user, err := source(t.Context())
		if user != nil || err == nil || strings.Contains(err.Error(), "s3cr3t") || !strings.HasSuffix(err.Error(), "login: it is not one line with user:password") {
			t.Errorf("%.20q: got %v", text, err)
		}
		var mistake *command.ConfigError
		if _, err := proxyUser(job); !errors.As(err, &mistake) || mistake.Fix == "" || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%.20q: at the start: %v", text, err)
		}
	}
}

func TestProxyAuthItself(t *testing.T) {
	job, _ := tokenJob(t, "a.test:443", "proxy-auth=jo:p@ss:word")
	source, err := proxyUser(job)
	if err != nil {
		t.Fatal(err)
	}
	user, err := source(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if password, _ := user.Password(); user.Username() != "jo" || password != "p@ss:word" {
		t.Errorf("got %q and %q", user.Username(), password)
	}
	job, _ = tokenJob(t, "a.test:443", "")
	if source, err := proxyUser(job); source != nil || err != nil {
		t.Errorf("without proxy-auth=: %v", err)
	}
}

// The secret half of a pair comes from a file, and is read anew.
func TestHeaderFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "value")
	rewrite(t, path, "first\n")
	job, logged := tokenJob(t, "a.test:443", "ws;host=a.test;path=/ws;tls;sni=a.test;user-agent=Mozilla/5.0;"+
		"header=CF-Access-Client-Id: jo.access;header=CF-Access-Client-Secret: file:"+quoted(path))
	source, err := header(job)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a b", "second"} {
		rewrite(t, path, " "+want+"\r\n")
		got, err := source(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{"CF-Access-Client-Id": "jo.access", "CF-Access-Client-Secret": want, "User-Agent": "Mozilla/5.0"} {
			if values := got[name]; len(values) != 1 || values[0] != want {
				t.Errorf("%s is %q, want %q", name, values, want)
			}
		}
		if len(got) != 3 {
			t.Errorf("got %d fields, want 3", len(got))
		}
	}
	rewrite(t, path, "s3cr3t\r\nHost: b.test")
	got, err := source(t.Context())
	if got != nil || err == nil || !strings.HasPrefix(err.Error(), "header CF-Access-Client-Secret: ") || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("two lines: got %v", err)
	}
	if logged.Len() > 0 {
		t.Errorf("logged %q", logged)
	}
	job, _ = tokenJob(t, "a.test:443", "ws;host=a.test;path=/ws")
	if source, err := header(job); source != nil || err != nil {
		t.Errorf("without header=: %v", err)
	}
}

// A value that comes from a file is taken for a secret, one that stands in the options is not.
func TestHeaderInTheClear(t *testing.T) {
	path := filepath.Join(t.TempDir(), "value")
	rewrite(t, path, "s3cr3t")
	for value, want := range map[string]bool{"plain": false, "file:" + quoted(path): true} {
		job, logged := tokenJob(t, "edge.example.com:80", "ws;host=a.test;path=/ws;header=X: "+value)
		if _, err := header(job); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(logged.String(), "header X goes over the network in the clear"); got != want || strings.Contains(logged.String(), "s3cr3t") {
			t.Errorf("%s: logged %q, want a warning: %v", value, logged, want)
		}
	}
}

// In a config file what may be given several times is a list, of a tunnel in place of that of the defaults.
func TestHeaderInConfigFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tunnels.toml")
	rewrite(t, path, `
one = "127.0.0.1:1111 -> wss://a.test/ws"

[two]
listen = "127.0.0.1:2222"
remote = "wss://a.test/ws"
header = "X-Own: 1"

[defaults]
header = ["X-One: a, b", "X-Two: c"]
`)
	all, err := readProfiles(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]options.Header{"one": {{Name: "X-One", Value: "a, b"}, {Name: "X-Two", Value: "c"}}, "two": {{Name: "X-Own", Value: "1"}}}
	for _, p := range all.tunnels {
		if !slices.Equal(p.options.Header, want[p.name]) {
			t.Errorf("%s: got %v, want %v", p.name, p.options.Header, want[p.name])
		}
	}
	if len(all.tunnels) != len(want) {
		t.Errorf("got %d tunnels, want %d", len(all.tunnels), len(want))
	}
}

// The password of a socks port is read when the tunnel is made; one that has changed makes it another tunnel.
func TestSocksAuthFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "login")
	rewrite(t, path, "jo:a b:c\r\n")
	job, _ := tokenJob(t, "a.test:443", "ws;host=a.test;path=/;socks;socks-auth=file:"+quoted(path))
	layer, err := localProxy(t.Context(), job)
	if err != nil || layer.User != "jo" || layer.Password != "a b:c" {
		t.Fatalf("got %+v, %v", layer, err)
	}
	before, err := newTunnel(t.Context(), "", job)
	if err != nil {
		t.Fatal(err)
	}
	rewrite(t, path, "jo:other\n")
	after, err := newTunnel(t.Context(), "", job)
	if err != nil || after.Key == before.Key {
		t.Errorf("the key stays, %v", err)
	}
	for _, text := range []string{"", "s3cr3t", "jo:" + strings.Repeat("s3cr3t", 50)} {
		rewrite(t, path, text)
		var mistake *command.ConfigError
		if _, err := localProxy(t.Context(), job); !errors.As(err, &mistake) || mistake.Fix == "" || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}
