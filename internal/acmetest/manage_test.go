package acmetest_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/crypto/acme"

	"raimon/internal/acmetest"
)

// byManagement answers DNS-01 as a hook with curl does.
type byManagement struct {
	zone
	ca *acmetest.CA
}

func (m byManagement) present(t testing.TB, c *acme.Client, identifier string, challenge *acme.Challenge) {
	t.Helper()
	record, err := c.DNS01ChallengeRecord(challenge.Token)
	if err != nil {
		t.Fatal(err)
	}
	manage(t, m.ca, "/set-txt", http.StatusOK, `{"host": "_acme-challenge.%s", "value": "%s"}`, identifier, record)
}

func manage(t testing.TB, ca *acmetest.CA, path string, status int, format string, arguments ...any) {
	t.Helper()
	answer, err := http.Post(ca.Management+path, "application/json", strings.NewReader(fmt.Sprintf(format, arguments...)))
	if err != nil {
		t.Fatal(err)
	}
	wantBody(t, answer, status, "")
}

func TestManagement(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	c := newClient(t, ca)

	certificate := mustObtain(t, c, byManagement{ca: ca}, "example.com")
	manage(t, ca, "/clear-txt", http.StatusOK, `{"host": "_acme-challenge.example.com"}`)
	if records := ca.DNS.TXT("_acme-challenge.example.com"); records != nil {
		t.Errorf("TXT after clear-txt: %q", records)
	}

	s := startSite(t, "127.0.0.1:0")
	manage(t, ca, "/lead", http.StatusOK, `{"http": [%q]}`, s.address)
	mustObtain(t, c, s, "www.example.com")

	manage(t, ca, "/fail", http.StatusOK, `{"kind": "problem", "status": 429, "error": "rateLimited", "retryAfter": 60, "resources": ["newOrder"]}`)
	_, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("example.com"))
	wantProblem(t, err, "rateLimited")
	manage(t, ca, "/fail", http.StatusOK, `{"kind": "plain", "status": 503}`)
	if _, err := newStranger(t, ca).Discover(t.Context()); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("got %v, want 503", err)
	}
	manage(t, ca, "/mend", http.StatusOK, "")
	if _, err := newStranger(t, ca).Discover(t.Context()); err != nil {
		t.Errorf("mended: %v", err)
	}

	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})
	request, err := json.Marshal(map[string]string{"certificate": string(text), "ariResponse": "x"})
	if err != nil {
		t.Fatal(err)
	}
	manage(t, ca, "/set-renewal-info/", http.StatusOK, "%s", request)

	for path, body := range map[string]string{
		"/set-txt":   `{"host": "", "value": "x"}`,
		"/clear-txt": `{"hots": "example.com"}`,
		"/fail":      `{"kind": "plain", "status": 200}`,
		"/lead":      `no JSON`,
	} {
		manage(t, ca, path, http.StatusBadRequest, "%s", body)
	}
	manage(t, ca, "/fail", http.StatusBadRequest, `{"kind": "other", "status": 500}`)
	fixed := acmetest.New(t, acmetest.Config{HTTPPort: 1})
	manage(t, fixed, "/lead", http.StatusBadRequest, `{"http": ["127.0.0.1:1"]}`)
}

func TestStatus(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	certificate := mustObtain(t, newClient(t, ca), zone{ca.DNS}, "example.com")
	if err := ca.Revoke(certificate, 1); err != nil {
		t.Fatal(err)
	}

	answer, err := http.Get(ca.Management + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()

	var status struct {
		Accounts     []struct{ ID, Status string }
		Certificates []struct {
			Serial  string
			Names   []string
			Revoked bool
		}
		Requests, Accepted map[string]int
	}
	if err := json.NewDecoder(answer.Body).Decode(&status); err != nil {
		t.Fatal(err)
	}
	if len(status.Accounts) != 1 || status.Accounts[0].Status != "valid" || status.Accepted["newAccount"] != 1 || status.Requests["newOrder"] < 1 {
		t.Errorf("status: %+v", status)
	}
	if len(status.Certificates) != 1 || status.Certificates[0].Serial != certificate.SerialNumber.Text(16) ||
		status.Certificates[0].Names[0] != "example.com" || !status.Certificates[0].Revoked {
		t.Errorf("certificates: %+v", status.Certificates)
	}
}
