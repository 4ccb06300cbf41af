package edge_test

import (
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"raimon/internal/acmetest"
	"raimon/internal/commandtest"
)

// brief is a profile whose certificates are renewed every few seconds.
var brief = map[string]acmetest.Profile{"brief": {Validity: slow * 8 * time.Second}}

// A tunnel that is open does not notice renewals.
func TestTunnelAcrossRenewals(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{Profiles: brief})
	e := start(t, ca, "acme=a.test;profile=brief")
	ca.TLSALPN01.To(e.tunnels)
	client := commandtest.Start(t, exec.Command(filepath.Join(bin, "raimonc"), "127.0.0.1:0", e.tunnels, "tls;sni=a.test;ca="+ca.IssuingRoot.File))
	tunnel := commandtest.Dial(t, client.Address)
	first := e.shows(t, ca, "a.test")

	const renewals = 3
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	sent, late := uint64(0), time.Now().Add(2*slow*commandtest.Patience)
	for len(e.lines(t, "certificate renewed")) < renewals {
		if time.Now().After(late) {
			t.Fatalf("%d renewals only", len(e.lines(t, "certificate renewed")))
		}
		tunnel.SetDeadline(time.Now().Add(commandtest.Patience))
		if err := binary.Write(tunnel, binary.BigEndian, sent); err != nil {
			t.Fatal(err)
		}
		var got uint64
		if err := binary.Read(tunnel, binary.BigEndian, &got); err != nil || got != sent {
			t.Fatalf("got %d, %v; want %d", got, err, sent)
		}
		sent++
		<-pace.C
	}
	if err := tunnel.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(tunnel); err != nil || len(rest) > 0 {
		t.Errorf("the tunnel ends with %d bytes, %v", len(rest), err)
	}
	if time.Now().Before(first.NotAfter) {
		t.Errorf("%d renewals before the first certificate has ended", renewals)
	}
	// A new client of the same raimonc resumes or verifies the new certificate.
	if err := echoed(commandtest.Dial(t, client.Address)); err != nil {
		t.Error(err)
	}
	t.Logf("%d messages", sent)
	e.wantQuiet(t)
}

// The CA wants a certificate back long before its time (RFC 9773): a start asks for that.
func TestRenewalPulledForward(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	storage := t.TempDir()
	e := start(t, ca, "acme=a.test;storage="+storage)
	ca.TLSALPN01.To(e.tunnels)
	first := e.shows(t, ca, "a.test")
	e.end(t)
	now := time.Now()
	if err := ca.SuggestRenewal(first, now.Add(-2*time.Hour), now.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	e = start(t, ca, "acme=a.test;storage="+storage)
	ca.TLSALPN01.To(e.tunnels)
	e.Log.Wait(t, `"certificate renewed"`)
	second := e.shows(t, ca, "a.test")
	if second.Equal(first) || len(ca.Issued()) != 2 {
		t.Errorf("%d certificates were issued, want 2", len(ca.Issued()))
	}
	e.wantQuiet(t)
}

// In a row, each CA is asked when those before it fail, and the first one again when its time has come.
func TestSecondCA(t *testing.T) {
	t.Parallel()
	first := acmetest.New(t, acmetest.Config{Profiles: brief})
	second := acmetest.New(t, acmetest.Config{Profiles: brief})
	if err := first.Down(); err != nil {
		t.Fatal(err)
	}
	roots := file(t, "roots.pem", string(first.Root.PEM)+string(second.Root.PEM))
	e := start(t, first, "acme=a.test;profile=brief;acme-root="+roots+";acme-ca="+first.Directory+","+second.Directory)
	first.TLSALPN01.To(e.tunnels)
	second.TLSALPN01.To(e.tunnels)
	e.shows(t, second, "a.test")
	if err := first.Up(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := visit(e.tunnels, "a.test", first.IssuingRoot.Pool)
		return err
	})
	if n := len(second.Issued()); n != 1 {
		t.Errorf("the second CA was asked for %d certificates, want 1", n)
	}

	// And back, while clients come and go: either certificate is good.
	both := x509.NewCertPool()
	both.AddCert(first.IssuingRoot.Certificate)
	both.AddCert(second.IssuingRoot.Certificate)
	clients := gather(t, e.tunnels, "a.test", both)
	first.Fail(acmetest.RateLimited(time.Hour), acmetest.NewOrder)
	eventually(t, func() error {
		_, err := visit(e.tunnels, "a.test", second.IssuingRoot.Pool)
		return err
	})
	clients.wantHappy(t, 10)
	if e.Log.Count(`"level":"ERROR"`) > 0 {
		t.Error("there are errors in the log, though there always was a certificate to be had")
	}
}

// All CAs are down when the edge starts again: what is on disk is served, at once.
func TestRestartWithoutCA(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		take func(*acmetest.CA) error
	}{
		{"refused", func(ca *acmetest.CA) error { return errors.Join(ca.Down(), ca.OCSP.Down()) }},
		{"hangs", func(ca *acmetest.CA) error {
			ca.Fail(acmetest.Hang())
			ca.OCSP.Fail(acmetest.Hang())
			return nil
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ca := acmetest.New(t, acmetest.Config{OCSP: true})
			storage := t.TempDir()
			options := "acme=a.test,b.test;storage=" + storage
			e := start(t, ca, options)
			ca.TLSALPN01.To(e.tunnels)
			certs := map[string]*x509.Certificate{"a.test": nil, "b.test": nil}
			for name := range certs {
				certs[name] = e.shows(t, ca, name)
			}
			eventually(t, func() error { return e.staples("a.test") })
			e.end(t)

			if err := test.take(ca); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			e = start(t, ca, options)
			for name, cert := range certs {
				if !e.shows(t, ca, name).Equal(cert) {
					t.Errorf("%s: another certificate is shown", name)
				}
			}
			took := time.Since(begun)
			t.Logf("two handshakes %v after the start of the process", took)
			if took > 3*time.Second {
				t.Error("too long")
			}
			if err := e.staples("a.test"); err != nil {
				t.Errorf("the stored staple: %v", err)
			}
			e.wantQuiet(t)
			begun = time.Now()
			e.end(t)
			if took := time.Since(begun); took > 3*time.Second {
				t.Errorf("the end took %v", took)
			}
		})
	}
}

// A certificate that has ended while the edge was down is no reason to wait for anything but the new one.
func TestRestartWithExpired(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{Profiles: map[string]acmetest.Profile{"brief": {Validity: 2 * time.Second}, "long": {Validity: time.Hour}}})
	storage := t.TempDir()
	e := start(t, ca, "acme=a.test;profile=brief;storage="+storage)
	ca.TLSALPN01.To(e.tunnels)
	e.Log.Wait(t, `"certificate obtained"`)
	e.end(t)
	issued := ca.Issued()
	last := issued[len(issued)-1]
	eventually(t, func() error {
		if left := time.Until(last.NotAfter) + time.Second; left > 0 {
			return fmt.Errorf("still valid for %v", left)
		}
		return nil
	})
	e = start(t, ca, "acme=a.test;profile=long;storage="+storage)
	ca.TLSALPN01.To(e.tunnels)
	e.Log.Wait(t, `"certificate renewed"`)
	if leaf := e.shows(t, ca, "a.test"); time.Until(leaf.NotAfter) < 50*time.Minute {
		t.Errorf("valid until %v", leaf.NotAfter)
	}
}
