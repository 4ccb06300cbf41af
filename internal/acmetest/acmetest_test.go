package acmetest_test

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"raimon/internal/acmetest"
	"raimon/internal/tunneltest"
)

func TestChallenges(t *testing.T) {
	for _, test := range []struct {
		name   string
		solver func(testing.TB, *acmetest.CA) solver
		ids    []acme.AuthzID
	}{
		{"http-01", func(t testing.TB, ca *acmetest.CA) solver { return newSite(t, ca) }, acme.DomainIDs("a.example.com", "b.example.com")},
		{"tls-alpn-01", func(t testing.TB, ca *acmetest.CA) solver { return newTLSSite(t, ca) }, acme.DomainIDs("a.example.com")},
		{"dns-01", func(_ testing.TB, ca *acmetest.CA) solver { return zone{ca.DNS} }, acme.DomainIDs("example.com", "*.example.com")},
		{"http-01 ip", func(t testing.TB, ca *acmetest.CA) solver { return newSite(t, ca) }, acme.IPIDs("127.0.0.1")},
		{"tls-alpn-01 ip", func(t testing.TB, ca *acmetest.CA) solver { return newTLSSite(t, ca) }, acme.IPIDs("127.0.0.1")},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ca := acmetest.New(t, acmetest.Config{})

			certificate, err := obtain(t, newClient(t, ca), test.solver(t, ca), test.ids)

			if err != nil {
				t.Fatal(err)
			}
			for _, id := range test.ids {
				wantIssued(t, ca, certificate, strings.Replace(id.Value, "*", "any", 1))
			}
			if certificate.OCSPServer != nil {
				t.Errorf("OCSP responders: %v, want none unless asked for", certificate.OCSPServer)
			}
		})
	}
}

// wantIssued checks that certificate comes from ca and is good for name.
func wantIssued(t testing.TB, ca *acmetest.CA, certificate *x509.Certificate, name string) {
	t.Helper()
	issuer := ca.Issuer()
	pool := x509.NewCertPool()
	pool.AddCert(issuer)
	if _, err := certificate.Verify(x509.VerifyOptions{
		DNSName: name, Roots: ca.IssuingRoot.Pool, Intermediates: pool, CurrentTime: certificate.NotBefore.Add(time.Second),
	}); err != nil {
		t.Error(err)
	}
	for _, issued := range ca.Issued() {
		if issued.Equal(certificate) {
			return
		}
	}
	t.Errorf("the certificate for %s is not among those issued", name)
}

func TestWrongAnswerIsRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		solver func(testing.TB, *acmetest.CA) solver
	}{
		{"http-01", func(t testing.TB, ca *acmetest.CA) solver { return mute{newSite(t, ca)} }},
		{"tls-alpn-01", func(t testing.TB, ca *acmetest.CA) solver { return mute{newTLSSite(t, ca)} }},
		{"dns-01", func(_ testing.TB, ca *acmetest.CA) solver { return mute{zone{ca.DNS}} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ca := acmetest.New(t, acmetest.Config{})

			_, err := obtain(t, newClient(t, ca), test.solver(t, ca), acme.DomainIDs("example.com"))

			if refused, ok := errors.AsType[*acme.AuthorizationError](err); !ok {
				t.Errorf("got %v (%v), want an authorization error", err, refused)
			}
			if issued := ca.Issued(); len(issued) > 0 {
				t.Errorf("%d certificates were issued", len(issued))
			}
		})
	}
}

// mute answers no challenge.
type mute struct{ solver }

func (mute) present(testing.TB, *acme.Client, string, *acme.Challenge) {}

// Validation waits until it is told where the answer is, and asks all who may have it.
func TestDoorLeadsLaterAndToSeveral(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	sites := []*site{startSite(t, "127.0.0.1:0"), startSite(t, "127.0.0.1:0"), startSite(t, "127.0.0.1:0")}
	c := newClient(t, ca)

	mustObtain(t, c, later{sites, ca}, "example.com")

	for i, s := range sites {
		if n := s.count(); n != 1 {
			t.Errorf("site %d was asked %d times, want 1", i, n)
		}
	}
	if n := ca.HTTP01.Count(); n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
}

type later struct {
	sites []*site
	ca    *acmetest.CA
}

func (later) challengeType() string { return "http-01" }

func (l later) present(t testing.TB, c *acme.Client, identifier string, challenge *acme.Challenge) {
	var addresses []string
	for _, s := range l.sites {
		s.present(t, c, identifier, challenge)
		addresses = append(addresses, s.address)
	}
	go func() {
		// Pebble looks the name up three times before it connects.
		waitFor(t, "validation", func() bool { return l.ca.DNS.Queries(identifier, "A") == 3 })
		l.ca.HTTP01.To(addresses...)
	}()
}

func TestFixedPort(t *testing.T) {
	t.Parallel()
	port, err := strconv.Atoi(tunneltest.FreePort())
	if err != nil {
		t.Fatal(err)
	}
	ca := acmetest.New(t, acmetest.Config{HTTPPort: port})
	s := startSite(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))

	mustObtain(t, newClient(t, ca), s, "example.com")

	if !ca.HTTP01.Fixed() || ca.TLSALPN01.Fixed() || ca.HTTP01.Port != port {
		t.Errorf("port %d, fixed %t; TLS fixed %t", ca.HTTP01.Port, ca.HTTP01.Fixed(), ca.TLSALPN01.Fixed())
	}
}

func TestOtherResolver(t *testing.T) {
	t.Parallel()
	other := acmetest.New(t, acmetest.Config{})
	ca := acmetest.New(t, acmetest.Config{Resolver: other.DNS.Address})

	mustObtain(t, newClient(t, ca), zone{other.DNS}, "example.com")

	if n := ca.DNS.Queries("_acme-challenge.example.com", "TXT"); n != 0 {
		t.Errorf("its own DNS was asked %d times", n)
	}
}

func TestExternalAccount(t *testing.T) {
	t.Parallel()
	key := make([]byte, 32)
	rand.Read(key)
	ca := acmetest.New(t, acmetest.Config{
		ExternalAccounts: map[string]string{"kid-1": base64.RawURLEncoding.EncodeToString(key)},
	})

	_, err := newStranger(t, ca).Register(t.Context(), &acme.Account{}, acme.AcceptTOS)
	wantProblem(t, err, "externalAccountRequired")

	_, err = newStranger(t, ca).Register(t.Context(), &acme.Account{ExternalAccountBinding: &acme.ExternalAccountBinding{
		KID: "kid-1", Key: make([]byte, 32),
	}}, acme.AcceptTOS)
	wantProblem(t, err, "unauthorized")

	_, err = newStranger(t, ca).Register(t.Context(), &acme.Account{
		Contact:                []string{"mailto:someone@example.com"},
		ExternalAccountBinding: &acme.ExternalAccountBinding{KID: "kid-1", Key: key},
	}, acme.AcceptTOS)
	if err != nil {
		t.Fatal(err)
	}
	accounts := ca.Accounts()
	if len(accounts) != 1 || !accounts[0].Bound || accounts[0].Status != "valid" || accounts[0].Contact[0] != "mailto:someone@example.com" {
		t.Errorf("accounts: %+v", accounts)
	}
}

func wantProblem(t testing.TB, err error, name string) {
	t.Helper()
	problem, ok := errors.AsType[*acme.Error](err)
	if !ok || problem.ProblemType != "urn:ietf:params:acme:error:"+name {
		t.Errorf("got %v, want %s", err, name)
	}
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{Profiles: map[string]acmetest.Profile{
		"brief": {Validity: 90 * time.Second},
		"long":  {},
	}})
	c, s := newClient(t, ca), newSite(t, ca)

	for profile, validity := range map[acme.ProfileName]time.Duration{"brief": 90 * time.Second, "long": 90 * 24 * time.Hour} {
		certificate, err := obtain(t, c, s, acme.DomainIDs("example.com"), acme.WithOrderIssuanceProfile(profile))
		if err != nil {
			t.Fatal(err)
		}
		if d := certificate.NotAfter.Sub(certificate.NotBefore) + time.Second; d != validity {
			t.Errorf("profile %s: validity %v, want %v", profile, d, validity)
		}
	}
	_, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("example.com"), acme.WithOrderIssuanceProfile("other"))
	if err == nil {
		t.Error("an unknown profile was taken")
	}
}

func TestNonces(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		percent int
		refused bool
	}{{percent: 60, refused: true}, {percent: -1, refused: false}} {
		ca := acmetest.New(t, acmetest.Config{RejectNonces: test.percent})
		c := newClient(t, ca)

		for range 20 {
			if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("example.com")); err != nil {
				t.Fatal(err)
			}
		}

		if n := ca.Accepted(acmetest.NewOrder); n != 20 {
			t.Errorf("%d %%: %d orders accepted, want 20", test.percent, n)
		}
		if refused := ca.Requests(acmetest.NewOrder) > 20; refused != test.refused {
			t.Errorf("%d %%: %d requests for 20 orders", test.percent, ca.Requests(acmetest.NewOrder))
		}
	}
}

// Pebble by itself reuses one in a hundred.
func TestAuthorizationsAreNotReused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		percent int
		status  string
	}{{percent: 0, status: acme.StatusPending}, {percent: 100, status: acme.StatusValid}} {
		ca := acmetest.New(t, acmetest.Config{ReuseAuthorizations: test.percent, RejectNonces: -1})
		c := newClient(t, ca)
		mustObtain(t, c, zone{ca.DNS}, "example.com")

		for range 300 {
			order, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("example.com"))
			if err != nil {
				t.Fatal(err)
			}
			authorization, err := c.GetAuthorization(t.Context(), order.AuthzURLs[0])
			if err != nil {
				t.Fatal(err)
			}
			if authorization.Status != test.status {
				t.Fatalf("%d %%: authorization is %s, want %s", test.percent, authorization.Status, test.status)
			}
		}
	}
}

func TestBlocked(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{Blocked: []string{"example.com"}})

	_, err := newClient(t, ca).AuthorizeOrder(t.Context(), acme.DomainIDs("www.example.com"))

	wantProblem(t, err, "rejectedIdentifier")
}

func TestTwoCAs(t *testing.T) {
	t.Parallel()
	first, second := acmetest.New(t, acmetest.Config{}), acmetest.New(t, acmetest.Config{})

	certificate := mustObtain(t, newClient(t, second), newSite(t, second), "example.com")

	wantIssued(t, second, certificate, "example.com")
	if len(first.Issued()) != 0 || len(first.Accounts()) != 0 {
		t.Error("the first CA knows what the second did")
	}
	if first.Root.Certificate.Equal(second.Root.Certificate) || first.IssuingRoot.Certificate.Equal(second.IssuingRoot.Certificate) {
		t.Error("both have the same root")
	}
	if first.DNS.TXT("x") != nil || first.DNS.Address == second.DNS.Address {
		t.Error("both have the same DNS")
	}
}

// What the directory names is counted under the same name.
func TestResources(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	client := newHTTPClient(t, ca)
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	answer, err := client.Get(ca.Directory)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var directory map[string]any
	if err := json.NewDecoder(answer.Body).Decode(&directory); err != nil {
		t.Fatal(err)
	}
	delete(directory, "meta")
	if len(directory) < 6 {
		t.Fatalf("directory: %v", directory)
	}

	for name, url := range directory {
		answer, err := client.Head(url.(string))
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if n := ca.Requests(name); n != 1 {
			t.Errorf("%s: %d requests counted, want 1", name, n)
		}
	}
	if n := ca.Requests(); n != 1+len(directory) {
		t.Errorf("%d requests in all, want %d", n, 1+len(directory))
	}
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	taken := tunneltest.Listen(t).Addr().String()
	for want, config := range map[string]acmetest.Config{
		"address already in use":           {Address: taken},
		"no such file":                     {Dir: "/nonexistent/acmetest"},
		`external account "kid"`:           {ExternalAccounts: map[string]string{"kid": "+"}},
		"not a number of whole seconds":    {Profiles: map[string]acmetest.Profile{"p": {Validity: time.Millisecond}}},
		"at least one profile":             {Profiles: map[string]acmetest.Profile{}},
		"101 is not a number in a hundred": {ReuseAuthorizations: 101},
	} {
		ca, err := acmetest.Start(config)
		if err == nil {
			ca.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestRootFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := acmetest.New(t, acmetest.Config{Dir: dir})
	for _, root := range []acmetest.Root{ca.Root, ca.IssuingRoot} {
		content, err := os.ReadFile(root.File)
		if err != nil || string(content) != string(root.PEM) || !strings.HasPrefix(root.File, dir) {
			t.Errorf("%s: %v", root.File, err)
		}
	}
}

// A client that does not know the root cannot even read the directory.
func TestUnknownRoot(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})

	_, err := http.Get(ca.Directory)

	if unknown, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		t.Errorf("got %v (%v), want an unknown authority", err, unknown)
	}
}
