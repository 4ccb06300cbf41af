package edge_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"raimon/internal/acmetest"
	"raimon/internal/commandtest"
)

// staple returns what the edge staples to the certificate of name; nil if nothing.
func (e *raimons) staple(name string) (*ocsp.Response, *x509.Certificate, error) {
	state, err := visit(e.tunnels, name, nil)
	if err != nil {
		return nil, nil, err
	}
	leaf, issuer := state.PeerCertificates[0], state.PeerCertificates[1]
	if state.OCSPResponse == nil {
		return nil, leaf, nil
	}
	response, err := ocsp.ParseResponseForCert(state.OCSPResponse, leaf, issuer)
	return response, leaf, err
}

// staples returns nil if the edge has a good staple for name.
func (e *raimons) staples(name string) error {
	response, _, err := e.staple(name)
	switch {
	case err != nil:
		return err
	case response == nil:
		return errors.New("no staple")
	case response.Status != ocsp.Good:
		return fmt.Errorf("status %d", response.Status)
	}
	return nil
}

// The staple is what other programs take for one, and there is a new one when half of its time has passed.
func TestStaple(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{OCSP: true})
	const validity = slow * 6 * time.Second
	ca.OCSP.SetValidity(validity)
	e := start(t, ca, "acme=a.test")
	ca.TLSALPN01.To(e.tunnels)
	eventually(t, func() error { return e.staples("a.test") })
	openSSLWantsStaple(t, e, ca)

	first, _, err := e.staple("a.test")
	if err != nil {
		t.Fatal(err)
	}
	var next *ocsp.Response
	eventually(t, func() error {
		next, _, err = e.staple("a.test")
		switch {
		case err != nil:
			return err
		case next == nil || !time.Now().Before(next.NextUpdate):
			t.Error("no staple, or an old one")
		case next.ThisUpdate.Equal(first.ThisUpdate):
			return errors.New("no new staple")
		}
		return nil
	})
	// Responses count in whole seconds.
	if after := next.ThisUpdate.Sub(first.ThisUpdate); after < validity/2-time.Second || after > validity-time.Second {
		t.Errorf("the new staple was made %v after the old one, which lasts for %v", after, validity)
	}
	if n := ca.OCSP.Requests(); n > 4 {
		t.Errorf("the responder was asked %d times", n)
	}
	e.wantQuiet(t)

	// Without a responder the last one is used up and then left away; clients go on.
	if err := ca.OCSP.Down(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		last, _, err := e.staple("a.test")
		switch {
		case err != nil:
			t.Error(err)
		case last != nil && !time.Now().Before(last.NextUpdate.Add(time.Second)):
			t.Errorf("a staple is shown that was good until %v", last.NextUpdate)
		case last != nil:
			return errors.New("still stapled")
		}
		return nil
	})
	e.shows(t, ca, "a.test")
}

func openSSLWantsStaple(t testing.TB, e *raimons, ca *acmetest.CA) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Log(err)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), commandtest.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", "s_client", "-connect", e.tunnels, "-servername", "a.test", "-status",
		"-CAfile", ca.IssuingRoot.File, "-verify_return_error", "-verify_hostname", "a.test")
	cmd.Stdin = strings.NewReader("")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		t.Errorf("%v\n%s", err, said.String())
	}
	for _, want := range []string{"OCSP Response Status: successful", "Cert Status: good", "Verify return code: 0 (ok)"} {
		if !strings.Contains(said.String(), want) {
			t.Errorf("openssl does not say %q:\n%s", want, said.String())
		}
	}
}

// The responder says that the CA has revoked the certificate: another one takes its place.
func TestRevokedIsReplaced(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{OCSP: true})
	ca.OCSP.SetValidity(slow * 4 * time.Second)
	e := start(t, ca, "acme=a.test,b.test")
	ca.TLSALPN01.To(e.tunnels)
	eventually(t, func() error { return errors.Join(e.staples("a.test"), e.staples("b.test")) })
	revoked, other := e.shows(t, ca, "a.test"), e.shows(t, ca, "b.test")
	clients := gather(t, e.tunnels, "a.test", ca.IssuingRoot.Pool)
	const keyCompromise = 1
	if err := ca.Revoke(revoked, keyCompromise); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		response, leaf, err := e.staple("a.test")
		switch {
		case err != nil:
			return err
		case leaf.Equal(revoked):
			return errors.New("the revoked certificate is shown")
		case response == nil:
			return errors.New("no staple for the new one")
		}
		return nil
	})
	e.Log.Wait(t, `"certificate was revoked by its CA: it is replaced"`)
	if n := len(e.lines(t, "certificate was revoked by its CA: it is replaced")); n != 1 {
		t.Errorf("%d lines about it, want 1", n)
	}
	if !e.shows(t, ca, "b.test").Equal(other) || len(ca.Issued()) != 3 {
		t.Errorf("%d certificates were issued, want 3, and that of b.test left alone", len(ca.Issued()))
	}
	clients.wantHappy(t, 10)
}

// A responder that never answers holds nothing up.
func TestResponderHangs(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{OCSP: true})
	ca.OCSP.Fail(acmetest.Hang())
	e := start(t, ca, "acme=a.test")
	ca.TLSALPN01.To(e.tunnels)
	eventually(t, func() error {
		if ca.OCSP.Requests() == 0 {
			return errors.New("the responder was not asked")
		}
		return nil
	})
	begun := time.Now()
	e.shows(t, ca, "a.test")
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("the handshake took %v", took)
	}
	begun = time.Now()
	e.end(t)
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("the end took %v", took)
	}
	e.wantQuiet(t)
}
