package acmetest_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	acmez "github.com/mholt/acmez/v3/acme"
	"golang.org/x/crypto/acme"

	"raimon/internal/acmetest"
)

// site answers HTTP-01, for both clients.
type site struct {
	address string
	server  *httptest.Server

	mu      sync.Mutex
	answers map[string]string // by path
	visits  int
}

// newSite returns a site that ca validates at.
func newSite(t testing.TB, ca *acmetest.CA) *site {
	t.Helper()
	s := startSite(t, "127.0.0.1:0")
	ca.HTTP01.To(s.address)
	return s
}

func startSite(t testing.TB, address string) *site {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{address: listener.Addr().String(), answers: map[string]string{}}
	s.server = &httptest.Server{Listener: listener, Config: &http.Server{Handler: s}}
	s.server.Start()
	t.Cleanup(s.server.Close)
	return s
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.visits++
	answer, found := s.answers[r.URL.Path]
	if !found {
		http.NotFound(w, r)
		return
	}
	io.WriteString(w, answer)
}

func (s *site) set(path, answer string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[path] = answer
}

func (s *site) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.visits
}

func (*site) challengeType() string { return "http-01" }

func (s *site) present(t testing.TB, c *acme.Client, _ string, challenge *acme.Challenge) {
	t.Helper()
	answer, err := c.HTTP01ChallengeResponse(challenge.Token)
	if err != nil {
		t.Fatal(err)
	}
	s.set(c.HTTP01ChallengePath(challenge.Token), answer)
}

// Present and CleanUp are acmez.Solver.
func (s *site) Present(_ context.Context, challenge acmez.Challenge) error {
	s.set(challenge.HTTP01ResourcePath(), challenge.KeyAuthorization)
	return nil
}

func (*site) CleanUp(context.Context, acmez.Challenge) error { return nil }

// tlsSite answers TLS-ALPN-01.
type tlsSite struct {
	mu           sync.Mutex
	certificates map[string]tls.Certificate // by server name
}

func newTLSSite(t testing.TB, ca *acmetest.CA) *tlsSite {
	t.Helper()
	s := &tlsSite{certificates: map[string]tls.Certificate{}}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		NextProtos: []string{"acme-tls/1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			certificate := s.certificates[hello.ServerName]
			return &certificate, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ended.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			ended.Go(func() {
				defer conn.Close()
				conn.(*tls.Conn).Handshake() // the CA tells whether it was to its liking
			})
		}
	})
	t.Cleanup(func() { listener.Close(); ended.Wait() })
	ca.TLSALPN01.To(listener.Addr().String())
	return s
}

func (*tlsSite) challengeType() string { return "tls-alpn-01" }

func (s *tlsSite) present(t testing.TB, c *acme.Client, identifier string, challenge *acme.Challenge) {
	t.Helper()
	certificate, err := c.TLSALPN01ChallengeCert(challenge.Token, identifier)
	if err != nil {
		t.Fatal(err)
	}
	name := identifier
	if ip := net.ParseIP(identifier).To4(); ip != nil {
		// RFC 8738, section 6
		name = net.IPv4(ip[3], ip[2], ip[1], ip[0]).String() + ".in-addr.arpa"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.certificates[name] = certificate
}

// zone answers DNS-01.
type zone struct{ dns *acmetest.DNS }

func (zone) challengeType() string { return "dns-01" }

func (z zone) present(t testing.TB, c *acme.Client, identifier string, challenge *acme.Challenge) {
	t.Helper()
	record, err := c.DNS01ChallengeRecord(challenge.Token)
	if err != nil {
		t.Fatal(err)
	}
	z.dns.SetTXT("_acme-challenge."+strings.TrimPrefix(identifier, "*."), record)
}
