package edge

import (
	"crypto/tls"
	"slices"
	"sync"
	"sync/atomic"

	"raimon/tunnel"
)

// tlsConfig chooses by server name what a client shakes hands with. Each site has configs of its own,
// with ticket keys of their own: crypto/tls by itself takes the tickets of all configs that
// one GetConfigForClient returns (golang/go#77217).
func (s *snapshot) tlsConfig() *tls.Config {
	configs := make(map[*Site]*siteConfigs)
	for _, site := range s.config.Sites {
		if site.Pass == "" {
			configs[site] = newSiteConfigs(site, s.server.ticketKeys())
		}
	}
	unknown := &tls.Config{MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true,
		// Nothing and no error is what crypto/tls calls an unrecognized name, which says more than an internal error.
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }}
	var probed *tls.Config
	if s.config.Challenges != nil {
		probed = &tls.Config{MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true,
			NextProtos: []string{tunnel.ChallengeProtocol}, GetCertificate: s.config.Challenges}
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if probed != nil && tunnel.IsChallenge(hello) {
				return probed, nil
			}
			if c := configs[s.site(hello.ServerName)]; c != nil {
				return c.choose(hello), nil
			}
			return unknown, nil
		},
	}
}

// siteConfigs answer the protocols that a site serves and ignore other offers, where crypto/tls would
// refuse the client. A client that offers h2 may still speak HTTP/1.1.
type siteConfigs struct {
	site    *Site
	tickets *TicketKeys
	protos  []string // served; of a site without HTTP none

	mu   sync.Mutex // held while made is replaced
	made atomic.Pointer[madeConfigs]
}

// madeConfigs are good for as long as the site asks for the same client certificates: neither the CAs
// nor the ticket keys of a tls.Config that is in use can follow.
type madeConfigs struct {
	clients *clientsInUse
	configs []*tls.Config // by the set of protos that are offered, a bit for each
}

func newSiteConfigs(site *Site, tickets *TicketKeys) *siteConfigs {
	c := &siteConfigs{site: site, tickets: tickets}
	if site.Raw == nil {
		c.protos = []string{"h2", "http/1.1"}
	}
	c.current()
	return c
}

func (c *siteConfigs) current() []*tls.Config {
	clients := c.site.Clients.current()
	if made := c.made.Load(); made != nil && made.clients == clients {
		return made.configs
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	clients = c.site.Clients.current()
	made := c.made.Load()
	if made == nil || made.clients != clients {
		made = c.make(clients)
		c.made.Store(made)
	}
	return made.configs
}

func (c *siteConfigs) make(clients *clientsInUse) *madeConfigs {
	made := &madeConfigs{clients: clients}
	policy := ""
	if clients != nil {
		policy = clients.policy
	}
	name := c.site.Tickets
	if name == "" {
		name = c.site.label()
	}
	for set := range 1 << len(c.protos) {
		config := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.site.certificate}
		for n, proto := range c.protos {
			if set&(1<<n) != 0 {
				config.NextProtos = append(config.NextProtos, proto)
			}
		}
		c.site.Clients.configure(config, clients)
		c.tickets.Bind(config, name, policy)
		made.configs = append(made.configs, config)
	}
	return made
}

func (c *siteConfigs) choose(hello *tls.ClientHelloInfo) *tls.Config {
	set := 0
	for n, proto := range c.protos {
		if slices.Contains(hello.SupportedProtos, proto) {
			set |= 1 << n
		}
	}
	return c.current()[set]
}

// certificate is Certificate, with errors that tell where they come from.
func (s *Site) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if s.Certificate == nil {
		return nil, nil
	}
	c, err := s.Certificate(hello)
	if err != nil {
		return nil, certificateError{err}
	}
	return c, nil
}

// certificateError is why there is no certificate to show.
type certificateError struct{ error }

func (e certificateError) Unwrap() error { return e.error }
