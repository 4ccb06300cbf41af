package acmetest_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"raimon/internal/acmetest"
)

// renewer is an ACME client that knows renewal information, with an account at a CA.
type renewer struct {
	*acmez.Client
	account acme.Account
}

func newRenewer(t testing.TB, ca *acmetest.CA) *renewer {
	t.Helper()
	r := &renewer{Client: &acmez.Client{
		Client:           &acme.Client{Directory: ca.Directory, HTTPClient: newHTTPClient(t, ca), PollInterval: 5 * time.Millisecond},
		ChallengeSolvers: map[string]acmez.Solver{acme.ChallengeTypeHTTP01: newSite(t, ca)},
	}}
	account, err := r.NewAccount(t.Context(), acme.Account{TermsOfServiceAgreed: true, PrivateKey: newKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	r.account = account
	return r
}

// obtain gets a certificate for example.com, in place of another one or of none.
func (r *renewer) obtain(t testing.TB, replaces *x509.Certificate) *x509.Certificate {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request, err := acmez.NewCSR(newKey(t), []string{"example.com"})
	if err != nil {
		t.Fatal(err)
	}
	parameters, err := acmez.OrderParametersFromCSR(r.account, request)
	if err != nil {
		t.Fatal(err)
	}
	parameters.Replaces = replaces
	chains, err := r.ObtainCertificate(ctx, parameters)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(chains[0].ChainPEM)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func (r *renewer) window(t testing.TB, certificate *x509.Certificate) (start, end time.Time, retryAfter time.Duration) {
	t.Helper()
	info, err := r.GetRenewalInfo(t.Context(), certificate)
	if err != nil {
		t.Fatal(err)
	}
	return info.SuggestedWindow.Start, info.SuggestedWindow.End, time.Until(*info.RetryAfter).Round(time.Minute)
}

func TestRenewalWindow(t *testing.T) {
	t.Parallel()
	for validity, want := range map[time.Duration]struct{ start, end time.Duration }{
		100 * time.Hour: {66*time.Hour - 20*time.Minute, 68*time.Hour - 20*time.Minute},
		time.Minute:     {38 * time.Second, 41 * time.Second},
	} {
		ca := acmetest.New(t, acmetest.Config{Profiles: map[string]acmetest.Profile{"p": {Validity: validity}}})
		r := newRenewer(t, ca)
		certificate := r.obtain(t, nil)

		start, end, retryAfter := r.window(t, certificate)

		if d := start.Sub(certificate.NotBefore) - want.start; d.Abs() > time.Second {
			t.Errorf("%v: the window begins %v too late", validity, d)
		}
		if d := end.Sub(certificate.NotBefore) - want.end; d.Abs() > time.Second {
			t.Errorf("%v: the window ends %v too late", validity, d)
		}
		if retryAfter != 6*time.Hour {
			t.Errorf("%v: ask again after %v", validity, retryAfter)
		}
	}
}

func TestRenewalWindowIsSet(t *testing.T) {
	t.Parallel()
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	ca := acmetest.New(t, acmetest.Config{
		RenewalWindow:     func(_, notAfter time.Time) (start, end time.Time) { return notAfter.Add(-time.Hour), notAfter },
		RenewalRetryAfter: 2 * time.Minute,
	})
	r := newRenewer(t, ca)
	certificate := r.obtain(t, nil)

	if start, end, retryAfter := r.window(t, certificate); !start.Equal(certificate.NotAfter.Add(-time.Hour)) || !end.Equal(certificate.NotAfter) || retryAfter != 2*time.Minute {
		t.Errorf("by configuration: %v to %v, again after %v", start, end, retryAfter)
	}

	if err := ca.SuggestRenewal(certificate, at, at.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if start, end, _ := r.window(t, certificate); !start.Equal(at) || !end.Equal(at.Add(time.Hour)) {
		t.Errorf("by SuggestRenewal: %v to %v", start, end)
	}

	if err := ca.SetRenewalInfo(certificate, ""); err != nil {
		t.Fatal(err)
	}
	if start, end, _ := r.window(t, certificate); end.Sub(start) != 48*time.Hour {
		t.Errorf("Pebble's own: %v to %v", start, end)
	}

	if err := ca.Revoke(certificate, 4); err != nil {
		t.Fatal(err)
	}
	if start, end, _ := r.window(t, certificate); !end.Before(time.Now()) || !start.Before(end) {
		t.Errorf("revoked: %v to %v", start, end)
	}

	other := acmetest.New(t, acmetest.Config{})
	if err := other.SuggestRenewal(certificate, at, at); err == nil {
		t.Error("a certificate of another CA was taken")
	}
}

func TestRenewalInfoMayBeMalformed(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	r := newRenewer(t, ca)
	certificate := r.obtain(t, nil)
	if err := ca.SetRenewalInfo(certificate, "no JSON"); err != nil {
		t.Fatal(err)
	}
	id, err := acme.ARIUniqueIdentifier(certificate)
	if err != nil {
		t.Fatal(err)
	}

	answer, err := newHTTPClient(t, ca).Get(strings.Replace(ca.Directory, "/dir", "/draft-ietf-acme-ari-03/renewalInfo/", 1) + id)

	if err != nil {
		t.Fatal(err)
	}
	wantBody(t, answer, http.StatusOK, "no JSON")
}

// A certificate is replaced once (RFC 9773, section 5).
func TestReplaces(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	r := newRenewer(t, ca)
	first := r.obtain(t, nil)
	id, err := acme.ARIUniqueIdentifier(first)
	if err != nil {
		t.Fatal(err)
	}
	order := acme.Order{Identifiers: []acme.Identifier{{Type: "dns", Value: "example.com"}}, Replaces: id}

	r.obtain(t, first)
	_, err = r.NewOrder(t.Context(), r.account, order)

	if problem, ok := errors.AsType[acme.Problem](err); !ok || problem.Type != acme.ProblemTypeAlreadyReplaced || problem.Status != http.StatusConflict {
		t.Errorf("got %v, want alreadyReplaced", err)
	}
}
