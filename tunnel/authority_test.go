package tunnel_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// issued is a certificate for edge.test, signed by a CA of that name; signed by itself where ca is the zero Name.
func issued(t testing.TB, ca pkix.Name) tls.Certificate {
	t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "edge.test"}, DNSNames: []string{"edge.test"}, NotAfter: time.Now().Add(time.Hour)}
	key := newKey()
	parent, parentKey := leaf, key
	if ca.String() != "" {
		parent, parentKey = &x509.Certificate{Subject: ca}, newKey()
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// refused is why a client with this config does not talk to a server with this certificate.
func refused(t testing.TB, certificate tls.Certificate, config *tls.Config) error {
	t.Helper()
	dialed, accepted := tunneltest.Pair(t)
	served := make(chan error, 1)
	go func() {
		_, err := (&tunnel.TLS{ServerConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}}).Server(context.Background(), accepted, &tunnel.Info{})
		served <- err
	}()
	_, err := (&tunnel.TLS{ClientConfig: config}).Client(t.Context(), dialed)
	if err == nil {
		t.Fatal("the certificate was taken")
	}
	dialed.Close()
	<-served
	return err
}

// Who issued a certificate that is not trusted is told, and nothing of it can do harm to a terminal.
func TestUnknownAuthorityIsNamed(t *testing.T) {
	for name, test := range map[string]struct {
		ca    pkix.Name
		roots *x509.CertPool
		want  string
	}{
		"company":      {pkix.Name{CommonName: "ACME Web Gateway", Organization: []string{"ACME Inc"}}, nil, `the certificate was issued by "ACME Web Gateway" (ACME Inc), not by a public CA or one that this machine trusts`},
		"name alone":   {pkix.Name{CommonName: "Gateway"}, nil, `issued by "Gateway", not by a public CA`},
		"organization": {pkix.Name{Organization: []string{"ACME", "Security"}}, nil, `issued by "ACME, Security", not by`},
		"neither":      {pkix.Name{Country: []string{"CH"}}, nil, "issued by C=CH, not by"},
		"given roots":  {pkix.Name{CommonName: "Gateway"}, x509.NewCertPool(), `issued by "Gateway", not by a CA that is trusted here`},
		"escapes":      {pkix.Name{CommonName: "\x1b[31mACME\n\u202eCA"}, nil, `issued by "[31mACME CA", not by`},
		"long":         {pkix.Name{CommonName: strings.Repeat("x", 5000)}, nil, `issued by "` + strings.Repeat("x", 80) + `…", not by`},
		"self-signed":  {pkix.Name{}, nil, `the certificate is self-signed by "edge.test", not issued by a public CA`},
	} {
		t.Run(name, func(t *testing.T) {
			certificate := issued(t, test.ca)
			err := refused(t, certificate, &tls.Config{ServerName: "edge.test", RootCAs: test.roots})
			authority, ok := errors.AsType[*tunnel.AuthorityError](err)
			if !ok || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "tls handshake: the certificate ") {
				t.Fatalf("got  %v\nwant %s", err, test.want)
			}
			if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
				t.Errorf("what crypto/tls says is lost: %v", errors.Unwrap(err))
			}
			if authority.Pin != pinOf(t, certificate) {
				t.Errorf("the pin is %s, want %s", authority.Pin, pinOf(t, certificate))
			}
		})
	}
}

// A pin says nothing about CAs; one that does not fit names who made what came.
func TestPinErrorNamesIssuer(t *testing.T) {
	certificate := issued(t, pkix.Name{CommonName: "ACME Web Gateway"})
	err := refused(t, certificate, &tls.Config{InsecureSkipVerify: true, VerifyConnection: tunnel.VerifyPins([][]byte{make([]byte, 32)})})
	want := "the server's key is not the pinned one but " + pinOf(t, certificate) + `, in a certificate issued by "ACME Web Gateway"`
	if !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func pinOf(t testing.TB, certificate tls.Certificate) string {
	t.Helper()
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}
