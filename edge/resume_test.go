package edge

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/storage"
)

// clientPolicies are the ways in which sites of a test ask for client certificates.
type clientPolicies struct {
	one, two *authority
	server   tls.Certificate
}

func newClientPolicies(t testing.TB) *clientPolicies {
	t.Helper()
	return &clientPolicies{one: newAuthority(t, "one"), two: newAuthority(t, "two"), server: ticketCert(t)}
}

var clientPolicyNames = []string{"none", "one", "one-required", "two", "two-required"}

// clients is what a site with this policy asks for, and the certificate that a client shows it.
func (p *clientPolicies) clients(t testing.TB, policy string) (*Clients, *tls.Certificate) {
	t.Helper()
	ca := map[string]*authority{"one": p.one, "one-required": p.one, "two": p.two, "two-required": p.two}[policy]
	if ca == nil {
		return nil, nil
	}
	c, _ := newClients(t, nil, ca)
	c.Required = policy != "one" && policy != "two"
	c.load(t)
	cert := ca.client(t, "alice")
	return c, &cert
}

// siteOf makes the site of this name with this policy.
func (p *clientPolicies) siteOf(t testing.TB, name, policy string) resumeSite {
	t.Helper()
	clients, cert := p.clients(t, policy)
	certificate := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &p.server, nil }
	return resumeSite{policy, cert, &Site{Names: []string{name}, Certificate: certificate, Clients: clients}}
}

// resumeSite is a site, and what a client has to show it.
type resumeSite struct {
	policy string
	shows  *tls.Certificate
	*Site
}

// config serves two sites of each policy. Turn moves the policies along the names.
func (p *clientPolicies) config(t testing.TB, turn int) (*Config, []resumeSite) {
	t.Helper()
	c := &Config{Listeners: []Listener{{Address: "127.0.0.1:0"}}}
	var sites []resumeSite
	for copy := range 2 {
		for n := range clientPolicyNames {
			policy := clientPolicyNames[(n+turn)%len(clientPolicyNames)]
			site := p.siteOf(t, fmt.Sprintf("site%d-%d.test", n, copy), policy)
			sites = append(sites, site)
			c.Sites = append(c.Sites, site.Site)
		}
	}
	return c, sites
}

// visitor is a client that asks a site for a page, over a TLS session that it may have a ticket for.
type visitor struct {
	ticketHolder
	conn *tls.Conn
	read *bufio.Reader
}

// connect shakes hands with the site at address and asks it for a page.
func (v *visitor) connect(t testing.TB, address string, site resumeSite) (resumed bool, err error) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	config := &tls.Config{
		ServerName: site.Names[0], InsecureSkipVerify: true, ClientSessionCache: v, MinVersion: v.version, MaxVersion: v.version,
		NextProtos: []string{"http/1.1"},
	}
	if site.shows != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return site.shows, nil }
	}
	v.conn = tls.Client(c, config)
	v.read = bufio.NewReader(v.conn)
	status, err := v.ask(site)
	if err == nil && status != http.StatusNotFound {
		t.Errorf("%s answers %d", site.Names[0], status)
	}
	return v.conn.ConnectionState().DidResume, err
}

// ask asks for a page on the connection that is there.
func (v *visitor) ask(site resumeSite) (status int, err error) {
	if _, err := fmt.Fprintf(v.conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", site.Names[0]); err != nil {
		return 0, err
	}
	answer, err := http.ReadResponse(v.read, nil)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return 0, err
	}
	return answer.StatusCode, nil
}

// hangUp says goodbye.
func (v *visitor) hangUp() { v.conn.Close() }

// visit is connect and hangUp, of which nothing may go wrong.
func (v *visitor) visit(t testing.TB, address string, site resumeSite) (resumed bool) {
	t.Helper()
	resumed, err := v.connect(t, address, site)
	if err != nil {
		t.Fatalf("%s (%s): %v", site.Names[0], site.policy, err)
	}
	v.hangUp()
	return resumed
}

// newVisitors gets a ticket from each site.
func newVisitors(t testing.TB, version uint16, address string, sites []resumeSite) []*visitor {
	t.Helper()
	visitors := make([]*visitor, len(sites))
	for n, site := range sites {
		visitors[n] = &visitor{ticketHolder: ticketHolder{version: version}}
		if visitors[n].visit(t, address, site) {
			t.Fatal("resumed without a ticket")
		}
		if visitors[n].ticket == nil {
			t.Fatalf("%s (%s) gives no ticket", site.Names[0], site.policy)
		}
		visitors[n].keeps = true
	}
	return visitors
}

// wantTickets offers the ticket of each visitor, which has it from the site of the same number in from, to each of sites at
// address: it is good at its own site only, if that still has its policy.
func wantTickets(t *testing.T, visitors []*visitor, from []resumeSite, address string, sites []resumeSite) {
	t.Helper()
	for a, v := range visitors {
		for _, site := range sites {
			want := from[a].Names[0] == site.Names[0] && from[a].policy == site.policy
			if got := v.visit(t, address, site); got != want {
				t.Errorf("a ticket of %s (%s) at %s (%s): resumed %v, want %v",
					from[a].Names[0], from[a].policy, site.Names[0], site.policy, got, want)
			}
		}
	}
}

// versions runs test with TLS 1.2 and 1.3.
func versions(t *testing.T, test func(t *testing.T, version uint16)) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) { test(t, version) })
	}
}

// Behind one GetConfigForClient crypto/tls takes the tickets of every site at every other (golang/go#77217).
func TestTicketsOfEachSiteAtEachOther(t *testing.T) {
	for name, tickets := range map[string]func(t testing.TB) *TicketKeys{
		"without TicketKeys": func(testing.TB) *TicketKeys { return nil },
		"with TicketKeys":    func(t testing.TB) *TicketKeys { return runningKeys(t, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			versions(t, func(t *testing.T, version uint16) {
				tunneltest.NoLeaks(t)
				p := newClientPolicies(t)
				server := &Server{Tickets: tickets(t)}
				config, sites := p.config(t, 0)
				address := runServer(t, server, config)
				visitors := newVisitors(t, version, address, sites)
				wantTickets(t, visitors, sites, address, sites)

				t.Log("the same again, all of it made anew")
				again, sitesAgain := p.config(t, 0)
				if err := server.Apply(t.Context(), again); err != nil {
					t.Fatal(err)
				}
				wantTickets(t, visitors, sites, address, sitesAgain)

				t.Log("each site has the policy of its neighbour")
				turned, sitesTurned := p.config(t, 1)
				if err := server.Apply(t.Context(), turned); err != nil {
					t.Fatal(err)
				}
				wantTickets(t, visitors, sites, address, sitesTurned)

				t.Log("and back")
				if err := server.Apply(t.Context(), config); err != nil {
					t.Fatal(err)
				}
				wantTickets(t, visitors, sites, address, sites)
			})
		})
	}
}

// runningKeys runs TicketKeys until the test ends.
func runningKeys(t testing.TB, storage KeyStorage) *TicketKeys {
	t.Helper()
	keys := &TicketKeys{Storage: storage, Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		keys.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return keys
}

// Edges with one storage take each other's tickets, each site those of its namesake with the same policy.
func TestTicketsOfEachSiteAtAnotherEdge(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		tunneltest.NoLeaks(t)
		p := newClientPolicies(t)
		root := t.TempDir()
		edges := make([]*Server, 3)
		addresses := make([]string, len(edges))
		sites := make([][]resumeSite, len(edges))
		for n := range edges {
			edges[n] = &Server{Tickets: runningKeys(t, &storage.File{Root: root})}
			config, all := p.config(t, n/2) // the last has other policies
			addresses[n], sites[n] = runServer(t, edges[n], config), all
		}
		awaitSharedKeys(t, edges)
		visitors := newVisitors(t, version, addresses[0], sites[0])
		for n := range edges {
			wantTickets(t, visitors, sites[0], addresses[n], sites[n])
		}
	})
}

// awaitSharedKeys waits until all edges encrypt with the key in their storage.
func awaitSharedKeys(t testing.TB, edges []*Server) {
	t.Helper()
	eventually(t, "the edges have the same keys", func() bool {
		var first []ticketSecret
		for n, e := range edges {
			e.Tickets.mu.Lock()
			stored, inUse := slices.Clone(e.Tickets.stored), slices.Clone(e.Tickets.inUse)
			e.Tickets.mu.Unlock()
			if n == 0 {
				first = inUse
			}
			if len(stored) == 0 || !slices.Contains(stored, inUse[0]) || inUse[0] != first[0] {
				return false
			}
		}
		return true
	})
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for look := time.NewTicker(2 * time.Millisecond); !holds(); {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatalf("not after 20 s: %s", what)
		}
	}
}

// Who is revoked gets in neither by a ticket nor by a connection that is open.
func TestRevokedByResumption(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		tunneltest.NoLeaks(t)
		for _, policy := range []string{"one", "one-required"} {
			p := newClientPolicies(t)
			site := p.siteOf(t, "a.test", policy)
			clients := site.Clients
			clients.CRL, clients.Interval = clients.CA+".crl", 2*time.Millisecond
			write(t, clients.CRL, listPEM(p.one.list(t, nil)))
			clients.load(t)
			watchClients(t, clients)
			address := runServer(t, &Server{}, &Config{Listeners: []Listener{{Address: "127.0.0.1:0"}}, Sites: []*Site{site.Site}})

			v := newVisitors(t, version, address, []resumeSite{site})[0]
			if !v.visit(t, address, site) {
				t.Fatal("a good client does not resume")
			}
			open := &visitor{ticketHolder: ticketHolder{version: version}}
			if _, err := open.connect(t, address, site); err != nil {
				t.Fatal(err)
			}
			defer open.hangUp()

			replace(t, clients.CRL, listPEM(p.one.list(t, []*x509.Certificate{site.shows.Leaf})))
			eventually(t, "the list is in use", func() bool { return clients.inUse.Load().revocations() == 1 })
			if _, err := v.connect(t, address, site); err == nil {
				t.Errorf("%s: a revoked client resumes", policy)
			}
			v.hangUp()
			fresh := &visitor{ticketHolder: ticketHolder{version: version}}
			if _, err := fresh.connect(t, address, site); err == nil {
				t.Errorf("%s: a revoked client gets in", policy)
			}
			fresh.hangUp()
			if status, err := open.ask(site); status != http.StatusMisdirectedRequest {
				t.Errorf("%s: on an open connection a revoked client gets %d, %v", policy, status, err)
			}

			renewed := p.one.client(t, "alice")
			site.shows = &renewed
			if (&visitor{ticketHolder: ticketHolder{version: version}}).visit(t, address, site) {
				t.Error("resumed without a ticket")
			}
		}
	})
}

// The file of CAs may change: the old CA's clients then get in neither by a ticket nor otherwise, the new one's do.
func TestOtherCAsWhileRunning(t *testing.T) {
	versions(t, func(t *testing.T, version uint16) {
		tunneltest.NoLeaks(t)
		p := newClientPolicies(t)
		site := p.siteOf(t, "a.test", "one-required")
		clients := site.Clients
		clients.Interval = 2 * time.Millisecond
		watchClients(t, clients)
		address := runServer(t, &Server{}, &Config{Listeners: []Listener{{Address: "127.0.0.1:0"}}, Sites: []*Site{site.Site}})
		v := newVisitors(t, version, address, []resumeSite{site})[0]
		open := &visitor{ticketHolder: ticketHolder{version: version}}
		if _, err := open.connect(t, address, site); err != nil {
			t.Fatal(err)
		}
		defer open.hangUp()

		policy := clients.policy()
		replace(t, clients.CA, authoritiesPEM(p.two))
		eventually(t, "the other CA is in use", func() bool { return clients.policy() != policy })
		if _, err := v.connect(t, address, site); err == nil {
			t.Error("a client of the CA that is gone gets in")
		}
		v.hangUp()
		if status, err := open.ask(site); status != http.StatusMisdirectedRequest {
			t.Errorf("on an open connection a client of the CA that is gone gets %d, %v", status, err)
		}

		other := p.two.client(t, "bob")
		site.shows = &other
		if v.visit(t, address, site) {
			t.Error("a ticket from before the change is good")
		}
		bob := newVisitors(t, version, address, []resumeSite{site})[0]
		if !bob.visit(t, address, site) {
			t.Error("a client of the new CA does not resume")
		}

		t.Log("and back: the tickets of the old CA are good again, those of the other are not")
		replace(t, clients.CA, authoritiesPEM(p.one))
		eventually(t, "the first CA is in use again", func() bool { return clients.policy() == policy })
		if _, err := bob.connect(t, address, site); err == nil {
			t.Error("a client of the second CA gets in")
		}
		bob.hangUp()
		if !v.visit(t, address, site) {
			t.Error("a client of the first CA does not resume")
		}
	})
}

func watchClients(t testing.TB, c *Clients) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.Watch(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

// On a plain listener nobody can show a certificate.
func TestClientsOnPlainListener(t *testing.T) {
	p := newClientPolicies(t)
	for policy, want := range map[string]string{"none": "404", "one": "404", "one-required": "421"} {
		site := p.siteOf(t, "a.test", policy)
		address := runServer(t, &Server{}, &Config{Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}}, Sites: []*Site{site.Site}})
		if got := askPlain(t, address, "/", ""); len(got) < 12 || got[9:12] != want {
			t.Errorf("%s: got %.20q, want status %s", policy, got, want)
		}
	}
}
