package edge

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

func clientName(t testing.TB, s string) ClientName {
	t.Helper()
	name, err := ParseClientName(s)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestClientName(t *testing.T) {
	ca := newAuthority(t, "CA")
	uri, err := url.Parse("spiffe://example.com/alice")
	if err != nil {
		t.Fatal(err)
	}
	cert := ca.client(t, "alice", func(c *x509.Certificate) {
		c.DNSNames, c.URIs = []string{"laptop.example.com", "*.example.org"}, []*url.URL{uri}
	}).Leaf
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	pin := base64.StdEncoding.EncodeToString(sum[:])
	for s, want := range map[string]bool{
		"*": true, "CN:alice": true, "cn:alice": true, "CN:Alice": false, "CN:ali": false, "CN:laptop.example.com": false,
		"DNS:laptop.example.com": true, "DNS:LAPTOP.example.com.": true, "DNS:alice": false, "DNS:a.example.org": false, "DNS:*.example.org": true,
		"URI:spiffe://example.com/alice": true, "URI:spiffe://example.com/bob": false,
		"SPKI:" + pin: true, "SPKI:" + strings.TrimRight(pin, "="): true, "SPKI:" + base64.StdEncoding.EncodeToString(make([]byte, 32)): false,
	} {
		if got := clientName(t, s).matches(cert); got != want {
			t.Errorf("%s: %v, want %v", s, got, want)
		}
	}
	if (ClientName{}).matches(cert) || (ClientName{}).matches(&x509.Certificate{}) {
		t.Error("the zero value is somebody's")
	}
	for _, s := range []string{"", "alice", "CN:", "CN", "DNS: ", "CN: alice", "OU:x", "URI:alice", "URI:%zz", "SPKI:AAAA", "SPKI:!", "**"} {
		_, err := ParseClientName(s)
		var hinted interface{ Hint() string }
		if !errors.As(err, &hinted) || !strings.Contains(hinted.Hint(), `"CN:alice"`) {
			t.Errorf("%q: no error with a hint: %v", s, err)
		}
	}
}

func TestAccess(t *testing.T) {
	ca := newAuthority(t, "CA")
	state := func(cert *x509.Certificate) *tls.ConnectionState {
		return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}, VerifiedChains: [][]*x509.Certificate{{cert, ca.cert}}}
	}
	alice := state(ca.client(t, "alice").Leaf)
	nameless := state(ca.client(t, "", func(c *x509.Certificate) { c.Subject, c.DNSNames = pkix.Name{}, []string{"laptop.test"} }).Leaf)
	unverified := &tls.ConnectionState{PeerCertificates: alice.PeerCertificates}
	tokens, _ := newTokens(t, "bob "+HashToken("bob's"))
	if err := tokens.Load(); err != nil {
		t.Fatal(err)
	}
	empty := new(Tokens)
	home := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	names := []ClientName{clientName(t, "CN:carol"), clientName(t, "CN:alice")}
	at := func(ip string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip)} }

	for name, test := range map[string]struct {
		access Access
		client net.Addr
		state  *tls.ConnectionState
		header []string
		user   string
		ok     bool
	}{
		"everybody":                  {Access{}, at("198.51.100.1"), nil, nil, "", true},
		"everybody, with a name":     {Access{}, at("198.51.100.1"), alice, nil, "alice", true},
		"not verified, no name":      {Access{}, at("198.51.100.1"), unverified, nil, "", true},
		"at home":                    {Access{From: home}, at("192.0.2.7"), nil, nil, "", true},
		"at home, mapped":            {Access{From: home}, at("::ffff:192.0.2.7"), nil, nil, "", true},
		"at home, v6":                {Access{From: home}, at("2001:db8::1"), nil, nil, "", true},
		"elsewhere":                  {Access{From: home}, at("198.51.100.1"), nil, nil, "", false},
		"on a Unix socket":           {Access{From: home}, &net.UnixAddr{}, nil, nil, "", false},
		"no networks at all":         {Access{From: []netip.Prefix{}}, at("192.0.2.7"), nil, nil, "", false},
		"token":                      {Access{Tokens: tokens}, at("198.51.100.1"), nil, []string{"Bearer bob's"}, "bob", true},
		"token, other case":          {Access{Tokens: tokens}, at("198.51.100.1"), nil, []string{"bEARER  bob's "}, "bob", true},
		"token before certificate":   {Access{Tokens: tokens, Clients: names}, at("198.51.100.1"), alice, []string{"Bearer bob's"}, "bob", true},
		"no token":                   {Access{Tokens: tokens}, at("198.51.100.1"), alice, nil, "", false},
		"other token":                {Access{Tokens: tokens}, at("198.51.100.1"), nil, []string{"Bearer bob'"}, "", false},
		"empty token":                {Access{Tokens: tokens}, at("198.51.100.1"), nil, []string{"Bearer "}, "", false},
		"two tokens":                 {Access{Tokens: tokens}, at("198.51.100.1"), nil, []string{"Bearer bob's", "Bearer bob's"}, "", false},
		"other scheme":               {Access{Tokens: tokens}, at("198.51.100.1"), nil, []string{"Basic bob's"}, "", false},
		"the hash":                   {Access{Tokens: tokens}, at("198.51.100.1"), nil, []string{"Bearer " + HashToken("bob's")}, "", false},
		"tokens without a file":      {Access{Tokens: empty}, at("198.51.100.1"), nil, []string{"Bearer bob's"}, "", false},
		"token, elsewhere":           {Access{Tokens: tokens, From: home}, at("198.51.100.1"), nil, []string{"Bearer bob's"}, "", false},
		"certificate":                {Access{Clients: names}, at("198.51.100.1"), alice, nil, "alice", true},
		"any certificate":            {Access{Clients: []ClientName{clientName(t, "*")}}, at("198.51.100.1"), nameless, nil, "laptop.test", true},
		"other certificate":          {Access{Clients: names}, at("198.51.100.1"), nameless, nil, "", false},
		"certificate, not verified":  {Access{Clients: names}, at("198.51.100.1"), unverified, nil, "", false},
		"no certificate":             {Access{Clients: names}, at("198.51.100.1"), &tls.ConnectionState{}, nil, "", false},
		"certificates without TLS":   {Access{Clients: []ClientName{clientName(t, "*")}}, at("198.51.100.1"), nil, nil, "", false},
		"nobody's certificate":       {Access{Clients: []ClientName{}}, at("198.51.100.1"), alice, nil, "", false},
		"certificate, but no token":  {Access{Tokens: tokens, Clients: names}, at("198.51.100.1"), alice, nil, "", false},
		"token, other certificate":   {Access{Tokens: tokens, Clients: names}, at("198.51.100.1"), nameless, []string{"Bearer bob's"}, "", false},
		"all three of them":          {Access{From: home, Tokens: tokens, Clients: names}, at("192.0.2.7"), alice, []string{"Bearer bob's"}, "bob", true},
		"all but the right network":  {Access{From: home, Tokens: tokens, Clients: names}, at("192.0.3.7"), alice, []string{"Bearer bob's"}, "", false},
		"token in a header in vain":  {Access{}, at("198.51.100.1"), nil, []string{"Bearer whatever"}, "", true},
		"a name for who has no name": {Access{}, at("198.51.100.1"), nameless, nil, "laptop.test", true},
	} {
		t.Run(name, func(t *testing.T) {
			r := &http.Request{Header: http.Header{}}
			if test.header != nil {
				r.Header["Authorization"] = test.header
			}
			user, ok := test.access.allows(r, &tunnel.Info{Client: test.client, TLS: test.state})
			if user != test.user || ok != test.ok {
				t.Errorf("got %q, %v, want %q, %v", user, ok, test.user, test.ok)
			}
		})
	}
	if _, ok := (&Access{Tokens: tokens}).allows(nil, &tunnel.Info{Client: at("192.0.2.7")}); ok {
		t.Error("somebody without HTTP has shown a token")
	}
}

// runServer runs a server with this config until the test ends, and returns the address of its only listener.
func runServer(t testing.TB, s *Server, c *Config) string {
	t.Helper()
	if err := s.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("server: %v", err)
		}
	})
	return s.Listeners()[c.Listeners[0].Address].Addr().String()
}

const upgradeFields = "Host: a.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

// askPlain sends a request and returns the answer without its date.
func askPlain(t testing.TB, address, path, fields string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\n%s%s\r\n", path, upgradeFields, fields)
	c.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	var rest strings.Builder
	for line := range strings.Lines(string(answer)) {
		if !strings.HasPrefix(line, "Date: ") {
			rest.WriteString(line)
		}
	}
	return rest.String()
}

// Whoever has no token gets the answer that any other path gives, to the byte, with or without a site behind.
func TestTokenOpensTheRoute(t *testing.T) {
	tokens, _ := newTokens(t, "bob "+HashToken("bob's-token"))
	if err := tokens.Load(); err != nil {
		t.Fatal(err)
	}
	for name, behind := range map[string]http.Handler{
		"nothing behind": nil,
		"a site behind":  http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "welcome\n") }),
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			logged := new(logLines)
			server := &Server{Log: slog.New(slog.NewTextHandler(logged, &slog.HandlerOptions{Level: slog.LevelDebug}))}
			address := runServer(t, server, &Config{
				Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}},
				Sites: []*Site{{Label: "a", Behind: behind, Routes: []*Route{
					{Path: "/ws", Target: tunneltest.Echo(t), Access: Access{Tokens: tokens}},
					{Path: "/home", Target: tunneltest.Echo(t), Access: Access{From: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}},
				}}},
			})
			want := askPlain(t, address, "/other", "")
			for _, test := range [][2]string{
				{"/ws", ""}, {"/ws", "Authorization: Bearer wrong\r\n"}, {"/ws", "Authorization: Basic Ym9iOnM=\r\n"}, {"/home", ""},
				{"/ws", "Authorization: Bearer bob's-token\r\nAuthorization: Bearer bob's-token\r\n"},
				{"/other", "Authorization: Bearer bob's-token\r\n"}, {"/home", "Authorization: Bearer bob's-token\r\n"},
			} {
				if got := askPlain(t, address, test[0], test[1]); got != want {
					t.Errorf("%q: got\n%s\nwant that of another path:\n%s", test, got, want)
				}
			}

			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			layer := &tunnel.WebSocket{Host: "a.test", Path: "/ws", Token: func(context.Context) (string, error) { return "bob's-token", nil }}
			up, err := layer.Client(t.Context(), c.(tunnel.Conn))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(up, "hello\n"); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(up).ReadString('\n'); line != "hello\n" || err != nil {
				t.Errorf("got %q, %v", line, err)
			}
			if open := server.Tunnels(); len(open) != 1 || open[0].User != "bob" {
				t.Errorf("open are %+v, want one of bob", open)
			}
			if lines := strings.Join(logged.take(), ""); lines == "" || strings.Contains(lines, "bob's-token") {
				t.Errorf("logged %q", lines)
			}
		})
	}
}
