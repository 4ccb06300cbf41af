package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"raimon/edge"
	"raimon/internal/command"
	"raimon/internal/options"
	"raimon/storage"
	"raimon/tunnel"
)

// build makes of a file what an edge serves. It opens all that the file names, and changes nothing.
func (d *deployment) build(c *configFile) (*edge.Config, parts, error) {
	b := &builder{deployment: d, configFile: c, next: make(parts)}
	config, err := b.config()
	return config, b.next, err
}

// builder makes an edge.Config of a configFile.
type builder struct {
	*deployment
	*configFile
	next parts
}

func (b *builder) config() (*edge.Config, error) {
	config := &edge.Config{Listen: tunnel.ListenConfig{FastOpen: b.FastOpen, Fwmark: b.Fwmark}}
	dialer := &tunnel.Dialer{Fwmark: b.Fwmark}
	config.Dial, config.DialAllowed = dialer.Dial, dialer.DialAllowed
	for _, step := range []func(*edge.Config) error{b.storage, b.listeners, b.times, b.limits, b.names, b.acme, b.sites, b.admin} {
		if err := step(config); err != nil {
			return nil, err
		}
	}
	return config, nil
}

// storage finds out whether its folder is one, or could be made.
func (b *builder) storage(*edge.Config) error {
	root := storageRoot(b.job.Options.Storage)
	if root == "" {
		return nil
	}
	info, err := os.Stat(root)
	switch {
	case err == nil && !info.IsDir():
		return b.wrong("storage", root+" is no folder", "name a folder that the edge's user may write")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return b.wrong("storage", err.Error(), "name a folder that the edge's user may write")
	}
	return nil
}

func (b *builder) listeners(config *edge.Config) error {
	all := make([]listenerSection, 0, len(b.Listen)+len(b.Listeners))
	for _, address := range b.Listen {
		all = append(all, listenerSection{Address: address})
	}
	all = append(all, b.Listeners...)
	if len(all) == 0 {
		all = []listenerSection{{Address: ":443"}}
	}
	seen := make(map[string]bool)
	for n, l := range all {
		path := "listen"
		if n >= len(b.Listen) {
			path = fmt.Sprintf("listener[%d].address", n-len(b.Listen))
		}
		if _, _, err := tunnel.ParseAddress(l.Address); err != nil {
			return b.wrong(path, err.Error(), "addresses are host:port, [ipv6]:port, :port or unix:/path")
		}
		if seen[l.Address] {
			return b.wrong(path, fmt.Sprintf("the address %s is there twice", l.Address), "leave one of them away")
		}
		seen[l.Address] = true
		networks, err := b.networks(strings.TrimSuffix(path, "address")+"proxy-from", l.ProxyFrom)
		if err != nil {
			return err
		}
		config.Listeners = append(config.Listeners, edge.Listener{Address: l.Address, Plain: l.Plain, ProxyFrom: networks})
	}
	return nil
}

// networks reads addresses and prefixes; nil of nil.
func (b *builder) networks(path string, texts []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if ip, e := netip.ParseAddr(text); e == nil {
			p, err = netip.PrefixFrom(ip, ip.BitLen()), nil
		}
		if err != nil {
			return nil, b.wrong(path, fmt.Sprintf("%q is no network", text), "write an address, or a network as in 192.0.2.0/24 or 2001:db8::/32")
		}
		all = append(all, p.Masked())
	}
	if texts != nil && all == nil {
		return nil, b.wrong(path, "the list is empty", "leave the key away, or name a network")
	}
	return all, nil
}

func (b *builder) times(config *edge.Config) error {
	for _, t := range []struct {
		path, text string
		to         *time.Duration
		off        time.Duration // what "off" and "0" mean; 0: they are refused
	}{
		{"timeout", b.Timeout, &config.Timeout, 0},
		{"linger", b.Linger, &config.Linger, -1},
		{"drain", b.Drain, &config.Drain, -1},
		{"ping", b.Ping, &config.Ping, -1},
		{"limits.idle-timeout", b.Limits.IdleTimeout, &config.IdleTimeout, 0},
		{"limits.body-timeout", b.Limits.BodyTimeout, &config.BodyTimeout, 0},
	} {
		if t.text == "" {
			continue
		}
		value, err := options.ParseTime(t.text, t.off)
		if err != nil {
			return b.wrong(t.path, problemOf(err), command.Hint(err))
		}
		*t.to = value
	}
	level, err := b.level("log-tunnels", b.LogTunnels)
	config.Level = level
	if err == nil {
		_, err = b.level("log-level", b.LogLevel)
	}
	return err
}

func (b *builder) level(path, text string) (slog.Level, error) {
	switch text {
	case "", "info":
		return slog.LevelInfo, nil
	case "debug":
		return slog.LevelDebug, nil
	case "warning":
		return slog.LevelWarn, nil
	case "error", "none":
		return slog.LevelError, nil
	}
	return 0, b.wrong(path, fmt.Sprintf("%q is no level", text), "use debug, info, warning, error or none")
}

// Between these is header-size: a token alone may take half of the least.
const (
	minHeaderSize = 8 << 10
	maxHeaderSize = 1 << 20
)

func (b *builder) limits(config *edge.Config) error {
	l := b.Limits
	for _, k := range []struct {
		path  string
		value int
	}{{"limits.connections", l.Connections}, {"limits.per-address", l.PerAddress}, {"limits.rate", l.Rate}} {
		if k.value < -1 {
			return b.wrong(k.path, fmt.Sprintf("%d is no limit", k.value), "use a number, or -1 for none")
		}
	}
	if l.HeaderSize != 0 && (l.HeaderSize < minHeaderSize || l.HeaderSize > maxHeaderSize) {
		return b.wrong("limits.header-size", fmt.Sprintf("%d bytes are not between %d and %d", l.HeaderSize, minHeaderSize, maxHeaderSize),
			"write a number of bytes, as in 65536: cookies and tokens need a few thousand, and each connection may take as much memory")
	}
	config.HeaderSize = l.HeaderSize
	queues, err := b.queues("limits.when-full", l.WhenFull, "queue")
	if err != nil {
		return err
	}
	config.Limits.Refuse = !queues
	config.Limits.Connections = cmp.Or(l.Connections, connectionsThatFit())
	config.Limits.PerAddress = cmp.Or(l.PerAddress, max(1, config.Limits.Connections/4))
	config.Limits.Rate = cmp.Or(l.Rate, 1000)
	return nil
}

// queues tells whether those who find a limit reached wait.
func (b *builder) queues(path, text, standard string) (bool, error) {
	switch cmp.Or(text, standard) {
	case "queue":
		return true, nil
	case "refuse":
		return false, nil
	}
	return false, b.wrong(path, fmt.Sprintf("%q is neither queue nor refuse", text), `write when-full = "queue" or "refuse"`)
}

// acmeNames are those of sites that want their certificates from a CA.
func (c *configFile) acmeNames() (names []string) {
	for _, s := range c.Sites {
		if s.automatic() {
			names = append(names, s.Names...)
		}
	}
	return names
}

// asksCAs tells whether any certificate comes from a CA.
func (c *configFile) asksCAs() bool {
	return c.tls() && (len(c.acmeNames()) > 0 || c.ACME.OnDemand != "")
}

// automatic tells whether certificates of the site come from a CA.
func (s *siteSection) automatic() bool {
	return s.Pass == "" && (s.Certificate == "acme" || s.Certificate == "" && s.Cert == "")
}

// tls tells whether anything is encrypted at all.
func (c *configFile) tls() bool {
	return len(c.Listen) > 0 || len(c.Listeners) == 0 || slices.ContainsFunc(c.Listeners, func(l listenerSection) bool { return !l.Plain })
}

func (b *builder) acme(config *edge.Config) error {
	names := b.acmeNames()
	if !b.asksCAs() {
		return nil
	}
	if b.deployment.certificates == nil {
		a := b.ACME
		eab, err := b.secrets("acme.eab", a.EAB)
		if err != nil {
			return err
		}
		o := *b.job.Options
		o.TLS, o.ACME, o.Email, o.ACMECAs, o.ACMERoot, o.EAB = true, names, a.Email, a.CA, a.Root, eab
		o.Profile, o.KeyType, o.HTTP, o.DNS, o.OnDemand = a.Profile, a.KeyType, b.HTTP, a.DNS, a.OnDemand
		job := *b.job
		job.Options = &o
		c, err := openCertificates(&job)
		if err != nil {
			return b.inFile(err)
		}
		if c.acme != nil {
			c.acme.Storage = &storage.Watched{Storage: c.acme.Storage, Failed: b.storageFailed}
		}
		b.deployment.certificates = c
	}
	if known := b.deployment.certificates.acme; known != nil {
		// Of a reload nothing but the names is new.
		c := *known
		c.Names, c.CAs = names, slices.Clone(c.CAs)
		if err := c.Check(); err != nil {
			return b.inFile(optionError(err))
		}
	}
	config.Challenges = b.deployment.certificates.GetCertificate
	return nil
}

// storageFailed counts what goes wrong with the storage.
func (d *deployment) storageFailed(operation string) {
	if d.server != nil {
		d.server.Metrics.StorageFailed(operation)
	}
}

// secrets reads those that stand in files of their own.
func (b *builder) secrets(path string, texts []string) (all []string, err error) {
	for _, text := range texts {
		if name, found := strings.CutPrefix(text, "file:"); found {
			secret, err := os.ReadFile(name)
			if err != nil {
				return nil, b.wrong(path, err.Error(), command.Hint(err))
			}
			text = strings.TrimSpace(string(secret))
		}
		all = append(all, text)
	}
	return all, nil
}

// inFile says in which line of the file stands what err calls an option.
func (b *builder) inFile(err error) error {
	var option *options.Error
	if !errors.As(err, &option) {
		return err
	}
	if option.Option == "acme" {
		for n, s := range b.Sites {
			for _, name := range s.Names {
				if strings.Contains(option.Problem, fmt.Sprintf("%q", name)) {
					return b.wrong(fmt.Sprintf("site[%d].names", n), option.Problem, inConfig.Replace(option.Hint))
				}
			}
		}
	}
	path := map[string]string{"acme": "site", "http": "http", "storage": "storage", "acme-ca": "acme.ca", "acme-root": "acme.root"}[option.Option]
	return b.wrong(cmp.Or(path, "acme."+option.Option), option.Problem, inConfig.Replace(option.Hint))
}

// admin checks what the admin listener is to be.
func (b *builder) admin(*edge.Config) error {
	if b.Admin.Listen == "" {
		if b.Admin.Token != "" {
			return b.wrong("admin.token-file", "token-file has no effect without listen", "add listen = \"127.0.0.1:9180\"")
		}
		return nil
	}
	if b.Admin.Token != "" {
		if err := edge.CheckAdminToken(b.Admin.Token); err != nil {
			return b.wrong("admin.token-file", err.Error(), command.Hint(err))
		}
	}
	if err := edge.CheckAdminAddress(b.Admin.Listen, b.Admin.Token != ""); err != nil {
		return b.wrong("admin.listen", err.Error(), command.Hint(err))
	}
	return nil
}

// inConfig makes keys of what a hint calls options.
var inConfig = strings.NewReplacer(
	"use servername= for a self-signed certificate", `use certificate = "self-signed"`, "acme-ca=", "ca in [acme]",
	"dns=", "dns in [acme]", "eab=kid:key", `eab = ["kid:key"]`, "profile=shortlived", `profile = "shortlived"`, "email=me@example.com", `email = "me@example.com"`,
	"add acme=example.com", `add names = ["example.com"]`, "name every host in acme=", "name every host", "http=:80", `http = ":80"`, "acme-root=", "root",
)

// problemOf is err without the option that it would be about on a command line.
func problemOf(err error) string {
	var option *options.Error
	if errors.As(err, &option) {
		return option.Problem
	}
	return err.Error()
}
