//go:build interop

package interop

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"raimon/internal/tunneltest"
)

// tolerated are the findings of testssl.sh that are about what is tested with, not about the edge.
var tolerated = map[string]string{
	"engine_problem":        "this openssl has no GOST",
	"cert_expirationStatus": "certificates of the test live for a day at most",
	"cert_notAfter":         "the same",
	"cert_revocation":       "the CAs of the test name no OCSP responder and no CRL",
	"HSTS":                  "a header that the site may set",
	"security_headers":      "the same",
}

// What the world's scanners say of an edge with certificates of both kinds.
func TestScanners(t *testing.T) {
	t.Parallel()
	g := newTarget(t)
	rsaCA, rsa := issueRSA(t, "rsa.test")
	ca := tunneltest.NewCA(t)
	raw := ca.Write(t, t.TempDir(), ca.Issue(t, "raw.test"))
	website := t.TempDir()
	replace(t, filepath.Join(website, "index.html"), []byte("<!doctype html><title>hello</title>"))
	e := newPublicEdge(t, "24h", fmt.Sprintf(`
[[site]]
names = ["web.test"]
root = %[1]q
[[site.route]]
path = "/tunnel"
target = %[2]q
[[site]]
names = ["rsa.test"]
cert = %[3]q
root = %[1]q
[[site]]
names = ["raw.test"]
cert = %[4]q
key = %[5]q
target = %[2]q
`, website, g.address, rsa, raw.Cert, raw.Key))
	e.awaitCertificates(t, "web.test")
	roots := map[string]string{"web.test": e.ca.IssuingRoot, "rsa.test": rsaCA}
	for name, root := range roots {
		t.Run("testssl "+name, func(t *testing.T) {
			t.Parallel()
			testssl(t, e.address, name, root)
		})
	}
	for _, name := range []string{"web.test", "rsa.test", "raw.test"} {
		t.Run("sslscan "+name, func(t *testing.T) {
			t.Parallel()
			sslscan(t, e.address, name)
		})
	}
}

// issueRSA makes a CA and a certificate with its key in one file, all of RSA.
func issueRSA(t testing.TB, name string) (ca, both string) {
	t.Helper()
	dir := t.TempDir()
	ca, both = filepath.Join(dir, "ca.pem"), filepath.Join(dir, "both.pem")
	for _, args := range [][]string{
		{"-x509", "-subj", "/CN=RSA test CA", "-keyout", filepath.Join(dir, "ca.key"), "-out", ca, "-days", "1"},
		{"-x509", "-subj", "/CN=" + name, "-addext", "subjectAltName=DNS:" + name, "-addext", "basicConstraints=critical,CA:FALSE",
			"-addext", "extendedKeyUsage=serverAuth", "-addext", "keyUsage=digitalSignature",
			"-CA", ca, "-CAkey", filepath.Join(dir, "ca.key"), "-keyout", both + ".key", "-out", both, "-days", "1"},
	} {
		cmd := exec.Command(program(t, "openssl"), append([]string{"req", "-newkey", "rsa:2048", "-nodes", "-sha256"}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", cmd.Args, err, out)
		}
	}
	var all []byte
	for _, file := range []string{both, both + ".key"} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, data...)
	}
	replace(t, both, all)
	return ca, both
}

// testssl wants testssl.sh to find nothing of severity MEDIUM or above, and nothing that it could not try.
func testssl(t *testing.T, address, name, root string) {
	file := filepath.Join(t.TempDir(), "findings.json")
	cmd := exec.CommandContext(t.Context(), program(t, "testssl"), "--ip", host(address), "--warnings", "off", "--color", "0",
		"--add-ca", root, "--jsonfile", file, name+":"+port(address))
	cmd.Env = append(os.Environ(), noProxy...)
	// Its status is the number of findings, or one above 240 when it could not do its work.
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() > 240 || cmd.ProcessState.ExitCode() < 0 {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var findings []struct{ ID, Severity, Finding string }
	if err := json.Unmarshal(data, &findings); err != nil {
		t.Fatal(err)
	}
	fine := map[string]bool{}
	for _, f := range findings {
		switch f.Severity {
		case "OK", "INFO", "LOW":
			fine[f.ID] = true
		default:
			if tolerated[f.ID] == "" {
				t.Errorf("%s %s: %s", f.Severity, f.ID, f.Finding)
			}
		}
	}
	for _, id := range []string{"TLS1", "TLS1_1", "TLS1_2", "TLS1_3", "cipher_negotiated", "cert_chain_of_trust", "cert_trust", "heartbleed", "CCS", "ticketbleed", "ROBOT",
		"secure_renego", "secure_client_renego", "CRIME_TLS", "POODLE_SSL", "fallback_SCSV", "SWEET32", "FREAK", "DROWN", "LOGJAM", "BEAST", "RC4"} {
		if !fine[id] {
			t.Errorf("nothing good is said of %s", id)
		}
	}
	if !fine["FS"] && !fine["PFS"] { // its name depends on the version of testssl.sh
		t.Error("no forward secrecy")
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

// scan is what sslscan writes.
type scan struct {
	Protocols []struct {
		Type    string `xml:"type,attr"`
		Version string `xml:"version,attr"`
		Enabled int    `xml:"enabled,attr"`
	} `xml:"ssltest>protocol"`
	Renegotiation struct {
		Supported int `xml:"supported,attr"`
	} `xml:"ssltest>renegotiation"`
	Heartbleed []struct {
		Version    string `xml:"sslversion,attr"`
		Vulnerable int    `xml:"vulnerable,attr"`
	} `xml:"ssltest>heartbleed"`
	Ciphers []struct {
		Version  string `xml:"sslversion,attr"`
		Bits     int    `xml:"bits,attr"`
		Cipher   string `xml:"cipher,attr"`
		Strength string `xml:"strength,attr"`
		Curve    string `xml:"curve,attr"`
	} `xml:"ssltest>cipher"`
}

// sslscan wants sslscan to find nothing but TLS 1.2 and 1.3 with forward secrecy, of 128 bits at least.
func sslscan(t *testing.T, address, name string) {
	file := filepath.Join(t.TempDir(), "scan.xml")
	cmd := exec.CommandContext(minute(t), program(t, "sslscan"), "--no-colour", "--xml="+file, "--sni-name="+name, address)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s scan
	if err := xml.Unmarshal(data, &s); err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	var enabled []string
	for _, p := range s.Protocols {
		if p.Enabled != 0 {
			enabled = append(enabled, p.Type+" "+p.Version)
		}
	}
	if want := []string{"tls 1.2", "tls 1.3"}; !slices.Equal(enabled, want) {
		t.Errorf("enabled are %q, want %q", enabled, want)
	}
	if s.Renegotiation.Supported != 0 {
		t.Error("clients may renegotiate")
	}
	for _, h := range s.Heartbleed {
		if h.Vulnerable != 0 {
			t.Errorf("heartbleed with %s", h.Version)
		}
	}
	if len(s.Heartbleed) == 0 || len(s.Ciphers) < 4 {
		t.Errorf("the scan is not whole: %+v", s)
	}
	for _, c := range s.Ciphers {
		if c.Bits < 128 || c.Curve == "" || c.Strength != "strong" && c.Strength != "acceptable" {
			t.Errorf("a weak cipher: %+v", c)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}
