//go:build interop

package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
)

// visitor is openssl s_client, which keeps and shows the tickets of a site.
type visitor struct {
	edge    *publicEdge
	name    string // of the site; empty: none is said
	request string // what makes the site answer and close
	version string // of TLS, as s_client's flag
	args    []string
}

// visitor asks a site that speaks HTTP for its page.
func (e *publicEdge) visitor(name, version string, args ...string) visitor {
	return visitor{e, name, "GET / HTTP/1.1\r\nHost: " + name + "\r\nConnection: close\r\n\r\n", version, args}
}

// visit returns what s_client says. The tickets of TLS 1.3 come after the handshake: it stays for the answer.
func (v visitor) visit(t testing.TB, args ...string) (string, error) {
	t.Helper()
	args = append(append([]string{"s_client", "-connect", v.edge.address, "-ign_eof", v.version}, args...), v.args...)
	if v.name == "" {
		args = append(args, "-noservername")
	} else {
		args = append(args, "-servername", v.name)
	}
	cmd := exec.CommandContext(minute(t), program(t, "openssl"), args...)
	cmd.Stdin = strings.NewReader(v.request)
	cmd.Env = append(os.Environ(), noProxy...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// ticket visits and returns the file with the session.
func (v visitor) ticket(t testing.TB) string {
	t.Helper()
	session := filepath.Join(t.TempDir(), "session")
	out, err := v.visit(t, "-sess_out", session)
	if err != nil || strings.Contains(out, "Reused, ") {
		t.Fatalf("%s %s: %v\n%s", v.name, v.version, err, lastOf(out))
	}
	if _, err := os.Stat(session); err != nil {
		t.Fatalf("%s %s gives no ticket: %v\n%s", v.name, v.version, err, lastOf(out))
	}
	return session
}

// offered finds a ticket in the first message of what s_client -trace prints: a pre-shared key (RFC 8446, section
// 4.2.11), or a ticket that is not empty (RFC 5077, section 3.2).
var offered = regexp.MustCompile(`(?s)ClientHello.*?(extension_type=psk\(41\)|extension_type=session_ticket\(35\), length=[1-9]).*?Received`)

// resumes shows a ticket and tells whether the site has taken it.
func (v visitor) resumes(t testing.TB, session string) (resumed bool, out string, err error) {
	t.Helper()
	out, err = v.visit(t, "-trace", "-sess_in", session)
	if !offered.MatchString(out) {
		t.Fatalf("%s %s: the ticket was not even shown: %v\n%s", v.name, v.version, err, lastOf(out))
	}
	return strings.Contains(out, "\nReused, "), out, err
}

// refused finds the alert for those without a client certificate, in TLS 1.3 and 1.2.
func refused(out string) bool {
	return strings.Contains(out, "alert certificate required") || strings.Contains(out, "alert handshake failure")
}

// lastOf is what s_client says after its handshake.
func lastOf(out string) string { return out[max(0, len(out)-2000):] }

// An edge that was killed is back at once, with the same certificate, and knows the tickets from before.
func TestKilledEdgeIsBack(t *testing.T) {
	g := newTarget(t)
	e := newPublicEdge(t, "1h", fmt.Sprintf("[[site]]\nnames = [\"a.test\"]\n[[site.route]]\npath = \"/tunnel\"\ntarget = %q\n", g.address))
	e.awaitCertificates(t, "a.test")
	before, err := e.shakeHands("a.test", e.ca.IssuingRoot)
	if err != nil {
		t.Fatal(err)
	}
	versions := []string{"-tls1_2", "-tls1_3"}
	tickets := make(map[string]string)
	for _, version := range versions {
		tickets[version] = e.visitor("a.test", version).ticket(t)
	}
	_, client := startRaimonc(t, e.address, "ws;host=a.test;path=/tunnel;tls;sni=a.test;ca="+e.ca.IssuingRoot)
	if err := tryEcho(t, client, megabyte); err != nil {
		t.Fatal(err)
	}

	for range 3 {
		e.kill(t)
		begin := time.Now()
		e.start(t)
		after, err := e.shakeHands("a.test", e.ca.IssuingRoot)
		took := time.Since(begin)
		if err != nil {
			t.Fatal(err)
		}
		if after.SerialNumber.Cmp(before.SerialNumber) != 0 {
			t.Errorf("another certificate than before: %v, want %v", after.SerialNumber, before.SerialNumber)
		}
		t.Logf("the first handshake was done %v after the start", took)
		if took > time.Second {
			t.Errorf("it took %v until the edge was back, want 1s at most", took)
		}
		for _, version := range versions {
			if resumed, out, err := e.visitor("a.test", version).resumes(t, tickets[version]); !resumed || err != nil {
				t.Errorf("%s: the ticket from before is not taken: %v\n%s", version, err, lastOf(out))
			}
		}
		if err := tryEcho(t, client, megabyte); err != nil {
			t.Error(err)
		}
		if complaints := e.complaints(t); len(complaints) > 0 {
			t.Errorf("the edge complains:\n%s", strings.Join(complaints, ""))
		}
	}
}

// The ticket of one site is worth nothing at another, whatever kinds of sites they are.
func TestTicketsOfOtherSites(t *testing.T) {
	t.Parallel()
	g := newTarget(t)
	ca := tunneltest.NewCA(t)
	named := ca.Write(t, t.TempDir(), ca.Issue(t, "files.test", "raw.test"))
	unnamed := ca.Write(t, t.TempDir(), ca.Issue(t, "other.test"))
	user := ca.Write(t, t.TempDir(), ca.Issue(t, "user"))
	e := newPublicEdge(t, "1h", fmt.Sprintf(`
[[site]]
names = ["a.test"]
[[site]]
names = ["b.test"]
[[site]]
names = ["files.test"]
cert = %[1]q
key = %[2]q
[[site]]
names = ["raw.test"]
cert = %[1]q
key = %[2]q
target = %[3]q
[[site]]
names = ["self.test"]
certificate = "self-signed"
[[site]]
names = ["asks.test"]
client-ca = %[4]q
[[site]]
names = ["private.test"]
client-ca = %[4]q
client-required = true
[[site]]
cert = %[5]q
key = %[6]q
`, named.Cert, named.Key, g.address, user.CA, unnamed.Cert, unnamed.Key))
	e.awaitCertificates(t, "a.test", "b.test", "asks.test")
	login := []string{"-cert", user.Cert, "-key", user.Key}
	eventually(t, patience, "a certificate for private.test", func() bool {
		_, err := e.visitor("private.test", "-tls1_3", login...).visit(t, "-CAfile", e.ca.IssuingRoot, "-verify_return_error")
		return err == nil
	})

	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		t.Run(version[1:], func(t *testing.T) {
			var sites []visitor
			for _, name := range []string{"a.test", "b.test", "files.test", "raw.test", "self.test", "asks.test", "private.test", ""} {
				v := e.visitor(name, version)
				if name == "raw.test" {
					v.request = "close 10\n"
				}
				sites = append(sites, v)
			}
			for _, of := range sites {
				owner := of
				if of.name == "private.test" {
					owner.args = login
				}
				session := owner.ticket(t)
				if resumed, out, err := owner.resumes(t, session); !resumed || err != nil {
					t.Errorf("the ticket of %q is not even good there: %v\n%s", of.name, err, lastOf(out))
				}
				for _, at := range sites {
					if of.name == at.name {
						continue
					}
					resumed, out, err := at.resumes(t, session)
					switch {
					case resumed:
						t.Errorf("the ticket of %q is taken by %q", of.name, at.name)
					case at.name == "private.test" && !refused(out):
						t.Errorf("the ticket of %q lets somebody without a certificate into private.test: %v\n%s", of.name, err, lastOf(out))
					case at.name != "private.test" && (err != nil || !strings.Contains(out, "\nNew, ")):
						t.Errorf("the ticket of %q spoils the handshake with %q: %v\n%s", of.name, at.name, err, lastOf(out))
					}
				}
			}
		})
	}
}

// A ticket from the time before client certificates were asked for is no way around them.
func TestTicketsOfOtherPolicies(t *testing.T) {
	t.Parallel()
	ca := tunneltest.NewCA(t)
	user := ca.Write(t, t.TempDir(), ca.Issue(t, "user"))
	const open = "[[site]]\nnames = [\"a.test\"]\n"
	e := newPublicEdge(t, "1h", open)
	friends := filepath.Join(filepath.Dir(e.config), "friends.pem") // not elsewhere: a running edge reads no folders that are new
	data, err := os.ReadFile(user.CA)
	if err != nil {
		t.Fatal(err)
	}
	replace(t, friends, data)
	closed := fmt.Sprintf("%sclient-ca = %q\nclient-required = true\n", open, friends)
	e.awaitCertificates(t, "a.test")
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		stranger := e.visitor("a.test", version)
		friend := e.visitor("a.test", version, "-cert", user.Cert, "-key", user.Key)
		fromBefore := stranger.ticket(t)
		e.write(t, "", closed)
		if !e.hangup(t) {
			t.Fatal("the config was refused")
		}
		if resumed, out, err := stranger.resumes(t, fromBefore); resumed || strings.Contains(out, "HTTP/1.1 ") {
			t.Errorf("%s: a ticket from before the site asked for certificates is taken: %v\n%s", version, err, lastOf(out))
		}
		fromFriend := friend.ticket(t)
		if resumed, out, err := friend.resumes(t, fromFriend); !resumed || err != nil {
			t.Errorf("%s: the ticket of somebody with a certificate is not taken: %v\n%s", version, err, lastOf(out))
		}
		e.write(t, "", open)
		if !e.hangup(t) {
			t.Fatal("the config was refused")
		}
		if resumed, out, err := stranger.resumes(t, fromFriend); resumed || err != nil {
			t.Errorf("%s: a ticket of the site with certificates is taken by the one without: %v\n%s", version, err, lastOf(out))
		}
	}
}
