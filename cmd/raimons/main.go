// Raimons is the edge: it takes tunnels on a public port and hands plain TCP to a target.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"raimon/edge"
	"raimon/internal/command"
	"raimon/internal/options"
	"raimon/tunnel"
)

const help = `raimons takes tunnels on a public port and hands plain TCP to a target.

    raimons <listen> <target> [options]     accept on listen, forward to target

Addresses are host:port, [ipv6]:port, :port or unix:/path. The options are one word,
separated by ';', so put quotes around them. Without options it carries plain tcp.

    raimons :443 127.0.0.1:22 'ws;host=edge.example.com;path=/ws;tls;cert=fullchain.pem;key=privkey.pem'
    raimons :443 127.0.0.1:22 'tls;servername=edge.example.com'

With ws, everybody who does not ask for the tunnel meets an ordinary web server.
It is also a shadowsocks plugin (SIP003): name it as plugin, and the options as plugin_opts.

Flags:
  -v                         log every connection
  -log-format text|json      default: text on a terminal, else json
  -version                   print the version
  -h                         print this

Exit status: 0 after a clean end, 1 when something fails, 23 when the options are wrong.

`

func main() {
	os.Exit(command.Main(&command.Program{Side: options.Server, Help: help, Run: run}))
}

func run(ctx context.Context, job *command.Job) error {
	o := job.Options
	certificate, err := certificate(job)
	if err != nil {
		return err
	}
	if files, ok := certificate.(*edge.CertificateFiles); ok {
		watching, stop := context.WithCancel(ctx)
		var watch sync.WaitGroup
		watch.Go(func() { files.Watch(watching) })
		defer watch.Wait()
		defer stop()
	}
	dialer := &tunnel.Dialer{Fwmark: o.Fwmark}
	f := &tunnel.Forwarder{
		Accept: transport(o, certificate),
		Dial: func(ctx context.Context, _ *tunnel.Info) (tunnel.Conn, error) {
			return dialer.Dial(ctx, job.Remote)
		},
	}
	return job.Serve(ctx, f, tunnel.ListenConfig{FastOpen: o.FastOpen, Fwmark: o.Fwmark})
}

// certificateSource has the certificate for a handshake.
type certificateSource interface {
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// certificate opens what the options name; nil without tls.
func certificate(job *command.Job) (certificateSource, error) {
	o := job.Options
	switch {
	case !o.TLS:
		return nil, nil
	case o.Key != "":
		files := &edge.CertificateFiles{Cert: o.Cert, CertPEM: o.CertPEM, Key: o.Key, OCSP: o.OCSP, Log: job.Log}
		if err := files.Load(); err != nil {
			return nil, &command.ConfigError{Err: err, Fix: certificateFix(err)}
		}
		return files, nil
	default:
		return selfSignedCertificate(job)
	}
}

func certificateFix(err error) string {
	if hint := command.Hint(err); hint != "" {
		return hint
	}
	return "cert= names the certificate with its chain, key= the private key that belongs to it"
}

// selfSignedCertificate keeps the pin that clients were given, where there is a place for it.
func selfSignedCertificate(job *command.Job) (certificateSource, error) {
	o := job.Options
	file := storageFile(o.Storage, "selfsigned-"+strings.ReplaceAll(o.ServerName, ":", "-")+".pem")
	var cert *tls.Certificate
	var err error
	if file == "" {
		cert, err = edge.SelfSigned(o.ServerName)
		if err == nil && o.Storage != "off" {
			err = errors.New("no folder for it: neither storage= nor a home folder is known")
		}
	} else {
		cert, err = edge.SelfSignedFile(file, o.ServerName)
	}
	if cert == nil {
		return nil, &command.ConfigError{Err: err, Fix: "servername= is a name such as edge.example.com, or an IP address"}
	}
	if err != nil {
		job.Log.Warn("the self-signed certificate is not kept: the next start has another pin", "error", err, "hint", "storage= names a folder that this user may write")
	}
	job.Log.Info("self-signed certificate", "servername", o.ServerName, "pin", edge.Pin(cert.Leaf), "not_after", cert.Leaf.NotAfter.Format(time.DateOnly))
	return selfSigned{cert}, nil
}

// storageFile is where a file that has to survive a restart lives; empty: nowhere.
func storageFile(option, name string) string {
	switch {
	case option == "off":
		return ""
	case option != "":
		return filepath.Join(option, name)
	case os.Geteuid() == 0:
		return filepath.Join("/var/lib/raimon", name)
	}
	if data := os.Getenv("XDG_DATA_HOME"); data != "" {
		return filepath.Join(data, "raimon", name)
	}
	if home, err := os.UserHomeDir(); err == nil && runtime.GOOS != "windows" && runtime.GOOS != "darwin" {
		return filepath.Join(home, ".local", "share", "raimon", name)
	}
	if config, err := os.UserConfigDir(); err == nil {
		return filepath.Join(config, "raimon", name)
	}
	return ""
}

type selfSigned struct{ cert *tls.Certificate }

func (s selfSigned) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.cert, nil
}

// transport makes the layers that the options ask for.
func transport(o *options.Options, certificate certificateSource) tunnel.Transport {
	var t tunnel.Transport
	if o.TLS {
		config := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificate.GetCertificate}
		if o.WS {
			tunnel.ServeALPN(config, "h2", "http/1.1")
		}
		t = append(t, &tunnel.TLS{ServerConfig: config})
	}
	if o.WS {
		t = append(t, &tunnel.WebSocket{Host: o.Host, Path: o.Path, Ping: o.Ping})
	}
	return t
}
