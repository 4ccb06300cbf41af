//go:build interop

package interop

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"raimon/acme/dns"
)

// dnsFolder holds what a name server needs: files by name, and the key "raimon" in raimon.key.
func dnsFolder(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	key, err := exec.Command(program(t, "tsig-keygen"), "raimon").Output()
	if err != nil {
		t.Fatal(err)
	}
	files["raimon.key"] = string(key)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// zoneFile is a zone whose name servers are ns1 and ns2 at these addresses.
func zoneFile(ns1, ns2, records string) string {
	return "$TTL 60\n@ SOA ns1 admin 1 3600 3600 3600 60\n@ NS ns1\n@ NS ns2\nns1 A " + host(ns1) + "\nns2 A " + host(ns2) + "\n" + records
}

// startBIND starts named with these zone clauses and waits until it answers.
func startBIND(t testing.TB, dir, address, zones string) {
	t.Helper()
	config := fmt.Sprintf(`include "%[1]s/raimon.key";
controls { };
options {
	directory "%[1]s"; pid-file none; session-keyfile none;
	listen-on port %[3]s { %[2]s; }; listen-on-v6 { none; };
	recursion no; dnssec-validation no;
	allow-transfer { any; }; notify explicit; notify-source %[2]s; notify-delay 2; min-refresh-time 1;
};
%[4]s`, dir, host(address), port(address), zones)
	path := filepath.Join(dir, "named.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, "named", nil, "-g", "-n", "1", "-c", path)
	p.await(t, "running\n")
	p.awaitPort(t, address)
}

// bindPort is an address for named, which listens on addresses of interfaces only.
func bindPort() string { return "127.0.0.1:" + port(freePort()) }

// startKnot starts knotd with the rest of its configuration, and waits until it listens.
func startKnot(t testing.TB, dir, address, rest string) {
	t.Helper()
	config := fmt.Sprintf(`server:
  rundir: %[1]s
  listen: %[2]s@%[3]s
log:
  - target: stderr
    any: info
database:
  storage: %[1]s
`, dir, host(address), port(address))
	path := filepath.Join(dir, "knot.conf")
	if err := os.WriteFile(path, []byte(config+rest), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, "knotd", nil, "-c", path).awaitPort(t, address)
}

// openDNS opens a solver for a spec.
func openDNS(t testing.TB, spec string) acmez.Solver {
	t.Helper()
	s, err := dns.Open(spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func dnsChallenge(domain, token string) acme.Challenge {
	return acme.Challenge{
		Type: acme.ChallengeTypeDNS01, Token: token, KeyAuthorization: token + ".thumbprint",
		Identifier: acme.Identifier{Type: "dns", Value: domain},
	}
}

// digTXT returns the TXT values at name in order, as dig sees them.
func digTXT(t testing.TB, address, name string) []string {
	t.Helper()
	out, err := exec.CommandContext(minute(t), program(t, "dig"), "@"+host(address), "-p", port(address), "+norecurse", "+short", name, "TXT").Output()
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	for line := range strings.Lines(string(out)) {
		if value, ok := strings.CutPrefix(line, `"`); ok { // the others are targets of a CNAME
			values = append(values, strings.TrimSuffix(value, "\"\n"))
		}
	}
	slices.Sort(values)
	return values
}

// solveBoth puts up the challenges of a domain and its wildcard, and takes them down one by one.
// Each of servers has to answer what the record at name then is.
func solveBoth(t testing.TB, s acmez.Solver, domain, name string, servers ...string) {
	t.Helper()
	one, two := dnsChallenge(domain, "one"), dnsChallenge(domain, "two")
	for _, c := range []acme.Challenge{one, two} {
		if err := s.Present(t.Context(), c); err != nil {
			t.Fatalf("present: %v", err)
		}
	}
	for _, c := range []acme.Challenge{one, two} {
		if err := s.(acmez.Waiter).Wait(t.Context(), c); err != nil {
			t.Fatalf("wait: %v", err)
		}
	}
	both := []string{one.DNS01KeyAuthorization(), two.DNS01KeyAuthorization()}
	slices.Sort(both)
	for _, server := range servers {
		if got := digTXT(t, server, name); !slices.Equal(got, both) {
			t.Errorf("%s: %s holds %q, want %q", server, name, got, both)
		}
	}
	if err := s.CleanUp(t.Context(), one); err != nil {
		t.Error(err)
	}
	if got := digTXT(t, servers[0], name); !slices.Equal(got, []string{two.DNS01KeyAuthorization()}) {
		t.Errorf("%s holds %q after one was taken down", name, got)
	}
	if err := s.CleanUp(t.Context(), two); err != nil {
		t.Error(err)
	}
	if got := digTXT(t, servers[0], name); len(got) > 0 {
		t.Errorf("%s holds %q after both were taken down", name, got)
	}
}

func TestDNSUpdateOfBIND(t *testing.T) {
	t.Parallel()
	primary, nobody := bindPort(), freePort()
	dir := dnsFolder(t, map[string]string{
		"example.com":      zoneFile(primary, nobody, "_acme-challenge.alias CNAME alias.acme.example.net.\n*.web CNAME www.example.org.\n"),
		"acme.example.net": zoneFile(primary, nobody, ""),
	})
	startBIND(t, dir, primary, `
zone "example.com" { type primary; file "example.com"; update-policy {
	grant raimon. name _acme-challenge.example.com. TXT; grant raimon. name _acme-challenge.shop.web.example.com. TXT; }; };
zone "acme.example.net" { type primary; file "acme.example.net"; update-policy { grant raimon. zonesub TXT; }; };`)
	s := openDNS(t, "rfc2136://"+primary+"/?key-file="+dir+"/raimon.key")

	solveBoth(t, s, "example.com", "_acme-challenge.example.com", primary)
	solveBoth(t, s, "shop.web.example.com", "_acme-challenge.shop.web.example.com", primary)
	solveBoth(t, s, "alias.example.com", "alias.acme.example.net", primary)

	for _, test := range []struct{ spec, domain, problem, hint string }{
		{"rfc2136://" + primary + "/?key-file=" + dir + "/raimon.key", "www.example.com", "REFUSED", "update-policy"},
		{"rfc2136://" + primary, "example.com", "REFUSED", "update-policy"},
		{"rfc2136://" + primary + "/?key-file=" + dir + "/raimon.key", "example.edu", "no zone", "primary"},
		{"rfc2136://" + primary + "/example.edu?key-file=" + dir + "/raimon.key", "example.edu", "NOTAUTH", "primary"},
		{"rfc2136://nobody:AAAA@" + primary, "example.com", "BADKEY", "name and algorithm"},
		{"rfc2136://raimon:AAAA@" + primary, "example.com", "BADSIG", "secret"},
	} {
		err := openDNS(t, test.spec).Present(t.Context(), dnsChallenge(test.domain, "one"))
		var hint interface{ Hint() string }
		if !errors.As(err, &hint) || !strings.Contains(err.Error(), test.problem) || !strings.Contains(hint.Hint(), test.hint) {
			t.Errorf("%s at %s: %v, hint %v; want %q, %q", test.domain, test.spec, err, hint, test.problem, test.hint)
		}
	}
}

// The secondary hears of the update seconds later; Wait knows.
func TestDNSWaitForSecondary(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("the secondary needs port 53, and so root")
	}
	primary, secondary := bindPort(), host(freePort())+":53"
	dir := dnsFolder(t, map[string]string{"example.com": zoneFile(primary, secondary, "")})
	startBIND(t, dir, primary, fmt.Sprintf(`
zone "example.com" { type primary; file "example.com"; also-notify { %s port 53; }; update-policy { grant raimon. zonesub TXT; }; };`, host(secondary)))
	other := t.TempDir()
	startKnot(t, other, secondary, fmt.Sprintf(`remote:
  - id: bind
    address: %[2]s@%[3]s
acl:
  - id: bind
    address: %[2]s
    action: notify
zone:
  - domain: example.com
    storage: %[1]s
    master: bind
    acl: bind
`, other, host(primary), port(primary)))
	awaitZone(t, secondary)
	s := openDNS(t, "rfc2136://"+primary+"/?key-file="+dir+"/raimon.key")
	solveBoth(t, s, "example.com", "_acme-challenge.example.com", primary, secondary)
}

// awaitZone waits until the server answers for example.com.
func awaitZone(t testing.TB, address string) {
	t.Helper()
	eventually(t, patience, address+" has the zone", func() bool {
		out, err := exec.CommandContext(minute(t), program(t, "dig"), "@"+host(address), "-p", port(address), "+short", "example.com", "SOA").Output()
		return err == nil && len(out) > 0
	})
}

func TestDNSUpdateOfKnot(t *testing.T) {
	t.Parallel()
	address := freePort()
	dir := dnsFolder(t, map[string]string{"example.com": zoneFile(address, freePort(), "")})
	key, err := os.ReadFile(filepath.Join(dir, "raimon.key"))
	if err != nil {
		t.Fatal(err)
	}
	startKnot(t, dir, address, fmt.Sprintf(`key:
  - id: raimon
    algorithm: hmac-sha256
    secret: %[2]s
acl:
  - id: challenges
    key: raimon
    action: update
    update-type: TXT
zone:
  - domain: example.com
    storage: %[1]s
    acl: challenges
    file: example.com
`, dir, strings.Split(string(key), `"`)[3]))
	awaitZone(t, address)
	s := openDNS(t, "rfc2136://"+address+"/?key-file="+dir+"/raimon.key")
	solveBoth(t, s, "example.com", "_acme-challenge.example.com", address)
}
