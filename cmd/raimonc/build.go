package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strings"

	"raimon/internal/client"
	"raimon/internal/command"
	"raimon/internal/options"
	"raimon/tunnel"
)

// newTunnel makes what the options of job ask for.
func newTunnel(ctx context.Context, name string, job *command.Job) (*client.Tunnel, error) {
	o := job.Options
	key, err := identity(job)
	if err != nil {
		return nil, err
	}
	t := &client.Tunnel{
		Name: name, Key: key, Listen: job.Listen, Remote: job.Remote, Pool: o.Pool, Reuse: o.Reuse, Wait: o.Wait, Timeout: o.Timeout, Linger: o.Linger, Drain: o.Drain,
	}
	if t.Drain == 0 {
		t.Drain = -1
	}
	if t.Transport, err = transport(job); err != nil {
		return nil, err
	}
	if t.Dialer, err = dialer(job); err != nil {
		return nil, err
	}
	for _, listen := range job.Listen {
		if t.Dialer.Via(job.Remote) == "" && leadsToItself(listen, job.Remote) {
			return nil, &command.ConfigError{Err: fmt.Errorf("%s leads to itself: %s is where raimonc listens", listen, job.Remote), Fix: "the remote is the address of the edge"}
		}
	}
	if o.Socks {
		layer, err := localProxy(ctx, job)
		if err != nil {
			return nil, err
		}
		t.Accept, t.Chooses = tunnel.Transport{layer}, true
		t.Key += fmt.Sprintf(" %q %q", layer.User, layer.Password)
	}
	return t, nil
}

// leadsToItself tells whether who listens there would be its own edge, as far as the addresses say.
func leadsToItself(listen, remote string) bool {
	if listen == remote {
		return true
	}
	here, port, err := net.SplitHostPort(listen)
	there, same, errRemote := net.SplitHostPort(remote)
	if err != nil || errRemote != nil || port != same || strings.HasPrefix(listen, "unix:") || strings.HasPrefix(remote, "unix:") {
		return false
	}
	ours, theirs := literal(cmp.Or(here, "::")), literal(cmp.Or(there, "localhost"))
	everywhere := ours.IsUnspecified() && (ours.Is6() || theirs.Is4())
	return theirs.IsValid() && ours == theirs || theirs.IsLoopback() && everywhere
}

// identity changes with whatever of the tunnel is read once only.
func identity(job *command.Job) (string, error) {
	trust, err := trusted(job.Options)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%q %q %v %x", job.Listen, job.Remote, *job.Options, trust), nil
}

// transport makes the layers that the options ask for.
func transport(job *command.Job) (tunnel.Transport, error) {
	o := job.Options
	var t tunnel.Transport
	if o.TLS {
		config, err := clientTLS(o)
		if err != nil {
			return nil, err
		}
		if config.ClientSessionCache, err = tickets(job); err != nil {
			return nil, err
		}
		t = append(t, &tunnel.TLS{ClientConfig: config})
	}
	if o.WS {
		masks := map[string]tunnel.Mask{"skip": tunnel.MaskSkip, "fixed": tunnel.MaskFixed, "standard": tunnel.MaskStandard}
		token, err := token(job)
		if err != nil {
			return nil, err
		}
		header, err := header(job)
		if err != nil {
			return nil, err
		}
		t = append(t, &tunnel.WebSocket{Host: o.Host, Path: o.Path, Token: token, Header: header, Mask: masks[o.Mask], Ping: o.Ping, Reuse: o.Reuse > 0})
	}
	return t, nil
}

// clientTLS says whom we trust, and who we are.
func clientTLS(o *options.Options) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.SNI, NextProtos: o.ALPN, InsecureSkipVerify: o.Insecure}
	roots, err := trustedRoots(o)
	if err != nil {
		return nil, err
	}
	config.RootCAs = roots
	if len(o.Pins) > 0 {
		// A pin names the key itself: the chain and the name are checked only where ca= asks for it.
		config.InsecureSkipVerify = roots == nil
		config.VerifyConnection = tunnel.VerifyPins(o.Pins)
	}
	if o.ClientCert != "" {
		load := func() (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(o.ClientCert, o.ClientKey)
			return &cert, err
		}
		if _, err := load(); err != nil {
			return nil, &command.ConfigError{Err: fmt.Errorf("option \"client-cert\": %w", err), Fix: clientCertFix(err)}
		}
		// Read anew for each full handshake, so that a renewed one is taken up.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return config, nil
}

func clientCertFix(err error) string {
	if hint := command.Hint(err); hint != "" {
		return hint
	}
	return "client-cert= and client-key= name PEM files that belong together"
}

// trustedRoots are the CAs of ca= and certRaw=; nil means the system's.
func trustedRoots(o *options.Options) (*x509.CertPool, error) {
	if o.CA == "" && o.CAPEM == nil {
		return nil, nil
	}
	roots := x509.NewCertPool()
	if o.CA == "" {
		system, err := x509.SystemCertPool()
		if err == nil {
			roots = system
		}
	} else {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, &command.ConfigError{Err: fmt.Errorf("option \"ca\": %w", err), Fix: command.Hint(err)}
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, &command.ConfigError{Err: fmt.Errorf("option \"ca\": no certificate in %s", o.CA), Fix: "ca= names a PEM file with at least one BEGIN CERTIFICATE block"}
		}
	}
	roots.AppendCertsFromPEM(o.CAPEM)
	return roots, nil
}

// tickets keeps TLS sessions, with 0rtt also across restarts. A ticket is good only for the same
// server, asked in the same way, with the same trust.
func tickets(job *command.Job) (tls.ClientSessionCache, error) {
	o := job.Options
	t := &tunnel.Tickets{Log: job.Log}
	if !o.ZeroRTT {
		return t, nil
	}
	file, err := tunnel.TicketFile()
	if err != nil {
		job.Log.Warn("session tickets are not kept across restarts", "error", err)
		return t, nil
	}
	trust, err := trusted(o)
	if err != nil {
		return nil, err
	}
	t.File, t.Key = file, fmt.Sprintf("%s %s %x", job.Remote, o.SNI, trust)
	return t, nil
}

// trusted is a hash of whom the options trust, and of who we are.
func trusted(o *options.Options) ([]byte, error) {
	trust := sha256.New()
	for _, f := range []struct{ option, name string }{{"ca", o.CA}, {"client-cert", o.ClientCert}} {
		if f.name == "" {
			continue
		}
		data, err := os.ReadFile(f.name)
		if err != nil {
			return nil, &command.ConfigError{Err: fmt.Errorf("option %q: %w", f.option, err), Fix: command.Hint(err)}
		}
		fmt.Fprintf(trust, "%d %s", len(data), data)
	}
	fmt.Fprintf(trust, "%q %x %v %q", o.CAPEM, o.Pins, o.Insecure, o.ALPN)
	return trust.Sum(nil), nil
}

// dialer reaches the edge: directly or through a proxy, marked or protected.
func dialer(job *command.Job) (*tunnel.Dialer, error) {
	o := job.Options
	d := &tunnel.Dialer{Fwmark: o.Fwmark, FastOpen: o.FastOpen && (o.TLS || o.WS), UserAgent: o.UserAgent, Log: job.Log}
	if o.AndroidVPN {
		d.ProtectPath = "protect_path"
	}
	if o.Resolver != nil {
		d.Resolver = o.Resolver.Resolver(&tunnel.Dialer{Fwmark: d.Fwmark, ProtectPath: d.ProtectPath})
	}
	proxy := o.Proxy
	if proxy == "" && job.Plugin {
		// The environment may well name the very shadowsocks that we are a part of.
		proxy = "off"
	}
	var err error
	if d.Proxy, err = tunnel.ProxyFromOption(proxy, os.Getenv); err != nil {
		return nil, &command.ConfigError{Err: err, Fix: "proxy= is http://host:port, https://host:port, socks5://host:port or off"}
	}
	if d.ProxyUser, err = proxyUser(job); err != nil {
		return nil, err
	}
	return d, nil
}
