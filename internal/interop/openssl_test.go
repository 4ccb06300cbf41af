//go:build interop

package interop

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"raimon/internal/tunneltest"
)

// sClient runs openssl s_client until the handshake has been, with what it prints.
func sClient(t testing.TB, address string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(minute(t), program(t, "openssl"), append([]string{"s_client", "-connect", address, "-servername", "localhost"}, args...)...)
	cmd.Stdin = strings.NewReader("close 10\n")
	cmd.Env = append(os.Environ(), noProxy...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// staple makes a good OCSP response for cert.
func staple(t testing.TB, ca *tunneltest.CA, cert *x509.Certificate) []byte {
	t.Helper()
	now := time.Now()
	der, err := ocsp.CreateResponse(ca.Cert, ca.Cert, ocsp.Response{
		Status: ocsp.Good, SerialNumber: cert.SerialNumber, IssuerHash: crypto.SHA1,
		ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour),
	}, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// replace writes a file as careful programs do: next to it, and then over it.
func replace(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// writeStapled puts a certificate, its key and its OCSP response into dir.
func writeStapled(t testing.TB, ca *tunneltest.CA, dir string, cert tls.Certificate) (tunneltest.Files, string) {
	t.Helper()
	fresh := ca.Write(t, t.TempDir(), cert)
	f := tunneltest.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	response := filepath.Join(dir, "ocsp.der")
	for to, from := range map[string]string{f.CA: fresh.CA, f.Cert: fresh.Cert, f.Key: fresh.Key} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		replace(t, to, data)
	}
	replace(t, response, staple(t, ca, cert.Leaf))
	return f, response
}

func TestOpenSSL(t *testing.T) {
	g := newTarget(t)
	ca := tunneltest.NewCA(t)
	dir := t.TempDir()
	f, response := writeStapled(t, ca, dir, ca.Issue(t, "localhost"))
	_, edge := startRaimons(t, g.address, "tls;cert="+f.Cert+";key="+f.Key+";ocsp="+response)

	t.Run("staple", func(t *testing.T) {
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			out, err := sClient(t, edge, "-status", "-CAfile", f.CA, "-verify_return_error", version)
			if err != nil || !strings.Contains(out, "OCSP Response Status: successful") || !strings.Contains(out, "Cert Status: good") {
				t.Errorf("%s: no good staple: %v\n%s", version, err, out)
			}
		}
	})
	t.Run("versions", func(t *testing.T) {
		for version, want := range map[string]bool{"-tls1": false, "-tls1_1": false, "-tls1_2": true, "-tls1_3": true} {
			// Security level 0 lets openssl itself offer the old ones.
			out, err := sClient(t, edge, version, "-cipher", "ALL:@SECLEVEL=0", "-CAfile", f.CA)
			if (err == nil) != want {
				t.Errorf("%s: %v, want taken: %v", version, err, want)
			}
			if !want && !strings.Contains(out, "alert protocol version") {
				t.Errorf("%s: refused, but not with the alert that says why:\n%s", version, out)
			}
		}
	})
	t.Run("resumption", func(t *testing.T) {
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			session := filepath.Join(t.TempDir(), "session")
			// The tickets of TLS 1.3 come after the handshake: s_client waits for the target's end.
			if out, err := sClient(t, edge, version, "-sess_out", session, "-CAfile", f.CA, "-ign_eof"); err != nil || strings.Contains(out, "Reused, ") {
				t.Fatalf("%s: %v\n%s", version, err, out)
			}
			out, err := sClient(t, edge, version, "-sess_in", session, "-CAfile", f.CA)
			if err != nil || !strings.Contains(out, "Reused, ") {
				t.Errorf("%s: not resumed: %v\n%s", version, err, out)
			}
		}
	})
	t.Run("no early data", func(t *testing.T) {
		session := filepath.Join(t.TempDir(), "session")
		out, err := sClient(t, edge, "-tls1_3", "-sess_out", session, "-CAfile", f.CA, "-ign_eof")
		if err != nil || strings.Contains(out, "Max Early Data: ") && !strings.Contains(out, "Max Early Data: 0") {
			t.Errorf("tickets offer early data: %v\n%s", err, out)
		}
	})
	t.Run("renewed", func(t *testing.T) {
		serial := regexp.MustCompile(`(?s)BEGIN CERTIFICATE.*?END CERTIFICATE`)
		before, err := sClient(t, edge, "-CAfile", f.CA)
		if err != nil {
			t.Fatal(err)
		}
		writeStapled(t, ca, dir, ca.Issue(t, "localhost"))
		var out string
		eventually(t, patience, "the renewed certificate is served", func() bool {
			out, err = sClient(t, edge, "-status", "-CAfile", f.CA, "-verify_return_error")
			return err == nil && serial.FindString(out) != serial.FindString(before)
		})
		if !strings.Contains(out, "Cert Status: good") {
			t.Errorf("without its staple:\n%s", out)
		}
	})
}
