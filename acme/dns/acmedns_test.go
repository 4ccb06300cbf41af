package dns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"raimon/internal/tunneltest"
)

// standIn answers like acme-dns, which is not to be had as a Go module: it was made after the API in its README.
type standIn struct {
	*httptest.Server
	mu       sync.Mutex
	accounts map[string]string   // user to password
	values   map[string][]string // by subdomain, the two newest
	reply    func(w http.ResponseWriter, r *http.Request) (done bool)
	calls    []string
}

func startStandIn(t testing.TB) *standIn {
	t.Helper()
	s := &standIn{accounts: map[string]string{"user": "s3cret"}, values: map[string][]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/register", s.register)
	mux.HandleFunc("POST /api/update", s.update)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.calls = append(s.calls, r.URL.Path)
		if s.reply == nil || !s.reply(w, r) {
			mux.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *standIn) register(w http.ResponseWriter, _ *http.Request) {
	name := fmt.Sprintf("sub%d", len(s.accounts))
	s.accounts["user-"+name] = "s3cret-" + name
	w.WriteHeader(http.StatusCreated)
	json.NewEncoder(w).Encode(map[string]any{"username": "user-" + name, "password": "s3cret-" + name,
		"fulldomain": name + ".auth.example.org", "subdomain": name, "allowfrom": []string{}})
}

func (s *standIn) update(w http.ResponseWriter, r *http.Request) {
	var body struct{ Subdomain, Txt string }
	password, known := s.accounts[r.Header.Get("X-Api-User")]
	if !known || password != r.Header.Get("X-Api-Key") || json.NewDecoder(r.Body).Decode(&body) != nil {
		w.WriteHeader(http.StatusUnauthorized)
		w.Write([]byte(`{"error": "forbidden"}`))
		return
	}
	if len(body.Txt) != 43 {
		w.WriteHeader(http.StatusBadRequest)
		w.Write([]byte(`{"error": "bad_txt"}`))
		return
	}
	values := append(s.values[body.Subdomain], body.Txt)
	s.values[body.Subdomain] = values[max(0, len(values)-2):]
	json.NewEncoder(w).Encode(map[string]string{"txt": body.Txt})
}

func (s *standIn) solver(t testing.TB, file string) *Solver {
	t.Helper()
	return openSolver(t, "acme-dns+"+s.URL+"/api/?wait=0&file="+file)
}

const accountsFile = `{"Example.com": {"username": "user", "password": "s3cret", "fulldomain": "abc.auth.example.org", "subdomain": "abc", "allowfrom": ["::1/128"]}}`

func accounts(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "accounts.json")
	write(t, path, text, 0o600)
	return path
}

func TestAcmeDNS(t *testing.T) {
	tunneltest.NoLeaks(t)
	at := startStandIn(t)
	s := at.solver(t, accounts(t, accountsFile))
	domain, wildcard := challenge("example.com", "one"), challenge("example.com", "two")
	for _, c := range []acme.Challenge{domain, wildcard} {
		if err := errors.Join(s.Present(t.Context(), c), s.Wait(t.Context(), c)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CleanUp(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(at.values["abc"]), fmt.Sprint([]string{domain.DNS01KeyAuthorization(), wildcard.DNS01KeyAuthorization()}); got != want {
		t.Errorf("up: %s, want %s", got, want)
	}
}

// A domain without an account gets one; the attempt says which CNAME it needs, the next one uses it.
func TestAcmeDNSRegisters(t *testing.T) {
	at := startStandIn(t)
	file := accounts(t, accountsFile)
	link := filepath.Join(t.TempDir(), "link.json")
	if err := os.Symlink(file, link); err != nil {
		link = file // Windows without the right to make links
	}
	s, c := at.solver(t, link), challenge("www.example.com", "one")
	err := s.Present(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "_acme-challenge.www.example.com. CNAME sub1.auth.example.org.") || hintOf(err) == "" || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("%v, hint %q", err, hintOf(err))
	}
	if err := s.CleanUp(t.Context(), c); err != nil {
		t.Error(err)
	}
	// The wildcard comes at the same time: it does not go to the CA either.
	if err := s.Present(t.Context(), challenge("www.example.com", "two")); err == nil || !strings.Contains(err.Error(), "CNAME") {
		t.Errorf("right after: %v", err)
	}
	s.provider.(*acmeDNS).patience = 0
	if err := s.Present(t.Context(), c); err != nil {
		t.Errorf("second attempt: %v", err)
	}
	if len(at.values["sub1"]) != 1 {
		t.Errorf("values: %v", at.values)
	}
	saved := make(map[string]map[string]any)
	if err := json.Unmarshal([]byte(read(t, file)), &saved); err != nil {
		t.Fatal(err)
	}
	if one := saved["www.example.com"]; one["password"] != "s3cret-sub1" || one["server_url"] != at.URL+"/api/" || saved["Example.com"]["allowfrom"] == nil {
		t.Errorf("saved: %v", saved)
	}
	info, err := os.Stat(file)
	if err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(left) != 1 {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
}

// Attempts for example.com and *.example.com come together, but make one account.
func TestAcmeDNSRegistersOnce(t *testing.T) {
	at := startStandIn(t)
	file := filepath.Join(t.TempDir(), "new.json")
	s := at.solver(t, file)
	var all sync.WaitGroup
	for _, token := range []string{"one", "two", "three", "four"} {
		all.Go(func() {
			if err := s.Present(t.Context(), challenge("example.com", token)); err != nil && !strings.Contains(err.Error(), "needs a CNAME") {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if len(at.accounts) != 2 {
		t.Errorf("accounts: %v", at.accounts)
	}
}

// An account that cannot be kept is not made.
func TestAcmeDNSFolderVanishes(t *testing.T) {
	at := startStandIn(t)
	folder := filepath.Join(t.TempDir(), "folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	s := at.solver(t, filepath.Join(folder, "accounts.json"))
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	if err := s.Present(t.Context(), challenge("example.com", "one")); err == nil || hintOf(err) == "" || len(at.calls) > 0 {
		t.Errorf("%v, hint %q, calls %v", err, hintOf(err), at.calls)
	}
}

func TestAcmeDNSRefuses(t *testing.T) {
	answer := func(status int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(status)
			w.Write([]byte(strings.ReplaceAll(body, "KEY", r.Header.Get("X-Api-Key"))))
			return true
		}
	}
	for _, test := range []struct {
		name, domain  string
		reply         func(http.ResponseWriter, *http.Request) bool
		problem, hint string
	}{
		{"unknown account", "example.com", answer(401, `{"error": "forbidden"}`), "401 Unauthorized: forbidden", "does not know this account"},
		{"server in trouble", "example.com", answer(500, `{"error": "db_error"}`), "500 Internal Server Error: db_error", "log"},
		{"password sent back", "example.com", answer(400, `{"error": "no KEY1"}`), "400 Bad Request", "log"},
		{"redirect", "example.com", answer(307, ""), "307 Temporary Redirect", "log"},
		{"no registration", "new.example.com", answer(404, "404 page not found"), "404 Not Found", "ask its owner"},
		{"another server", "new.example.com", answer(200, "<html>"), "not an account", "acme-dns server"},
		{"hostile name", "new.example.com", answer(201, `{"username":"a","password":"b","subdomain":"c","fulldomain":"x\n. TXT y"}`), "not an account", "acme-dns server"},
		{"endless", "new.example.com", func(w http.ResponseWriter, _ *http.Request) bool {
			for range 2 * apiAnswerLimit / 1024 {
				if _, err := w.Write(make([]byte, 1024)); err != nil {
					return true
				}
			}
			return true
		}, "not an account", "acme-dns server"},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := startStandIn(t)
			at.reply = test.reply
			file := accounts(t, accountsFile)
			err := at.solver(t, file).Present(t.Context(), challenge(test.domain, "one"))
			if err == nil || !strings.Contains(err.Error(), test.problem) || !strings.Contains(hintOf(err), test.hint) {
				t.Errorf("%v, hint %q\nwant %q, %q", err, hintOf(err), test.problem, test.hint)
			}
			if err != nil && strings.Contains(err.Error()+hintOf(err), "s3cret") {
				t.Errorf("the password shows: %v", err)
			}
			if got := read(t, file); got != accountsFile {
				t.Errorf("the file has changed: %s", got)
			}
			if len(at.calls) != 1 {
				t.Errorf("calls: %v", at.calls)
			}
		})
	}
}

// A missing CNAME is said, but the CA has the last word.
func TestAcmeDNSLooksForCNAME(t *testing.T) {
	tunneltest.NoLeaks(t)
	const name = "_acme-challenge.example.com."
	at := startStandIn(t)
	names := serveDNS(t, []string{"example.com."})
	file := accounts(t, accountsFile)
	var log strings.Builder
	solver, err := Open("acme-dns+"+at.URL+"/api?wait=30ms&file="+file, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	s, c := solver.(*Solver), challenge("example.com", "one")
	p := s.provider.(*acmeDNS)
	p.interval, p.resolver = 5*time.Millisecond, resolverAt(names.address)
	if err := errors.Join(s.Present(t.Context(), c), s.Wait(t.Context(), c)); err != nil {
		t.Fatal(err)
	}
	if want := name + " CNAME abc.auth.example.org."; !strings.Contains(log.String(), want) || strings.Contains(log.String(), "s3cret") {
		t.Errorf("log %q, want %q", log.String(), want)
	}
	log.Reset()
	names.add(t, name+" 60 IN TXT "+c.DNS01KeyAuthorization())
	p.look = time.Minute
	if err := s.Wait(t.Context(), c); err != nil || log.Len() > 0 {
		t.Errorf("%v, log %q", err, log.String())
	}
}

func resolverAt(address string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}}
}
