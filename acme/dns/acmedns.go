package dns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libdns/libdns"
)

const (
	apiLimit       = 30 * time.Second
	apiAnswerLimit = 64 << 10 // bytes
	accountsLimit  = 1 << 20  // bytes of the accounts file
	lookLimit      = 10 * time.Second
)

// acmeDNS changes records on an acme-dns server (github.com/joohoi/acme-dns), to which a CNAME at _acme-challenge.example.com
// leads. The server keeps the two newest values of an account, so example.com and *.example.com work at once and nothing is
// ever taken down.
//
// The accounts are in a JSON file, in the form that other clients use. A domain that is not in it gets a new account, which
// the file is given before anything else; the attempt then fails with the CNAME to create. Programs on several machines that
// share a domain have to share the account: register on one and copy the file.
type acmeDNS struct {
	api    *url.URL
	file   string
	http   *http.Client
	look   time.Duration // for the record through the system's resolver; zero: not at all
	log    *slog.Logger
	saving sync.Mutex // held from reading the file to its replacement

	registered map[string]time.Time // domains that got an account from us; guarded by saving

	// Only tests set these otherwise.
	resolver *net.Resolver
	interval time.Duration
	patience time.Duration // with people who have to create a CNAME
}

// account is what a registration gives.
type account struct {
	FullDomain string `json:"fulldomain"` // to which the CNAME leads
	SubDomain  string `json:"subdomain"`
	Username   string `json:"username"`
	Password   string `json:"password"`
	ServerURL  string `json:"server_url"`
}

func (a *account) complete() bool {
	return isHostName(strings.TrimSuffix(a.FullDomain, ".")) && a.SubDomain != "" && a.Username != "" && a.Password != ""
}

// openAcmeDNS reads //server[:port][/path]?file=/path.
func openAcmeDNS(scheme, spec string, log *slog.Logger) (*acmeDNS, error) {
	const hint = "write acme-dns://server.example/?file=/path/to/accounts.json (acme-dns+http:// where the server has no TLS)"
	spec, settings, _ := strings.Cut(spec, "?")
	set, err := query(settings, "file", "wait")
	if err != nil {
		return nil, prefix("acme-dns", err)
	}
	api, err := url.Parse(scheme + ":" + spec)
	if err != nil || !strings.HasPrefix(spec, "//") || api.User != nil || api.Fragment != "" {
		return nil, problem("acme-dns: the server is malformed", hint)
	}
	if _, ok := serverAddress(api.Host); !ok {
		return nil, problem("acme-dns: the server is not host, host:port or [IPv6]:port", hint)
	}
	if set["file"] == "" {
		return nil, problem("acme-dns: no file for the accounts is named", hint)
	}
	file, err := filepath.Abs(set["file"])
	if err != nil {
		return nil, prefix("acme-dns", err)
	}
	a := &acmeDNS{api: api, file: file, log: log, interval: time.Second, patience: time.Minute, resolver: net.DefaultResolver, registered: make(map[string]time.Time)}
	if a.look, err = waitTime(set["wait"], lookLimit); err != nil {
		return nil, prefix("acme-dns", err)
	}
	// Connections are few and far between. A redirect would take the password to another server.
	a.http = &http.Client{
		Timeout:       apiLimit,
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if _, err := a.accounts(); err != nil {
		return nil, prefix("acme-dns", err)
	}
	return a, nil
}

// accounts reads the file, by domain. A file that does not exist in a folder that does is an empty one.
func (a *acmeDNS) accounts() (map[string]json.RawMessage, error) {
	all := make(map[string]json.RawMessage)
	data, err := readFile(a.file, accountsLimit)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Dir(a.file)); err != nil {
			return nil, &hinted{fmt.Errorf("accounts: %w", err), "make the folder, owned by the user that runs this program: new accounts are kept there"}
		}
		return all, nil
	}
	if err != nil {
		return nil, &hinted{fmt.Errorf("accounts: %w", err), "name a file that the user that runs this program may read and replace"}
	}
	const hint = `the file holds {"example.com": {"username": "...", "password": "...", "fulldomain": "...", "subdomain": "..."}}`
	if len(bytes.TrimSpace(data)) == 0 {
		return all, nil
	}
	// What a JSON error says may quote the file, and with it a password.
	if json.Unmarshal(data, &all) != nil || all == nil {
		return nil, problem("accounts: "+a.file+" is not a JSON object", hint)
	}
	for domain, raw := range all {
		var one account
		if json.Unmarshal(raw, &one) != nil || !one.complete() {
			return nil, problem(fmt.Sprintf("accounts: the one of %q in %s is malformed or not complete", domain, a.file), hint)
		}
	}
	return all, nil
}

// account returns the account of domain, which has no dot at the end; nil if the file has none.
func (a *acmeDNS) account(domain string) (*account, error) {
	all, err := a.accounts()
	if err != nil {
		return nil, err
	}
	for name, raw := range all {
		if !strings.EqualFold(strings.TrimSuffix(name, "."), domain) {
			continue
		}
		var one account
		if err := json.Unmarshal(raw, &one); err != nil {
			return nil, problem("accounts: that of "+domain+" is malformed", "")
		}
		return &one, nil
	}
	return nil, nil
}

func (a *acmeDNS) place(_ context.Context, fqdn string) (place, error) {
	return besideDomain(fqdn), nil
}

func (a *acmeDNS) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	all, err := texts(zone, records)
	if err != nil {
		return nil, err
	}
	for i, r := range all {
		if err := a.update(ctx, r); err != nil {
			return records[:i], err
		}
	}
	return records, nil
}

// DeleteRecords does nothing: newer values push the record out.
func (a *acmeDNS) DeleteRecords(context.Context, string, []libdns.Record) ([]libdns.Record, error) {
	return nil, nil
}

func domainOf(fqdn string) string {
	return strings.TrimSuffix(strings.TrimPrefix(fqdn, challengeLabel+"."), ".")
}

func (a *acmeDNS) update(ctx context.Context, q question) error {
	domain := domainOf(q.fqdn)
	one, err := a.account(domain)
	if err != nil {
		return err
	}
	if one == nil {
		if one, err = a.register(ctx, domain); err != nil {
			return err
		}
		if one == nil {
			if one, err = a.account(domain); err != nil || one == nil {
				return fmt.Errorf("accounts: that of %s has vanished again: %w", domain, err)
			}
		}
	}
	if a.isNew(domain) {
		return &hinted{fmt.Errorf("%s has a new account at %s, which needs a CNAME: %s", domain, a.api.Host, cname(q.fqdn, one)),
			"create it in the domain's zone; the next attempt uses the account"}
	}
	body := map[string]string{"subdomain": one.SubDomain, "txt": q.value}
	status, _, err := a.post(ctx, "update", one, body)
	if err == nil {
		return nil
	}
	hint := "the acme-dns server's log says why"
	if status == http.StatusUnauthorized || status == http.StatusForbidden {
		hint = "the server does not know this account, or allows it other addresses only: does the file belong to this server? Without the entry of " + domain + ", a new account is made, and the CNAME has to follow it"
	}
	return &hinted{err, hint}
}

// isNew tells whether domain was registered so lately that nobody can have made its CNAME. A name and its
// wildcard need the account at the same time: neither must go to the CA, which would count a failure.
func (a *acmeDNS) isNew(domain string) bool {
	a.saving.Lock()
	defer a.saving.Unlock()
	registered, ok := a.registered[domain]
	return ok && time.Since(registered) < a.patience
}

func cname(fqdn string, one *account) string {
	return fqdn + " CNAME " + strings.TrimSuffix(one.FullDomain, ".") + "."
}

// register makes an account for domain and saves it; nil if somebody else has saved one meanwhile. The file is made ready
// before, so that no account is made that cannot be kept.
func (a *acmeDNS) register(ctx context.Context, domain string) (*account, error) {
	a.saving.Lock()
	defer a.saving.Unlock()
	one, err := a.account(domain)
	if one != nil || err != nil {
		return nil, err
	}
	path := a.file
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // keep the link, and change what it leads to
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*.new") // mode 0600
	if err != nil {
		return nil, &hinted{fmt.Errorf("accounts: save a new one: %w", err), "let the user that runs this program write into the folder, or add the account of " + domain + " to the file by hand"}
	}
	defer os.Remove(f.Name()) // gone when all went well
	defer f.Close()

	status, data, err := a.post(ctx, "register", nil, struct{}{})
	if err != nil {
		hint := "the acme-dns server's log says why"
		if status == http.StatusNotFound || status == http.StatusForbidden || status == http.StatusUnauthorized {
			hint = "the server may not register new accounts: ask its owner for one and add it to " + a.file
		}
		return nil, &hinted{err, hint}
	}
	one = new(account)
	if json.Unmarshal(data, one) != nil || !one.complete() {
		return nil, problem(a.api.Host+"/register: the answer is not an account", "is this an acme-dns server?")
	}
	one.ServerURL = a.api.String()
	all, err := a.accounts()
	if err != nil {
		return nil, err
	}
	if all[domain], err = json.Marshal(one); err != nil {
		return nil, err
	}
	if data, err = json.MarshalIndent(all, "", "  "); err != nil {
		return nil, err
	}
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return nil, fmt.Errorf("accounts: save a new one: %w", err)
	}
	a.registered[domain] = time.Now()
	return one, nil
}

// post calls the API (acme-dns's README, section API). The status is zero if no answer came.
func (a *acmeDNS) post(ctx context.Context, call string, one *account, body any) (status int, answer []byte, err error) {
	data, err := json.Marshal(body)
	if err != nil {
		return 0, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.api.JoinPath(call).String(), bytes.NewReader(data))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if one != nil {
		req.Header.Set("X-Api-User", one.Username)
		req.Header.Set("X-Api-Key", one.Password)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, apiAnswerLimit))
	if err != nil {
		return resp.StatusCode, nil, fmt.Errorf("%s: %w", req.URL, err)
	}
	if resp.StatusCode/100 != 2 {
		return resp.StatusCode, nil, fmt.Errorf("%s: %d %s%s", req.URL, resp.StatusCode, http.StatusText(resp.StatusCode), complaint(answer))
	}
	return resp.StatusCode, answer, nil
}

// complaint is what the server says is wrong, such as ": bad_subdomain". It is only a word or nothing, as a server could as
// well send the password back.
func complaint(answer []byte) string {
	var said struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(answer, &said) != nil || said.Error == "" || len(said.Error) > 40 ||
		strings.Trim(said.Error, "abcdefghijklmnopqrstuvwxyz_") != "" {
		return ""
	}
	return ": " + said.Error
}

// wait looks for the record as this machine sees it. Not seeing it is no error, as the CA's view may be another; the usual
// reason is a CNAME that is missing, so that is said.
func (a *acmeDNS) wait(ctx context.Context, at place, value string) error {
	if a.look == 0 {
		return nil
	}
	looking, cancel := context.WithTimeout(ctx, a.look)
	defer cancel()
	tick := time.NewTicker(a.interval)
	defer tick.Stop()
	for {
		values, err := a.resolver.LookupTXT(looking, at.name)
		if slices.Contains(values, value) {
			return nil
		}
		select {
		case <-tick.C:
			if looking.Err() == nil {
				continue
			}
		case <-looking.Done():
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		want := ""
		if one, err := a.account(domainOf(at.name)); err == nil && one != nil {
			want = cname(at.name, one)
		}
		a.log.Warn("challenge record is not seen from here: is the CNAME there?", "name", at.name, "want", want, "error", err)
		return nil
	}
}
