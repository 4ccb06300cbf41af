package edge_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"raimon/internal/acmetest"
	"raimon/internal/commandtest"
	"raimon/internal/tunneltest"
)

// What cannot work is said at once, with what to do about it, before a CA hears of it.
func TestMistakes(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	taken := tunneltest.Listen(t).Addr().String()
	noPEM := file(t, "no.pem", "this is no certificate\n")
	const failed, config = 1, 23
	for _, test := range []struct {
		name, options string
		listen        string // empty: a free port
		status        int
		error, hint   string // regular expressions
	}{
		{name: "a name with a space", options: "acme=a.test b.test", status: config, error: `option "acme": "a.test b.test" has a space`, hint: `commas`},
		{name: "a URL for a name", options: "acme=https://a.test", status: config, error: `is no name`, hint: `https://`},
		{name: "a name with a port", options: "acme=a.test:443", status: config, error: `has a port`, hint: `leave the port`},
		{name: "an underscore", options: "acme=a_b.test", status: config, error: `is no DNS name`, hint: `letters`},
		{name: "wildcard without dns", options: "acme=*.a.test", status: config, error: `option "acme": "\*.a.test" is a wildcard`, hint: `dns=`},
		{name: "a star within", options: "acme=a.*.test", status: config, error: `the star`, hint: `\*\.example\.com`},
		{name: "must-staple", options: "acme=a.test;must-staple", status: config, error: `option "must-staple"`, hint: `remove must-staple`},
		{name: "IP without profile", options: "acme=192.0.2.1", status: config, error: `"192.0.2.1" is an IP address`, hint: `profile=`},
		{name: "IP with dns", options: "acme=192.0.2.1;profile=x;dns=exec:true", status: config, error: `"192.0.2.1" is an IP address`, hint: `dns=`},
		{name: "without tls", options: "acme=a.test", status: config, error: `option "acme": tls is not given`, hint: `tls`},
		{name: "port taken", listen: taken, options: "acme=a.test", status: failed, error: `listen .*in use`, hint: `.`},
		{name: "http port taken", options: "acme=a.test;http=" + taken, status: failed, error: `option "http".*in use`, hint: `.`},
		{name: "http is no address", options: "acme=a.test;http=8080", status: config, error: `option "http".*8080`, hint: `colon`},
		{name: "acme-root missing", options: "acme=a.test;acme-root=/nonexistent/root.pem", status: config, error: `option "acme-root".*no such file`, hint: `.`},
		{name: "acme-root is a folder", options: "acme=a.test;acme-root=/", status: config, error: `option "acme-root".*directory`, hint: `file`},
		{name: "acme-root without certificate", options: "acme=a.test;acme-root=" + noPEM, status: config, error: `no certificate in`, hint: `BEGIN CERTIFICATE`},
		{name: "EAB without key", options: "acme=a.test;eab=kid-1", status: config, error: `option "eab"`, hint: `eab=kid:key`},
		{name: "EAB key is no base64url", options: "acme=a.test;eab=kid-1:not!base64", status: config, error: `option "eab"`, hint: `eab=kid:key`},
		{name: "more EAB than CAs", options: "acme=a.test;eab=kid-1:a2V5,kid-2:a2V5", status: config, error: `option "eab": it has more values than acme-ca`, hint: `one for each CA`},
		{name: "unknown CA", options: "acme=a.test;acme-ca=letsencript", status: config, error: `option "acme-ca": "letsencript"`, hint: `letsencrypt`},
		{name: "CA without TLS", options: "acme=a.test;acme-ca=" + strings.Replace(ca.Directory, "https", "http", 1), status: config, error: `not encrypted`, hint: `https`},
		{name: "the same CA twice", options: "acme=a.test;acme-ca=" + ca.Directory + "," + ca.Directory, status: config, error: `given twice`, hint: `once`},
		{name: "nonsense for email", options: "acme=a.test;email=not an address", status: config, error: `option "email": "not an address" is no mail address`, hint: `email=me@example.com`},
		{name: "email with a name", options: "acme=a.test;email=Me <me@example.com>", status: config, error: `option "email"`, hint: `email=me@example.com`},
		{name: "key type", options: "acme=a.test;key-type=rsa", status: config, error: `option "key-type"`, hint: `rsa2048`},
		{name: "dns provider", options: "acme=a.test;dns=cloudflare", status: config, error: `option "dns"`, hint: `exec:`},
		{name: "dns program missing", options: "acme=a.test;dns=exec:/nonexistent/hook", status: config, error: `option "dns".*no such file`, hint: `.`},
		{name: "dns program not executable", options: "acme=a.test;dns=exec:" + noPEM, status: config, error: `option "dns".*permission denied`, hint: `chmod`},
		{name: "on-demand program missing", options: "on-demand=/nonexistent/allowed", status: config, error: `option "on-demand".*no such file`, hint: `.`},
		{name: "on-demand without host", options: "on-demand=http://", status: config, error: `option "on-demand"`, hint: `http://`},
		{name: "no storage", options: "acme=a.test;storage=off", status: config, error: `option "storage": off contradicts acme`, hint: `name a folder`},
		{name: "nobody could reach us", listen: "unix:" + filepath.Join(t.TempDir(), "s"), options: "acme=a.test", status: config, error: `could not find out`, hint: `dns=`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			options := test.options
			if test.name != "without tls" {
				options = complete(t, ca, options)
			}
			listen := test.listen
			if listen == "" {
				listen = "127.0.0.1:0"
			}
			status, said := runs(t, listen, nobody, options)
			if status != test.status {
				t.Errorf("exit status %d, want %d", status, test.status)
			}
			last := lastLines(said)
			if !regexp.MustCompile(`(?m)^raimons: .*(` + test.error + `)`).MatchString(last) {
				t.Errorf("no error %q", test.error)
			}
			if !regexp.MustCompile(`(?m)^raimons: hint: .*(` + test.hint + `)`).MatchString(last) {
				t.Errorf("no hint %q", test.hint)
			}
			if t.Failed() {
				t.Logf("raimons %s %s '%s':\n%s", listen, nobody, options, said)
			}
		})
	}
	t.Cleanup(func() {
		if n := ca.Requests(); n != 0 {
			t.Errorf("%d requests to the CA, want none", n)
		}
	})
}

// runs runs raimons to its end.
func runs(t testing.TB, args ...string) (status int, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandtest.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "raimons"), args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Errorf("did not end by itself:\n%s", said.String())
	}
	return cmd.ProcessState.ExitCode(), said.String()
}

// lastLines leaves out what was logged before.
func lastLines(said string) string {
	var last []string
	for text := range strings.Lines(said) {
		if !strings.HasPrefix(text, "{") {
			last = append(last, text)
		}
	}
	return strings.Join(last, "")
}

// A storage that cannot be used is said so, before a CA is asked for what could not be kept.
func TestStorageUnusable(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	e := start(t, ca, "acme=a.test;storage="+file(t, "file", ""))
	e.wantAlert(t, "a.test", notYet)
	if failure := e.failure(t); !strings.Contains(failure.Error, "not a directory") || !strings.Contains(failure.Hint, "storage=") {
		t.Errorf("log: %+v", failure)
	}
	if n := ca.Requests(); n != 0 {
		t.Errorf("%d requests to the CA, want none", n)
	}
}

// The default port of HTTP-01 may be somebody else's: TLS-ALPN-01 remains.
func TestPort80Taken(t *testing.T) {
	t.Parallel()
	// If that fails the port is taken, or not for us and so not for raimons: as well.
	if l, err := net.Listen("tcp", ":80"); err == nil {
		defer l.Close()
	}
	ca := acmetest.New(t, acmetest.Config{})
	e := start(t, ca, "acme=a.test;http=")
	ca.TLSALPN01.To(e.tunnels)
	e.shows(t, ca, "a.test")
	if all := e.lines(t, "port 80 is not ours: CAs have to come to the tunnel's own port, and nobody is redirected to https"); len(all) != 1 || !strings.Contains(all[0].Hint, "http=off") {
		t.Errorf("log: %+v", all)
	}
}

// An order that the CA holds up for long does not hold up anything else, nor the end.
func TestCAHangs(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	ca.Fail(acmetest.Hang(), acmetest.NewOrder)
	e := start(t, ca, "acme=a.test;timeout=1s;servername=self.test")
	eventually(t, func() error {
		if ca.Requests(acmetest.NewOrder) == 0 {
			return fmt.Errorf("no order yet")
		}
		return nil
	})
	if _, err := visit(e.tunnels, "self.test", nil); err != nil {
		t.Errorf("the other name: %v", err)
	}
	begun := time.Now()
	if _, err := visit(e.tunnels, "a.test", nil); err == nil {
		t.Error("there is a certificate")
	}
	if took := time.Since(begun); took > commandtest.Patience/2 {
		t.Errorf("a client waited for %v with timeout=1s", took)
	}
	begun = time.Now()
	e.end(t)
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the end took %v", took)
	}
}
