// Raimons is the edge: it takes tunnels on a public port and hands plain TCP to a target.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"raimon/edge"
	"raimon/internal/command"
	"raimon/internal/options"
	"raimon/storage"
	"raimon/tunnel"
)

const help = `raimons takes tunnels on a public port and hands plain TCP to a target.

    raimons <listen> <target> [options]     accept on listen, forward to target
    raimons certs list|renew|revoke         look after certificates; raimons certs -h explains

Addresses are host:port, [ipv6]:port, :port or unix:/path. The options are one word,
separated by ';', so put quotes around them. Without options it carries plain tcp.

    raimons :443 127.0.0.1:22 'ws;host=edge.example.com;path=/ws;tls;acme=edge.example.com'
    raimons :443 127.0.0.1:22 'ws;host=edge.example.com;path=/ws;tls;cert=fullchain.pem;key=privkey.pem'
    raimons :443 127.0.0.1:22 'tls;servername=edge.example.com'

With acme it obtains a certificate from Let's Encrypt, by itself, and renews it; port 443 or port 80
has to be reachable from the internet, and by using it you agree to the CA's terms. With ws,
everybody who does not ask for the tunnel meets an ordinary web server.
It is also a shadowsocks plugin (SIP003): name it as plugin, and the options as plugin_opts.

Flags:
  -v                         log every connection
  -log-format text|json      default: text on a terminal, else json
  -version                   print the version
  -h                         print this

Exit status: 0 after a clean end, 1 when something fails, 23 when the options are wrong.

`

func main() {
	os.Exit(command.Main(&command.Program{Side: options.Server, Help: help, Commands: []command.Command{certsCommand}, Run: run}))
}

func run(ctx context.Context, job *command.Job) error {
	o := job.Options
	if o.LogLevel != "debug" {
		log.SetOutput(io.Discard) // certmagic prints to it, past its own logger; what matters is said by us
	}
	certificates, err := openCertificates(job)
	if err != nil {
		return err
	}
	listeners, err := job.Open(ctx, tunnel.ListenConfig{FastOpen: o.FastOpen, Fwmark: o.Fwmark})
	if err != nil {
		return err
	}
	defer closeAll(listeners)
	background, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer awaitAll(&running, job.Log)
	defer stop()
	if err := certificates.run(background, &running, listeners); err != nil {
		return err
	}
	tickets := ticketKeys(job)
	if o.TLS {
		running.Go(func() { tickets.Run(background) })
	}
	dialer := &tunnel.Dialer{Fwmark: o.Fwmark}
	f := &tunnel.Forwarder{
		Accept: transport(job, certificates, tickets),
		Dial: func(ctx context.Context, _ *tunnel.Info) (tunnel.Conn, error) {
			return dialer.Dial(ctx, job.Remote)
		},
	}
	return job.Serve(ctx, f, listeners)
}

// awaitAll waits for what runs beside the tunnels. A storage that hangs must not keep us from ending.
func awaitAll(running *sync.WaitGroup, log *slog.Logger) {
	ended := make(chan struct{})
	go func() {
		running.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(stopTimeout):
		log.Warn("ended without waiting any longer for the storage, the CA or dns=", "waited", stopTimeout.String())
	}
}

const stopTimeout = 5 * time.Second

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}

// transport makes the layers that the options ask for.
func transport(job *command.Job, certificates *certificates, tickets *edge.TicketKeys) tunnel.Transport {
	o := job.Options
	var t tunnel.Transport
	if o.TLS {
		config := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificates.GetCertificate}
		if o.WS {
			tunnel.ServeALPN(config, "h2", "http/1.1")
		}
		if certificates.managed != nil {
			tunnel.ServeChallenges(config)
		}
		tickets.Bind(config, site(job), "") // last: the configs that were made of it use its keys
		t = append(t, &tunnel.TLS{ServerConfig: config})
	}
	if o.WS {
		t = append(t, &tunnel.WebSocket{Host: o.Host, Path: o.Path, Ping: o.Ping})
	}
	return t
}

// ticketKeys makes clients resume after a restart, if there is a storage.
func ticketKeys(job *command.Job) *edge.TicketKeys {
	keys := &edge.TicketKeys{Log: job.Log}
	if root := storageRoot(job.Options.Storage); root != "" {
		keys.Storage = &storage.File{Root: root}
	}
	return keys
}

// site tells edges apart that share a storage: no ticket of one opens another.
func site(job *command.Job) string {
	o := job.Options
	return strings.ToLower(cmp.Or(o.Host, strings.Join(o.ACME, ","), o.ServerName, job.Remote))
}
