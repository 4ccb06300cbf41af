package dns

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libdns/libdns"
	"github.com/mholt/acmez/v3/acme"
)

// secret is base64 and has everything in it that URLs stumble over.
const secret = "c2VjcmV0/+8bHf7Q9vB1c2VjcmV0c2VjcmV0c2VjcmU="

func challenge(name, token string) acme.Challenge {
	return acme.Challenge{
		Type:             acme.ChallengeTypeDNS01,
		Identifier:       acme.Identifier{Type: "dns", Value: name},
		Token:            token,
		KeyAuthorization: token + ".thumbprint",
	}
}

// specs are what a user may write; problem is empty for those that work. FOLDER stands for the folder of specFiles.
var specs = []struct{ spec, problem, hint string }{
	{"exec:FOLDER/program", "", ""},
	{`exec:"FOLDER/program" one "two three" ""`, "", ""},
	{"exec:", "no program is named", "exec:/path/to/program"},
	{"exec:FOLDER/missing", "exec: ", "chmod +x"},
	{"exec:FOLDER/key", "exec: ", "chmod +x"},
	{`exec:"FOLDER/program`, "a quote is not closed", "double quotes"},
	{"exec:\x00", "no program is named", "exec:/path/to/program"},

	{"rfc2136://ns.example.com", "", ""},
	{"rfc2136://ns.example.com:5353/example.com?key-file=FOLDER/key&ttl=120&wait=30s", "", ""},
	{"rfc2136://192.0.2.1/example.com.?key-file=FOLDER/key&wait=0", "", ""},
	{"rfc2136://[2001:db8::1]:53/?key-file=FOLDER/key", "", ""},
	{"rfc2136://2001:db8::1", "", ""},
	{"rfc2136://raimon:" + secret + "@ns.example.com/", "", ""},
	{"rfc2136://raimon.:" + strings.ReplaceAll(secret, "/", "%2F") + "@ns.example.com/?algorithm=HMAC-SHA512", "", ""},
	{"rfc2136:ns.example.com", "no //", "rfc2136://server"},
	{"rfc2136://", "the server is not", "rfc2136://server"},
	{"rfc2136://ns.example.com:0/", "the server is not", "rfc2136://server"},
	{"rfc2136://ns.example.com:domain/", "the server is not", "rfc2136://server"},
	{"rfc2136://ns_.exa mple.com/", "the server is not", "rfc2136://server"},
	{"rfc2136://ns.example.com/example..com", "the zone is not", "zone"},
	{"rfc2136://ns.example.com/example.com/more", "the zone is not", "zone"},
	{"rfc2136://ns.example.com/?ttl=1h", "ttl is not", "ttl=60"},
	{"rfc2136://ns.example.com/?ttl=901", "ttl is not", "ttl=60"},
	{"rfc2136://ns.example.com/?wait=-1s", "wait is not", "wait=30s"},
	{"rfc2136://ns.example.com/?wait=1000h", "wait is not", "wait=30s"},
	{"rfc2136://ns.example.com/?keyfile=FOLDER/key", "an unknown setting", "key-file="},
	{"rfc2136://ns.example.com/?ttl=1&ttl=1", "ttl is given twice", "key-file="},
	{"rfc2136://ns.example.com/?ttl=%zz", "ttl is empty or badly escaped", "%25"},
	{"rfc2136://ns.example.com/?key-file=", "key-file is empty", "key-file=value"},
	{"rfc2136://ns.example.com/?key-file=FOLDER/missing", "key-file: ", "tsig-keygen"},
	{"rfc2136://ns.example.com/?key-file=FOLDER", "not a file of at most", "tsig-keygen"},
	{"rfc2136://ns.example.com/?key-file=FOLDER/accounts.json", "does not begin with a key clause", "the file holds"},
	{"rfc2136://ns.example.com/?algorithm=hmac-sha256", "algorithm without a key", "leave algorithm out"},
	{"rfc2136://raimon:" + secret + "@ns.example.com/?key-file=FOLDER/key", "key-file is given too", "command line"},
	{"rfc2136://" + secret + "@ns.example.com/", "not keyname:secret", "tsig-keygen"},
	{"rfc2136://raimon:" + secret + "%zz@ns.example.com/", "not keyname:secret", "tsig-keygen"},
	{"rfc2136://raimon:*" + secret + "@ns.example.com/", "not base64", "tsig-keygen"},
	{"rfc2136://:" + secret + "@ns.example.com/", "the name of the key", "tsig-keygen"},
	{"rfc2136://raimon:" + secret + "@ns.example.com/?algorithm=hmac-md5", "algorithm of the key is not supported", "hmac-sha256"},

	{"acme-dns://auth.example.com?file=FOLDER/accounts.json", "", ""},
	{"acme-dns://auth.example.com:8443/api/?file=FOLDER/none-yet.json&wait=0", "", ""},
	{"acme-dns+http://127.0.0.1:8080?file=FOLDER/empty.json", "", ""},
	{"acme-dns://auth.example.com", "no file", "?file="},
	{"acme-dns:auth.example.com?file=FOLDER/accounts.json", "the server is malformed", "acme-dns://server"},
	{"acme-dns://?file=FOLDER/accounts.json", "the server is not", "acme-dns://server"},
	{"acme-dns://me:" + "s3cret" + "@auth.example.com?file=FOLDER/accounts.json", "the server is malformed", "acme-dns://server"},
	{"acme-dns://auth.example.com:port?file=FOLDER/accounts.json", "the server is malformed", "acme-dns://server"},
	{"acme-dns://auth.example.com?file=FOLDER/none/none.json", "accounts: ", "make the folder"},
	{"acme-dns://auth.example.com?file=FOLDER", "not a file of at most", "read and replace"},
	{"acme-dns://auth.example.com?file=FOLDER/key", "not a JSON object", "the file holds"},
	{"acme-dns://auth.example.com?file=FOLDER/half.json", "not complete", "the file holds"},

	{"", "no known way", "exec:"},
	{"cloudflare:s3cret", "no known way", "exec:"},
}

func specFiles(t testing.TB) (folder string) {
	t.Helper()
	folder = t.TempDir()
	write(t, filepath.Join(folder, "program"), "#!/bin/sh\n", 0o700)
	write(t, filepath.Join(folder, "program.bat"), "", 0o700) // what Windows finds
	write(t, filepath.Join(folder, "key"), keyFile("raimon", secret), 0o600)
	write(t, filepath.Join(folder, "accounts.json"), `{"example.com": {"username": "user", "password": "s3cret", "fulldomain": "abc.auth.example.com", "subdomain": "abc", "allowfrom": []}}`, 0o600)
	write(t, filepath.Join(folder, "half.json"), `{"example.com": {"username": "user", "password": "s3cret"}}`, 0o600)
	write(t, filepath.Join(folder, "empty.json"), "", 0o600)
	return folder
}

func write(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func keyFile(name, secret string) string {
	return "# made by hand\nkey \"" + name + "\" {\n\talgorithm hmac-sha256; // the usual\n\tsecret \"" + secret + "\";\n};\n"
}

func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func TestOpen(t *testing.T) {
	folder := specFiles(t)
	for _, test := range specs {
		solver, err := Open(strings.ReplaceAll(test.spec, "FOLDER", folder), nil)
		switch {
		case test.problem == "":
			if err != nil || solver == nil {
				t.Errorf("%s: %v", test.spec, err)
			}
		case err == nil || !strings.Contains(err.Error(), test.problem) || !strings.Contains(hintOf(err), test.hint):
			t.Errorf("%s: %v, hint %q\nwant %q, %q", test.spec, err, hintOf(err), test.problem, test.hint)
		case solver != nil:
			t.Errorf("%s: a solver beside the error", test.spec)
		case strings.Contains(err.Error()+hintOf(err), secret[:8]), strings.Contains(err.Error()+hintOf(err), "s3cret"):
			t.Errorf("%s: the error holds the secret: %v, hint %q", test.spec, err, hintOf(err))
		}
	}
}

func FuzzOpen(f *testing.F) {
	folder := specFiles(f)
	for _, test := range specs {
		f.Add(strings.ReplaceAll(test.spec, "FOLDER", folder))
	}
	f.Fuzz(func(t *testing.T, spec string) {
		solver, err := Open(spec, nil)
		if (err == nil) != (solver != nil) {
			t.Fatalf("solver %v, error %v", solver, err)
		}
		if err != nil && hintOf(err) == "" {
			t.Fatalf("no hint: %v", err)
		}
	})
}

// memory is a provider that does what it is told, or fails.
type memory struct {
	values     map[question]bool
	fail       error // of AppendRecords, after it has added the records
	waits      bool  // wait blocks until ctx ends
	cleanedCtx error
}

func (m *memory) place(_ context.Context, fqdn string) (place, error) {
	return place{"example.com.", fqdn}, nil
}

func (m *memory) wait(ctx context.Context, _ place, _ string) error {
	if m.waits {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (m *memory) AppendRecords(_ context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	all, err := texts(zone, records)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		m.values[r] = true
	}
	return records, m.fail
}

func (m *memory) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	m.cleanedCtx = ctx.Err()
	all, err := texts(zone, records)
	for _, r := range all {
		delete(m.values, r)
	}
	return records, err
}

func TestSolverKeepsOtherValues(t *testing.T) {
	m := &memory{values: map[question]bool{}}
	s := newSolver(m, discard)
	domain, wildcard := challenge("Example.com", "one"), challenge("example.com.", "two")
	for _, c := range []acme.Challenge{domain, wildcard} {
		if err := s.Present(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if err := s.Wait(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CleanUp(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	if want := (question{"_acme-challenge.example.com.", wildcard.DNS01KeyAuthorization()}); len(m.values) != 1 || !m.values[want] {
		t.Errorf("up: %v, want %v", m.values, want)
	}
	if err := s.CleanUp(t.Context(), wildcard); err != nil {
		t.Fatal(err)
	}
	if len(m.values) != 0 || len(s.up) != 0 {
		t.Errorf("left: %v, %v", m.values, s.up)
	}
}

// The answer to an update may get lost, and an attempt is often given up by its ctx: the record goes all the same.
func TestSolverCleansUpAfterFailure(t *testing.T) {
	m := &memory{values: map[question]bool{}, fail: errors.New("no answer")}
	s := newSolver(m, discard)
	c := challenge("example.com", "one")
	if err := s.Present(t.Context(), c); !errors.Is(err, m.fail) {
		t.Errorf("present: %v, want %v", err, m.fail)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.CleanUp(cancelled, c); err != nil || m.cleanedCtx != nil || len(m.values) != 0 {
		t.Errorf("clean up: %v, ctx %v, left %v", err, m.cleanedCtx, m.values)
	}
}

func TestSolverCleansUpWhatWasNeverPresented(t *testing.T) {
	if err := newSolver(&memory{}, discard).CleanUp(t.Context(), challenge("example.com", "one")); err != nil {
		t.Error(err)
	}
}

func TestSolverWaitEndsWithContext(t *testing.T) {
	s := newSolver(&memory{values: map[question]bool{}, waits: true}, discard)
	c := challenge("example.com", "one")
	if err := s.Wait(t.Context(), c); err == nil {
		t.Error("wait for what was not presented: no error")
	}
	if err := s.Present(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := s.Wait(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait: %v", err)
	}
}

// Names of on-demand certificates come from strangers.
func TestSolverRefusesOddNames(t *testing.T) {
	s := newSolver(&memory{values: map[question]bool{}}, discard)
	ip := challenge("192.0.2.1", "one")
	ip.Identifier.Type = "ip"
	for _, c := range []acme.Challenge{
		challenge("", "one"), challenge("a b", "one"), challenge("$(id).example.com", "one"), challenge("-rf.example.com", "one"), challenge("a..b", "one"),
		challenge("*.example.com", "one"), challenge("a\nb", "one"), challenge(strings.Repeat("a", 64)+".com", "one"),
		challenge(strings.Repeat("a.", 120)+"com", "one"), ip,
	} {
		if err := s.Present(t.Context(), c); err == nil {
			t.Errorf("%q was presented", c.Identifier.Value)
		}
	}
}

var discard = slog.New(slog.DiscardHandler)

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func openSolver(t testing.TB, spec string) *Solver {
	t.Helper()
	s, err := Open(spec, nil)
	if err != nil {
		t.Fatalf("%v; hint: %s", err, hintOf(err))
	}
	return s.(*Solver)
}

func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !is() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
