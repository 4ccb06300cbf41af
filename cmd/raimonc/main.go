// Raimonc is the client: it takes TCP connections on a laptop and carries them to raimons.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"raimon/internal/command"
	"raimon/internal/options"
	"raimon/tunnel"
)

const help = `raimonc carries TCP connections to raimons, through places where only HTTPS passes.

    raimonc <listen> <remote> [options]     accept on listen, forward to the edge at remote
    raimonc stdio <remote> [options]        forward standard input and output, for ssh's ProxyCommand

Addresses are host:port, [ipv6]:port, :port or unix:/path. The options are one word,
separated by ';', so put quotes around them. Without options it carries plain tcp.

    raimonc 127.0.0.1:2222 edge.example.com:443 'ws;host=edge.example.com;path=/ws;tls;sni=edge.example.com'
    ssh -o ProxyCommand="raimonc stdio edge.example.com:443 'tls;sni=edge.example.com'" user@host

It is also a shadowsocks plugin (SIP003): name it as plugin, and the options as plugin_opts.

Flags:
  -v                         log every connection
  -log-format text|json      default: text on a terminal, else json
  -version                   print the version
  -h                         print this

Exit status: 0 after a clean end, 1 when something fails, 23 when the options are wrong.

`

func main() {
	os.Exit(command.Main(&command.Program{Side: options.Client, Help: help, Words: []string{"stdio"}, Run: run}))
}

func run(ctx context.Context, job *command.Job) error {
	transport, err := transport(job)
	if err != nil {
		return err
	}
	dialer, err := dialer(job)
	if err != nil {
		return err
	}
	f := &tunnel.Forwarder{
		Connect: transport,
		Dial: func(ctx context.Context, _ *tunnel.Info) (tunnel.Conn, error) {
			return dialer.Dial(ctx, job.Remote)
		},
	}
	if job.Word == "stdio" {
		job.Configure(f)
		return runStdio(ctx, f)
	}
	listeners, err := job.Open(ctx, tunnel.ListenConfig{})
	if err != nil {
		return err
	}
	return job.Serve(ctx, f, listeners)
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
		t = append(t, &tunnel.WebSocket{Host: o.Host, Path: o.Path, Token: token, Mask: masks[o.Mask], Ping: o.Ping})
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
	trust := sha256.New()
	for _, name := range []string{o.CA, o.ClientCert} {
		if name == "" {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(trust, "%d %s", len(data), data)
	}
	fmt.Fprintf(trust, "%q %x %v %q", o.CAPEM, o.Pins, o.Insecure, o.ALPN)
	t.File, t.Key = file, fmt.Sprintf("%s %s %x", job.Remote, o.SNI, trust.Sum(nil))
	return t, nil
}

// dialer reaches the edge: directly or through a proxy, marked or protected.
func dialer(job *command.Job) (*tunnel.Dialer, error) {
	o := job.Options
	d := &tunnel.Dialer{Fwmark: o.Fwmark, FastOpen: o.FastOpen && (o.TLS || o.WS), Log: job.Log}
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
	return d, nil
}

// runStdio carries one tunnel between standard input and output.
func runStdio(ctx context.Context, f *tunnel.Forwarder) error {
	c := newStdio(os.Stdin, os.Stdout)
	if !f.Log.Enabled(ctx, slog.LevelDebug) {
		f.Log = nil // the error is told at the end
	}
	err := f.Handle(ctx, c)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	c.flush()
	return err
}
