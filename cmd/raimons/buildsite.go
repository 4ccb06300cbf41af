package main

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"raimon/acme"
	"raimon/edge"
	"raimon/internal/command"
	"raimon/internal/options"
	"raimon/tunnel"
)

// names brings the names of sites into their usual form.
func (b *builder) names(*edge.Config) error {
	if len(b.Sites) == 0 {
		return b.wrong("", "there is no site", "add [[site]] with names = [\"edge.example.com\"]; docs/config.md has a whole file")
	}
	seen := make(map[string]bool)
	for n, s := range b.Sites {
		path := fmt.Sprintf("site[%d]", n)
		for i, name := range s.Names {
			parsed, err := acme.ParseName(name)
			if err != nil {
				return b.wrong(path+".names", err.Error(), inConfig.Replace(command.Hint(err)))
			}
			if seen[parsed] {
				return b.wrong(path+".names", fmt.Sprintf("%s is the name of two sites", parsed), "each name belongs to one site")
			}
			seen[parsed] = true
			s.Names[i] = parsed
		}
		if len(s.Names) == 0 {
			if seen[""] {
				return b.wrong(path, "two sites have no names", "only one can be for all other names")
			}
			seen[""] = true
		}
	}
	return nil
}

func (b *builder) sites(config *edge.Config) error {
	for n := range b.Sites {
		site, err := b.site(fmt.Sprintf("site[%d]", n), &b.Sites[n])
		if err != nil {
			return err
		}
		config.Sites = append(config.Sites, site)
	}
	return nil
}

func (b *builder) site(path string, s *siteSection) (*edge.Site, error) {
	site := &edge.Site{Names: s.Names, Label: s.Label}
	if site.Label == "" && len(s.Names) == 0 {
		site.Label = "default"
	}
	// A site without names has the names of its own tickets, not those of a label that may change.
	site.Tickets = cmp.Or(strings.Join(s.Names, ","), "*")
	if err := b.siteKind(path, s); err != nil {
		return nil, err
	}
	if s.Pass != "" {
		site.Pass = s.Pass
		var err error
		site.Proxy, err = b.proxyVersion(path, s.Proxy)
		return site, err
	}
	if b.tls() {
		certificate, err := b.certificate(path, s)
		if err != nil {
			return nil, err
		}
		site.Certificate = certificate
		if site.Clients, err = b.clients(path, s); err != nil {
			return nil, err
		}
	}
	if s.Target != "" {
		r := &edge.Route{Target: s.Target}
		site.Raw = r
		return site, b.route(path, r, s.Proxy, s.accessSection, s)
	}
	paths := make(map[[2]string]bool)
	for n := range s.Routes {
		section := &s.Routes[n]
		at := fmt.Sprintf("%s.route[%d]", path, n)
		if err := options.CheckPath(section.Path); err != nil {
			return nil, b.wrong(at+".path", problemOf(err), command.Hint(err))
		}
		key := [2]string{strings.ToLower(section.Host), section.Path}
		if paths[key] {
			return nil, b.wrong(at+".path", fmt.Sprintf("two routes have the path %s", section.Path), "each path leads to one target")
		}
		paths[key] = true
		r := &edge.Route{Path: section.Path, Host: section.Host, Target: section.Target, Label: section.Label}
		if section.Target == "" && section.Targets == nil {
			return nil, b.wrong(at, "target is missing", "add target = \"127.0.0.1:22\", the address to which the tunnel goes")
		}
		if err := b.targets(at+".targets", r, section, s); err != nil {
			return nil, err
		}
		if err := b.route(at, r, section.Proxy, section.accessSection, s); err != nil {
			return nil, err
		}
		site.Routes = append(site.Routes, r)
	}
	var err error
	site.Behind, err = b.behind(path, s)
	return site, err
}

// siteKind finds keys that do not go together.
func (b *builder) siteKind(path string, s *siteSection) error {
	type key struct {
		name string
		set  bool
	}
	web := []key{{"root", s.Root != ""}, {"upstream", s.Upstream != ""}, {"redirect", s.Redirect != ""}}
	given := func(keys []key) (names []string) {
		for _, k := range keys {
			if k.set {
				names = append(names, k.name)
			}
		}
		return names
	}
	http := given(append([]key{{"route", len(s.Routes) > 0}, {"access-log", s.AccessLog != ""}}, web...))
	access := given([]key{{"from", s.From != nil}, {"tokens", s.Tokens != ""}, {"clients", s.Clients != nil}, {"max", s.Max != 0}, {"when-full", s.Full != ""}})
	if s.Proxy != "" && s.Pass == "" {
		access = append(access, "proxy-protocol")
	}
	certificate := given([]key{{"certificate", s.Certificate != ""}, {"cert", s.Cert != ""}, {"key", s.Key != ""}, {"ocsp", s.OCSP != ""}, {"client-ca", s.ClientCA != ""},
		{"client-crl", s.ClientCRL != ""}, {"client-required", s.ClientRequired}})
	switch {
	case s.Pass != "":
		if _, _, err := tunnel.ParseAddress(s.Pass); err != nil {
			return b.wrong(path+".pass", err.Error(), "addresses are host:port, [ipv6]:port or unix:/path")
		}
		if others := slices.Concat(http, access, certificate, given([]key{{"target", s.Target != ""}})); len(others) > 0 {
			return b.wrong(path+"."+others[0], others[0]+" has no effect with pass", "a site that is passed on is not looked into: leave "+others[0]+" away, or pass")
		}
		if !b.tls() {
			return b.wrong(path+".pass", "there is no listener with TLS", "sites are passed on by the name that TLS brings: add listen = [\":443\"]")
		}
	case s.Target != "" && len(http) > 0:
		return b.wrong(path+"."+http[0], http[0]+" has no effect with target", "target makes the site a tunnel without HTTP: for a tunnel beside a website move it into [[site.route]] with a path")
	case s.Target != "" && s.Tokens != "":
		return b.wrong(path+".tokens", "tokens are shown in HTTP, which this site does not speak", "use client-ca for a tunnel without HTTP")
	case s.Target == "" && len(access) > 0:
		return b.wrong(path+"."+access[0], access[0]+" belongs to a tunnel", "move it into a [[site.route]]")
	case len(given(web)) > 1:
		return b.wrong(path+"."+given(web)[1], strings.Join(given(web), " and ")+" do not go together", "everybody who is no tunnel sees one website: leave one away")
	}
	if s.ClientCA != "" && !b.tls() {
		return b.wrong(path+".client-ca", "there is no listener with TLS", "clients show their certificates in TLS: add listen = [\":443\"], or leave client-ca away")
	}
	if len(s.Names) == 0 && s.Pass == "" && s.automatic() && b.ACME.OnDemand == "" && b.tls() {
		return b.wrong(path, "a site without names gets no certificate from a CA", "add names = [\"edge.example.com\"], or cert and key, or on-demand in [acme]")
	}
	return nil
}

// certificate is where the site's certificates come from.
func (b *builder) certificate(path string, s *siteSection) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	kind := s.Certificate
	if kind == "" && s.Cert != "" {
		kind = "files"
	}
	if kind != "files" {
		for _, k := range []struct{ key, value string }{{"cert", s.Cert}, {"key", s.Key}, {"ocsp", s.OCSP}} {
			if k.value != "" {
				return nil, b.wrong(path+"."+k.key, k.key+" has no effect without certificate = \"files\"", "leave certificate away, or "+k.key)
			}
		}
	}
	switch kind {
	case "", "acme":
		return b.deployment.certificates.GetCertificate, nil
	case "self-signed":
		if len(s.Names) != 1 || strings.HasPrefix(s.Names[0], "*") {
			return nil, b.wrong(path+".certificate", "a self-signed certificate is for one name", "give the site one name, or use a CA")
		}
		job := *b.job
		o := *b.job.Options
		o.ServerName = s.Names[0]
		job.Options = &o
		kept, err := b.part("self-signed\x00"+s.Names[0], &selfSigned{job: &job, checking: b.checking})
		if err != nil {
			return nil, b.wrong(path+".names", err.Error(), command.Hint(err))
		}
		return kept.(*selfSigned).GetCertificate, nil
	case "files":
		if s.Cert == "" {
			return nil, b.wrong(path+".certificate", "cert is missing", "add cert = \"fullchain.pem\" and key = \"privkey.pem\"")
		}
		files := &edge.CertificateFiles{Cert: s.Cert, Key: s.Key, OCSP: s.OCSP, Log: b.job.Log}
		kept, err := b.part("certificate\x00"+s.Cert+"\x00"+s.Key+"\x00"+s.OCSP, files)
		if err != nil {
			return nil, b.wrong(path+".cert", err.Error(), certificateFix(err))
		}
		return kept.(*edge.CertificateFiles).GetCertificate, nil
	}
	return nil, b.wrong(path+".certificate", fmt.Sprintf("%q is no kind of certificate", kind), "use acme, files or self-signed")
}

// clients says which client certificates the site asks for.
func (b *builder) clients(path string, s *siteSection) (*edge.Clients, error) {
	if s.ClientCA == "" {
		for _, k := range []struct {
			key string
			set bool
		}{{"client-crl", s.ClientCRL != ""}, {"client-required", s.ClientRequired}} {
			if k.set {
				return nil, b.wrong(path+"."+k.key, k.key+" has no effect without client-ca", "add client-ca, the CAs whose certificates are good here")
			}
		}
		return nil, nil
	}
	clients := &edge.Clients{CA: s.ClientCA, CRL: s.ClientCRL, Required: s.ClientRequired || s.Target != "", Log: b.job.Log}
	kept, err := b.part(fmt.Sprintf("clients\x00%s\x00%s\x00%v", s.ClientCA, s.ClientCRL, clients.Required), clients)
	if err != nil {
		return nil, b.wrong(path+".client-ca", err.Error(), command.Hint(err))
	}
	return kept.(*edge.Clients), nil
}

// targets are what the clients of a route may choose. Open to everybody that would be a proxy for everybody.
func (b *builder) targets(path string, r *edge.Route, section *routeSection, s *siteSection) error {
	if section.Targets == nil {
		return nil
	}
	if len(section.Targets) == 0 {
		return b.wrong(path, "the list is empty", "leave the key away, or name a target")
	}
	if section.From == nil && section.Tokens == "" && section.Clients == nil && !s.ClientRequired {
		return b.wrong(path, "everybody could go there through this route", "say who may: add tokens, clients or from, or client-required to the site")
	}
	for _, text := range section.Targets {
		rule, err := edge.ParseTargetRule(text)
		if err != nil {
			return b.wrong(path, err.Error(), command.Hint(err))
		}
		r.Targets = append(r.Targets, rule)
	}
	return nil
}

// route fills in what routes with and without HTTP have in common.
func (b *builder) route(path string, r *edge.Route, proxy string, a accessSection, s *siteSection) error {
	if _, _, err := tunnel.ParseAddress(r.Target); err != nil && (r.Target != "" || r.Targets == nil) {
		return b.wrong(path+".target", err.Error(), "addresses are host:port, [ipv6]:port or unix:/path")
	}
	var err error
	if r.Proxy, err = b.proxyVersion(path, proxy); err != nil {
		return err
	}
	if a.Max < 0 {
		return b.wrong(path+".max", fmt.Sprintf("%d is no limit", a.Max), "use a number above 0, or leave it away")
	}
	r.Limit = a.Max
	if a.Full != "" && a.Max == 0 {
		return b.wrong(path+".when-full", "when-full has no effect without max", "add max, the number of tunnels that may be open at a time")
	}
	if r.Queue, err = b.queues(path+".when-full", a.Full, "refuse"); err != nil {
		return err
	}
	if r.Access.From, err = b.networks(path+".from", a.From); err != nil {
		return err
	}
	if a.Tokens != "" {
		kept, err := b.part("tokens\x00"+a.Tokens, &edge.Tokens{File: a.Tokens, Log: b.job.Log})
		if err != nil {
			return b.wrong(path+".tokens", err.Error(), command.Hint(err))
		}
		r.Access.Tokens = kept.(*edge.Tokens)
	}
	if a.Clients != nil && len(a.Clients) == 0 {
		return b.wrong(path+".clients", "the list is empty", "leave the key away, or name a client, or \"*\" for all of client-ca")
	}
	if a.Clients != nil && s.ClientCA == "" {
		return b.wrong(path+".clients", "the site asks for no client certificates", "add client-ca to its [[site]]")
	}
	for _, text := range a.Clients {
		name, err := edge.ParseClientName(text)
		if err != nil {
			return b.wrong(path+".clients", err.Error(), command.Hint(err))
		}
		r.Access.Clients = append(r.Access.Clients, name)
	}
	return nil
}

func (b *builder) proxyVersion(path, text string) (int, error) {
	switch text {
	case "":
		return 0, nil
	case "v1":
		return 1, nil
	case "v2":
		return 2, nil
	}
	return 0, b.wrong(path+".proxy-protocol", fmt.Sprintf("%q is no version", text), "use v1 or v2")
}

// behind is the website of those who are no tunnel, with its access log.
func (b *builder) behind(path string, s *siteSection) (http.Handler, error) {
	h, err := b.website(path, s)
	if err != nil || s.AccessLog == "" {
		return h, err
	}
	kept, err := b.part("access-log\x00"+s.AccessLog, &accessLog{name: s.AccessLog, log: b.job.Log, checking: b.checking})
	if err != nil {
		return nil, b.wrong(path+".access-log", err.Error(), command.Hint(err))
	}
	if h == nil {
		h = http.NotFoundHandler()
	}
	return edge.AccessLog(kept.(*accessLog).file, h), nil
}

func (b *builder) website(path string, s *siteSection) (http.Handler, error) {
	switch {
	case s.Root != "":
		h, err := edge.Folder(s.Root)
		if err != nil {
			return nil, b.wrong(path+".root", err.Error(), cmp.Or(command.Hint(err), "root is the folder of a website"))
		}
		return h, nil
	case s.Upstream != "":
		h, err := edge.Upstream(s.Upstream, b.job.Log)
		if err != nil {
			return nil, b.wrong(path+".upstream", err.Error(), command.Hint(err))
		}
		return h, nil
	case s.Redirect != "":
		h, err := edge.RedirectTo(s.Redirect)
		if err != nil {
			return nil, b.wrong(path+".redirect", err.Error(), command.Hint(err))
		}
		return h, nil
	}
	return nil, nil
}
