package edge_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"raimon/internal/acmetest"
	"raimon/internal/commandtest"
	"raimon/internal/tunneltest"
)

// wantWildcard wants certificates for *.example.test and example.test, obtained over DNS alone.
func (e *raimons) wantWildcard(t testing.TB, ca *acmetest.CA) {
	t.Helper()
	for _, name := range []string{"example.test", "www.example.test"} {
		e.shows(t, ca, name)
	}
	e.wantAlert(t, "deep.www.example.test", unknownName)
	if n := len(ca.Issued()); n != 2 {
		t.Errorf("%d certificates were issued, want 2", n)
	}
	if tls, http := ca.TLSALPN01.Count(), ca.HTTP01.Count(); tls != 0 || http != 0 {
		t.Errorf("the CA came for TLS-ALPN-01 %d times, for HTTP-01 %d times", tls, http)
	}
}

func TestDNSExec(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip(err)
	}
	ca := acmetest.New(t, acmetest.Config{})
	calls := filepath.Join(t.TempDir(), "calls")
	hook := file(t, "dns hook.sh", `#!/bin/sh
set -eu
echo "$*" >> `+calls+`
test "$1" = zone.example && test "$#" = 4
case $2 in
present) curl -fsS -d "{\"host\": \"$3\", \"value\": \"$4\"}" "`+ca.Management+`/set-txt" ;;
cleanup) curl -fsS -d "{\"host\": \"$3\"}" "`+ca.Management+`/clear-txt" ;;
esac
`)
	// One after the other: clear-txt takes away all values of a name.
	e := start(t, ca, `acme=*.example.test;dns=exec:"`+hook+`" zone.example`)
	e.shows(t, ca, "www.example.test")
	eventually(t, func() error {
		log, err := os.ReadFile(calls)
		if err != nil {
			return err
		}
		made := strings.Split(strings.TrimSpace(string(log)), "\n")
		if len(made) != 2 || !strings.HasPrefix(made[0], "zone.example present _acme-challenge.example.test. ") ||
			made[1] != strings.Replace(made[0], "present", "cleanup", 1) {
			return fmt.Errorf("calls %q", made)
		}
		return nil
	})
	if left := ca.DNS.TXT("_acme-challenge.example.test"); len(left) > 0 {
		t.Errorf("left in the DNS: %q", left)
	}
	e.wantQuiet(t)
}

// Pebble's own DNS server for tests, challtestsrv, is told by the hook and asked by the CA.
func TestDNSExecChalltestsrv(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip(err)
	}
	server := filepath.Join(t.TempDir(), "challtestsrv")
	if out, err := exec.Command("go", "build", "-o", server, "github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	dns, management := "127.0.0.1:"+tunneltest.FreePort(), "127.0.0.1:"+tunneltest.FreePort()
	cmd := exec.Command(server, "-dnsserver", dns, "-management", management, "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-defaultIPv6", "")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for _, address := range []string{dns, management} {
		eventually(t, func() error {
			c, err := net.Dial("tcp", address)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
	hook := file(t, "hook.sh", `#!/bin/sh
set -eu
case $1 in
present) curl -fsS -d "{\"host\": \"$2\", \"value\": \"$3\"}" http://`+management+`/set-txt ;;
cleanup) curl -fsS -d "{\"host\": \"$2\"}" http://`+management+`/clear-txt ;;
esac
`)
	ca := acmetest.New(t, acmetest.Config{Resolver: dns})
	e := start(t, ca, "acme=*.example.test;dns=exec:"+hook)
	e.shows(t, ca, "www.example.test")
	e.wantQuiet(t)
}

// What the hook says is in the log, so that one finds out why there is no certificate.
func TestDNSExecFails(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	hook := file(t, "hook.sh", "#!/bin/sh\necho the registrar is on holiday >&2\nexit 3\n")
	e := start(t, ca, "acme=a.test;dns=exec:"+hook)
	e.wantAlert(t, "a.test", notYet)
	if failure := e.failure(t); !strings.Contains(failure.Error, "the registrar is on holiday") || strings.Contains(failure.Error, "/my-order/") {
		t.Errorf("log: %+v", failure)
	}
	if n := len(ca.Issued()); n != 0 {
		t.Errorf("%d certificates were issued", n)
	}
}

// BIND takes updates of TXT records with a key, and the CA asks it.
func TestDNSUpdate(t *testing.T) {
	t.Parallel()
	address, keyFile := startBIND(t)
	ca := acmetest.New(t, acmetest.Config{Resolver: address})
	for _, spec := range []string{"rfc2136://" + address + "?wait=0&key-file=" + keyFile, "rfc2136://" + address + "/example.test?wait=0&key-file=" + keyFile} {
		issued := len(ca.Issued())
		e := start(t, ca, "acme=*.example.test,example.test;dns="+spec)
		for _, name := range []string{"example.test", "www.example.test"} {
			e.shows(t, ca, name)
		}
		if n := len(ca.Issued()) - issued; n != 2 {
			t.Errorf("%s: %d certificates were issued, want 2", spec, n)
		}
		eventually(t, func() error {
			question := new(dns.Msg).SetQuestion("_acme-challenge.example.test.", dns.TypeTXT)
			answer, err := dns.ExchangeContext(t.Context(), question, address)
			if err == nil && len(answer.Answer) > 0 {
				err = fmt.Errorf("left in the DNS: %v", answer.Answer)
			}
			return err
		})
		e.wantQuiet(t)
	}
}

// An update that BIND refuses is explained, and the key is not told.
func TestDNSUpdateRefused(t *testing.T) {
	t.Parallel()
	address, keyFile := startBIND(t)
	ca := acmetest.New(t, acmetest.Config{Resolver: address})
	const secret = "bm90IHRoZSByaWdodCBvbmUgYXQgYWxsIQ=="
	for _, test := range []struct{ name, spec, want string }{
		{"wrong secret", "rfc2136://raimon:" + secret + "@" + address, "another secret"},
		{"unknown key", "rfc2136://other:" + secret + "@" + address, "key"},
		{"no such zone", "rfc2136://" + address + "/example.org?key-file=" + keyFile, "zone"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := start(t, ca, "acme=example.test;dns="+test.spec)
			e.wantAlert(t, "example.test", notYet)
			if failure := e.failure(t); !strings.Contains(failure.Error+failure.Hint, test.want) || strings.Contains(failure.Error, "/my-order/") {
				t.Errorf("log: %+v", failure)
			}
			if strings.Contains(e.Log.String(), secret[:10]) {
				t.Error("the key is in the log")
			}
		})
	}
}

// startBIND runs a name server for example.test until the test ends. Its key may change TXT records.
func startBIND(t testing.TB) (address, keyFile string) {
	t.Helper()
	named, err := exec.LookPath("named")
	if err != nil {
		t.Skip("BIND is not installed (apt-get install bind9): ", err)
	}
	dir, port := t.TempDir(), tunneltest.FreePort()
	keyFile = filepath.Join(dir, "raimon.key")
	for name, content := range map[string]string{
		"raimon.key": `key "raimon" { algorithm hmac-sha256; secret "` + "dGhpcyBpcyBhIHNlY3JldCBvZiAzMiBieXRlcyEhISE=" + `"; };`,
		"zone": `$TTL 60
@ SOA ns hostmaster 1 60 60 60 60
@ NS ns
@ A 127.0.0.1
ns A 127.0.0.1
`,
		"named.conf": `include "` + keyFile + `";
options {
	directory "` + dir + `"; pid-file none; session-keyfile none; managed-keys-directory "` + dir + `"; lock-file none;
	listen-on port ` + port + ` { 127.0.0.1; }; listen-on-v6 { none; };
	recursion no; dnssec-validation no; notify no;
};
controls {};
zone "example.test" { type primary; file "zone"; update-policy { grant raimon zonesub TXT; }; };
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(named, "-g", "-n", "1", "-c", filepath.Join(dir, "named.conf"))
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("log of BIND:\n%s", log.String())
		}
	})
	address = net.JoinHostPort("127.0.0.1", port)
	eventually(t, func() error {
		_, err := dns.ExchangeContext(t.Context(), new(dns.Msg).SetQuestion("example.test.", dns.TypeSOA), address)
		return err
	})
	return address, keyFile
}

// acmeDNS answers as acme-dns does, and puts what it is told into the DNS of the CA. The subdomain of the nth
// account is sub<n>.
type acmeDNS struct {
	*httptest.Server

	mu       sync.Mutex
	accounts int
	values   map[string][]string // by subdomain, the two newest
}

const acmeDNSZone = ".auth.example.org"

func startAcmeDNS(t testing.TB, ca *acmetest.CA) *acmeDNS {
	t.Helper()
	s := &acmeDNS{values: map[string][]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /register", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.accounts++
		name := fmt.Sprint("sub", s.accounts)
		w.WriteHeader(http.StatusCreated)
		json.NewEncoder(w).Encode(map[string]any{"username": "user-" + name, "password": "password-" + name,
			"fulldomain": name + acmeDNSZone, "subdomain": name, "allowfrom": []string{}})
	})
	mux.HandleFunc("POST /update", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		var update struct{ Subdomain, TXT string }
		if err := json.NewDecoder(r.Body).Decode(&update); err != nil || len(update.TXT) != 43 {
			http.Error(w, `{"error": "bad_txt"}`, http.StatusBadRequest)
			return
		}
		name := update.Subdomain
		if r.Header.Get("X-Api-User") != "user-"+name || r.Header.Get("X-Api-Key") != "password-"+name {
			http.Error(w, `{"error": "forbidden"}`, http.StatusUnauthorized)
			return
		}
		values := append(s.values[name], update.TXT)
		s.values[name] = values[max(0, len(values)-2):]
		ca.DNS.ClearTXT(name + acmeDNSZone)
		for _, value := range s.values[name] {
			ca.DNS.SetTXT(name+acmeDNSZone, value)
		}
		json.NewEncoder(w).Encode(map[string]string{"txt": update.TXT})
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// The first attempt registers and says which CNAME is missing; once that is there, the next start does it.
func TestDNSAcmeDNS(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	server := startAcmeDNS(t, ca)
	accounts := filepath.Join(t.TempDir(), "accounts.json")
	options := "acme=*.example.test;dns=acme-dns+" + server.URL + "/?wait=0&file=" + accounts
	e := start(t, ca, options)
	e.Log.Wait(t, `_acme-challenge\.example\.test\. CNAME sub1\.auth\.example\.org\.`)
	if strings.Contains(e.Log.String(), "password-") {
		t.Error("a password is in the log")
	}
	e.end(t)
	ca.DNS.SetAlias("_acme-challenge.example.test", "sub1"+acmeDNSZone)
	e = start(t, ca, options)
	e.shows(t, ca, "www.example.test")
	e.wantQuiet(t)
	info, err := os.Stat(accounts)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("accounts file: %v, %v", info, err)
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	if server.accounts != 1 {
		t.Errorf("%d accounts, want 1", server.accounts)
	}
}

// The CA does not find the record.
func TestDNSRecordMissing(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	e := start(t, ca, "acme=example.test;dns=exec:"+file(t, "hook.sh", "#!/bin/sh\n"))
	e.wantAlert(t, "example.test", notYet)
	if failure := e.failure(t); !strings.Contains(failure.Error, "No TXT records found") || !strings.Contains(failure.Hint, "_acme-challenge.example.test") {
		t.Errorf("log: %+v", failure)
	}
}

// One hook serves name and wildcard at once, whose challenges have the same name in the DNS.
func TestDNSWildcardAndName(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	server := startAcmeDNS(t, ca)
	ca.DNS.SetAlias("_acme-challenge.example.test", "sub0"+acmeDNSZone)
	accounts := file(t, "accounts.json", `{"example.test": {"username": "user-sub0", "password": "password-sub0", "fulldomain": "sub0`+acmeDNSZone+`", "subdomain": "sub0"}}`)
	e := start(t, ca, "acme=*.example.test,example.test;dns=acme-dns+"+server.URL+"/?wait=0&file="+accounts)
	e.wantWildcard(t, ca)
	e.wantQuiet(t)
}

// While the hook works, which may take minutes, the edge ends as fast as ever, and takes the record down.
func TestDNSEndWhileWaiting(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	dir := t.TempDir()
	hook := file(t, "hook.sh", `#!/bin/sh
case $1 in
present) touch `+dir+`/present; sleep 60 ;;
cleanup) touch `+dir+`/cleanup ;;
esac
`)
	e := start(t, ca, "acme=a.test;dns=exec:"+hook)
	eventually(t, func() error { _, err := os.Stat(filepath.Join(dir, "present")); return err })
	ctx, cancel := context.WithTimeout(t.Context(), commandtest.Patience/2)
	defer cancel()
	ended := make(chan struct{})
	go func() { e.end(t); close(ended) }()
	select {
	case <-ended:
	case <-ctx.Done():
		t.Errorf("still running after %v", commandtest.Patience/2)
		<-ended
	}
	if _, err := os.Stat(filepath.Join(dir, "cleanup")); err != nil {
		t.Error(err)
	}
}
