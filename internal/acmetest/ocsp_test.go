package acmetest_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/ocsp"

	"raimon/internal/acmetest"
)

func TestOCSP(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{OCSP: true})
	ca.OCSP.SetValidity(7 * time.Second)
	c, s := newClient(t, ca), newSite(t, ca)
	certificate := mustObtain(t, c, s, "example.com")
	wantIssued(t, ca, certificate, "example.com")
	if len(certificate.OCSPServer) != 1 || certificate.OCSPServer[0] != ca.OCSP.URL {
		t.Errorf("responders: %v, want %s", certificate.OCSPServer, ca.OCSP.URL)
	}

	for method, ask := range map[string]askOCSP{"POST": post, "GET": get} {
		answer, err := ask(t, certificate, ca.Issuer())
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		if answer.Status != ocsp.Good || answer.NextUpdate.Sub(answer.ThisUpdate) != 7*time.Second {
			t.Errorf("%s: status %d from %v to %v", method, answer.Status, answer.ThisUpdate, answer.NextUpdate)
		}
	}

	if err := c.RevokeCert(t.Context(), nil, certificate.Raw, acme.CRLReasonKeyCompromise); err != nil {
		t.Fatal(err)
	}
	answer, err := post(t, certificate, ca.Issuer())
	if err != nil || answer.Status != ocsp.Revoked || answer.RevocationReason != ocsp.KeyCompromise {
		t.Errorf("revoked: %+v, %v", answer, err)
	}
	if !ca.Revoked(certificate) || ca.OCSP.Requests() != 3 {
		t.Errorf("revoked: %t; %d requests", ca.Revoked(certificate), ca.OCSP.Requests())
	}
}

func TestOCSPOfOthers(t *testing.T) {
	t.Parallel()
	ca, other := acmetest.New(t, acmetest.Config{OCSP: true}), acmetest.New(t, acmetest.Config{})
	certificate := mustObtain(t, newClient(t, other), newSite(t, other), "example.com")
	certificate.OCSPServer = []string{ca.OCSP.URL}

	answer, err := post(t, certificate, ca.Issuer())
	if err != nil || answer.Status != ocsp.Unknown {
		t.Errorf("unknown serial number: %+v, %v", answer, err)
	}
	_, err = post(t, certificate, other.Issuer())
	wantOCSPError(t, err, ocsp.Unauthorized)
}

func TestOCSPFaults(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{OCSP: true})
	certificate := mustObtain(t, newClient(t, ca), newSite(t, ca), "example.com")

	ca.OCSP.Fail(acmetest.TryLater())
	_, err := post(t, certificate, ca.Issuer())
	wantOCSPError(t, err, ocsp.TryLater)

	ca.OCSP.Fail(acmetest.Hang())
	before := ca.OCSP.Requests()
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	ended := make(chan error, 1)
	go func() {
		_, err := exchange(ctx, http.MethodPost, ca.OCSP.URL, []byte("x"))
		ended <- err
	}()
	waitFor(t, "request", func() bool { return ca.OCSP.Requests() > before })
	giveUp()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("hang: %v", err)
	}

	ca.OCSP.Mend()
	body, err := exchange(t.Context(), http.MethodPost, ca.OCSP.URL, []byte("no request"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = ocsp.ParseResponse(body, nil)
	wantOCSPError(t, err, ocsp.Malformed)

	if err := ca.OCSP.Down(); err != nil {
		t.Fatal(err)
	}
	if _, err := exchange(t.Context(), http.MethodPost, ca.OCSP.URL, nil); err == nil {
		t.Error("down: an answer came")
	}
	if err := ca.OCSP.Up(); err != nil {
		t.Fatal(err)
	}
	if answer, err := post(t, certificate, ca.Issuer()); err != nil || answer.Status != ocsp.Good {
		t.Errorf("up again: %+v, %v", answer, err)
	}
}

func wantOCSPError(t testing.TB, err error, status ocsp.ResponseStatus) {
	t.Helper()
	if got, ok := errors.AsType[ocsp.ResponseError](err); !ok || got.Status != status {
		t.Errorf("got %v, want %v", err, status)
	}
}

type askOCSP func(t testing.TB, certificate, issuer *x509.Certificate) (*ocsp.Response, error)

func post(t testing.TB, certificate, issuer *x509.Certificate) (*ocsp.Response, error) {
	t.Helper()
	request := newOCSPRequest(t, certificate, issuer)
	body, err := exchange(t.Context(), http.MethodPost, certificate.OCSPServer[0], request)
	if err != nil {
		return nil, err
	}
	return ocsp.ParseResponseForCert(body, certificate, issuer)
}

func get(t testing.TB, certificate, issuer *x509.Certificate) (*ocsp.Response, error) {
	t.Helper()
	text := base64.StdEncoding.EncodeToString(newOCSPRequest(t, certificate, issuer))
	body, err := exchange(t.Context(), http.MethodGet, certificate.OCSPServer[0]+"/"+url.QueryEscape(text), nil)
	if err != nil {
		return nil, err
	}
	return ocsp.ParseResponseForCert(body, certificate, issuer)
}

func newOCSPRequest(t testing.TB, certificate, issuer *x509.Certificate) []byte {
	t.Helper()
	request, err := ocsp.CreateRequest(certificate, issuer, nil)
	if err != nil {
		t.Fatal(err)
	}
	return request
}

func exchange(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Close = true
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	return io.ReadAll(answer.Body)
}
