package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"raimon/acme"
	"raimon/acme/dns"
	"raimon/edge"
	"raimon/internal/command"
	"raimon/internal/control"
	"raimon/internal/options"
	"raimon/storage"
	"raimon/tunnel"
)

// certificates are all that one listener can show; which one, the server name decides.
type certificates struct {
	job        *command.Job
	files      *edge.CertificateFiles // cert and key; nil if not given
	selfSigned *tls.Certificate       // servername; nil if not given
	acme       *acme.Config           // acme and on-demand; nil if not given
	managed    *acme.Manager          // made of acme, once it is clear what CAs can reach

	have func(key string) net.Listener // listeners that are open already, nil where there is none; nil: none at all
	web  map[string]net.Listener       // of port 80, by keys for have
}

// openCertificates opens what the options name. Nothing is listened on, and no CA is asked.
func openCertificates(job *command.Job) (*certificates, error) {
	o := job.Options
	c := &certificates{job: job}
	if !o.TLS {
		return c, nil
	}
	if o.Key != "" {
		files := &edge.CertificateFiles{Cert: o.Cert, CertPEM: o.CertPEM, Key: o.Key, OCSP: o.OCSP, Log: job.Log}
		if err := files.Load(); err != nil {
			return nil, &command.ConfigError{Err: err, Fix: certificateFix(err)}
		}
		c.files = files
	}
	if o.ServerName != "" {
		cert, err := selfSignedCertificate(job)
		if err != nil {
			return nil, err
		}
		c.selfSigned = cert
	}
	if len(o.ACME) > 0 || o.OnDemand != "" {
		config, err := acmeConfig(job)
		if err != nil {
			return nil, err
		}
		c.acme = config
	}
	return c, nil
}

// run keeps all certificates fresh until ctx ends, in goroutines that it counts in running. It decides
// how CAs can reach us, for which the listeners have to be there.
func (c *certificates) run(ctx context.Context, running *sync.WaitGroup, listeners []net.Listener) error {
	if c.files != nil {
		running.Go(func() { c.files.Watch(ctx) })
	}
	if c.acme == nil {
		return nil
	}
	port := tlsPort(listeners)
	web, err := c.listenHTTP(ctx)
	if err != nil {
		return err
	}
	c.challenges(port, web != nil)
	managed, err := acme.New(*c.acme)
	if err != nil {
		closeAll(web)
		return optionError(err)
	}
	c.managed = managed
	redirect := &edge.Redirect{Port: redirectPort(web, port), Log: c.job.Log}
	purpose := "HTTP-01 challenges and redirects to https"
	if c.acme.DNS != nil {
		purpose = "redirects to https"
	}
	for _, l := range web {
		c.job.Log.Info("listening for http", "address", l.Addr().String(), "for", purpose)
		running.Go(func() { redirect.Serve(ctx, l, managed.HTTPHandler(redirect)) })
	}
	running.Go(func() { managed.Run(ctx) })
	return nil
}

// answerCommands lets raimons certs and raimons reload talk to us. Tunnels do not depend on it.
func answerCommands(ctx context.Context, job *command.Job, service control.Service) {
	err := control.Serve(ctx, storageRoot(job.Options.Storage), service, job.Log)
	if err != nil {
		job.Log.Warn("raimons certs cannot talk to this edge", "error", err, "hint", command.Hint(err))
	}
}

// GetCertificate is for tls.Config.
func (c *certificates) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, err := c.choose(hello)
	if errors.Is(err, acme.ErrUnknownName) {
		c.job.Log.Debug("no certificate", "sni", hello.ServerName, "error", err)
		return nil, nil // crypto/tls then says "unrecognized name", which is more than "internal error"
	}
	return cert, err
}

// choose goes by the server name. A certificate from files serves its own names and, as kaminaris does,
// all that nobody else has.
func (c *certificates) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := hello.ServerName
	switch {
	case c.managed != nil && acme.IsProbe(hello):
		return c.managed.GetCertificate(hello)
	case c.files != nil && name != "" && c.files.Has(name):
		return c.files.GetCertificate(hello)
	case c.managed != nil && name != "" && c.managed.Has(name):
		return c.managed.GetCertificate(hello)
	case c.selfSigned != nil && name != "" && c.selfSigned.Leaf.VerifyHostname(name) == nil:
		return c.selfSigned, nil
	case c.managed != nil && name != "" && c.managed.OnDemand():
		cert, err := c.managed.GetCertificate(hello)
		if errors.Is(err, acme.ErrUnknownName) && c.files != nil {
			return c.files.GetCertificate(hello)
		}
		return cert, err
	case c.files != nil:
		return c.files.GetCertificate(hello)
	case c.managed != nil && (name == "" || c.selfSigned == nil):
		return c.managed.GetCertificate(hello)
	case c.selfSigned != nil:
		return c.selfSigned, nil
	}
	return nil, errors.New("no certificate")
}

func certificateFix(err error) string {
	if hint := command.Hint(err); hint != "" {
		return hint
	}
	return "cert= names the certificate with its chain, key= the private key that belongs to it"
}

// acmeConfig makes what acme.New takes of the options; how CAs can reach us comes later.
func acmeConfig(job *command.Job) (*acme.Config, error) {
	o := job.Options
	root := storageRoot(o.Storage)
	if root == "" {
		return nil, &command.ConfigError{Err: errors.New("no folder for certificates: neither storage= nor a home folder is known"), Fix: "add storage=/var/lib/raimon, or another folder that this user may write"}
	}
	c := &acme.Config{
		Names:   o.ACME,
		Email:   o.Email,
		Profile: o.Profile,
		KeyType: o.KeyType,
		Storage: &storage.File{Root: root},
		Log:     job.Log,
	}
	var err error
	if c.CAs, err = authorities(o); err != nil {
		return nil, err
	}
	if o.DNS != "" {
		if c.DNS, err = dns.Open(o.DNS, job.Log); err != nil {
			return nil, &options.Error{Option: "dns", Problem: err.Error(), Hint: command.Hint(err)}
		}
	}
	if o.OnDemand != "" {
		if c.Allow, err = acme.Ask(o.OnDemand); err != nil {
			return nil, optionError(err)
		}
	}
	// What is wrong with the names themselves is said before any port is opened.
	if err := c.Check(); err != nil {
		return nil, optionError(err)
	}
	return c, nil
}

func authorities(o *options.Options) ([]acme.CA, error) {
	var roots *x509.CertPool
	if o.ACMERoot != "" {
		pem, err := os.ReadFile(o.ACMERoot)
		if err != nil {
			return nil, &options.Error{Option: "acme-root", Problem: err.Error(), Hint: command.Hint(err)}
		}
		if roots, err = x509.SystemCertPool(); err != nil {
			roots = x509.NewCertPool()
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, &options.Error{Option: "acme-root", Problem: "there is no certificate in " + o.ACMERoot, Hint: "acme-root= names a PEM file with at least one BEGIN CERTIFICATE block"}
		}
	}
	names := o.ACMECAs
	if len(names) == 0 {
		names = []string{"letsencrypt"}
	}
	var cas []acme.CA
	for i, name := range names {
		ca := acme.CA{Directory: acme.Directory(name), Roots: roots}
		if i < len(o.EAB) && o.EAB[i] != "" {
			var found bool
			if ca.EABKeyID, ca.EABKey, found = strings.Cut(o.EAB[i], ":"); !found || ca.EABKeyID == "" || ca.EABKey == "" {
				return nil, &options.Error{Option: "eab", Problem: "it has no key", Hint: "write eab=kid:key, as the website of the CA shows them"}
			}
		}
		cas = append(cas, ca)
	}
	return cas, nil
}

// optionError names the option behind a mistake that package acme has found.
func optionError(err error) error {
	var mistake *acme.ConfigError
	if !errors.As(err, &mistake) {
		return err
	}
	option := map[string]string{"Names": "acme", "CAs": "acme-ca", "EAB": "eab", "Email": "email", "KeyType": "key-type", "Allow": "on-demand"}[mistake.Field]
	if option == "" {
		option = "acme"
	}
	return &options.Error{Option: option, Problem: mistake.Problem, Hint: mistake.Fix}
}

// listenHTTP opens the port of HTTP-01. Port 80 may well be somebody else's unless it was asked for.
func (c *certificates) listenHTTP(ctx context.Context) ([]net.Listener, error) {
	address := c.job.Options.HTTP
	if address == options.Disabled {
		return nil, nil
	}
	config := tunnel.ListenConfig{Log: c.job.Log}
	if c.have != nil {
		config.Have = func(address string) net.Listener { return c.have(webKey + address) }
	}
	listen := func(address string) (all []net.Listener, err error) {
		opened, err := config.Open(ctx, address)
		c.web = make(map[string]net.Listener)
		for address, l := range opened {
			c.web[webKey+address] = l
			all = append(all, l)
		}
		return all, err
	}
	if address != "" {
		if _, _, err := tunnel.ParseAddress(address); err != nil {
			return nil, &options.Error{Option: "http", Problem: err.Error(), Hint: "write http=:80, with a colon before the port, or http=off"}
		}
		listeners, err := listen(address)
		if err != nil {
			return nil, fmt.Errorf("option %q: %w", "http", err)
		}
		return listeners, nil
	}
	listeners, err := listen(":80")
	if err != nil {
		hint := "http=off says that this is meant to be so; http= names another address to which port 80 is forwarded"
		if c.acme.DNS != nil {
			c.job.Log.Debug("no redirects to https", "error", err)
		} else {
			c.job.Log.Warn("port 80 is not ours: CAs have to come to the tunnel's own port, and nobody is redirected to https", "error", err, "hint", hint)
		}
		return nil, nil
	}
	return listeners, nil
}

// webKey stands before the address of a listener for port 80 where it is handed over.
const webKey = "http "

// challenges decides which of them a CA could see answered.
func (c *certificates) challenges(port string, http bool) {
	// On another port there may be a forwarding that we cannot know of. With a public CA each wrong
	// guess is a failure that counts.
	c.acme.HTTP = http
	c.acme.TLS = port == "443" || port != "" && (!http || !c.acme.OnlyPublic())
	if port != "443" && !http && c.acme.DNS == nil && port != "" {
		c.job.Log.Warn("no CA may be able to reach us: it comes to port 443 or port 80 of the names", "port", port,
			"hint", "listen on :443, let http= have port 80, or add dns=; if port 443 is forwarded to here, all is well")
	}
}

// tlsPort is the port of the listeners, 443 if any of them has it; empty for Unix sockets.
func tlsPort(listeners []net.Listener) string {
	port := ""
	for _, l := range listeners {
		if a, ok := l.Addr().(*net.TCPAddr); ok && port != "443" {
			port = fmt.Sprint(a.Port)
		}
	}
	return port
}

// redirectPort is where browsers are sent: our own port, but 443 where something forwards to us.
func redirectPort(web []net.Listener, port string) string {
	for _, l := range web {
		if a, ok := l.Addr().(*net.TCPAddr); ok && a.Port == 80 && port != "" {
			return port
		}
	}
	return "443"
}

// selfSignedCertificate keeps the pin that clients were given, where there is a place for it.
func selfSignedCertificate(job *command.Job) (*tls.Certificate, error) {
	o := job.Options
	root := storageRoot(o.Storage)
	var cert *tls.Certificate
	var err error
	if root == "" {
		cert, err = edge.SelfSigned(o.ServerName)
		if err == nil && o.Storage != options.Disabled {
			err = errors.New("no folder for it: neither storage= nor a home folder is known")
		}
	} else {
		cert, err = edge.SelfSignedFile(filepath.Join(root, "selfsigned-"+strings.ReplaceAll(o.ServerName, ":", "-")+".pem"), o.ServerName)
	}
	if cert == nil {
		return nil, &command.ConfigError{Err: err, Fix: "servername= is a name such as edge.example.com, or an IP address"}
	}
	if err != nil {
		job.Log.Warn("the self-signed certificate is not kept: the next start has another pin", "error", err, "hint", "storage= names a folder that this user may write")
	}
	job.Log.Info("self-signed certificate", "servername", o.ServerName, "pin", edge.Pin(cert.Leaf), "not_after", cert.Leaf.NotAfter.Format(time.DateOnly))
	return cert, nil
}

// storageRoot is the folder of what has to survive a restart; empty: there is none.
func storageRoot(option string) string {
	switch {
	case option == options.Disabled:
		return ""
	case option != "":
		return option
	case os.Getenv("STATE_DIRECTORY") != "": // of a systemd unit (systemd.exec(5)); a list
		return filepath.SplitList(os.Getenv("STATE_DIRECTORY"))[0]
	case os.Geteuid() == 0:
		return "/var/lib/raimon"
	}
	if data := os.Getenv("XDG_DATA_HOME"); data != "" {
		return filepath.Join(data, "raimon")
	}
	if home, err := os.UserHomeDir(); err == nil && runtime.GOOS != "windows" && runtime.GOOS != "darwin" {
		return filepath.Join(home, ".local", "share", "raimon")
	}
	if config, err := os.UserConfigDir(); err == nil {
		return filepath.Join(config, "raimon")
	}
	return ""
}
