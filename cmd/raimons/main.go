// Raimons is the edge: it takes tunnels on a public port and hands plain TCP to a target.
package main

import (
	"cmp"
	"context"
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
	"raimon/internal/control"
	"raimon/internal/options"
	"raimon/storage"
	"raimon/tunnel"
)

const help = `raimons takes tunnels on a public port and hands plain TCP to a target.

    raimons <listen> <target> [options]  accept on listen, forward to target
    raimons -config <file>               many names, a website, tunnels for some
                                         only: docs/config.md
    raimons check <file>                 would an edge start with that file? if
                                         not, why not
    raimons reload [-config <file>]      have the running edge take it up
    raimons token <name>                 make a token for a client
    raimons certs list|renew|revoke      look after certificates

raimons <command> -h explains each of them.

Addresses are host:port, [ipv6]:port, :port or unix:/path. The options are one
word, separated by ';', so put quotes around them. Without options it carries
plain tcp.

    raimons :443 127.0.0.1:22 \
        'ws;host=edge.example.com;path=/ws;tls;acme=edge.example.com'
    raimons :443 127.0.0.1:22 \
        'ws;host=edge.example.com;path=/ws;tls;cert=chain.pem;key=key.pem'
    raimons :443 127.0.0.1:22 'tls;servername=edge.example.com'

With acme it obtains a certificate from Let's Encrypt, by itself, and renews it;
port 443 or port 80 has to be reachable from the internet, and by using it you
agree to the CA's terms. With ws, everybody who does not ask for the tunnel
meets an ordinary web server.

It is also a shadowsocks plugin (SIP003): name it as plugin, and the options as
plugin_opts.

Flags:
  -config <file>             run what the file says
  -take-over                 with -config: take the listeners from the edge that
                             runs with the same storage; it keeps its tunnels
                             until they end
  -no-sandbox                with -config: do without the walls (Landlock)
                             around the files that it names
  -v                         log every connection
  -log-format text|json      default: text on a terminal, else json
  -version                   print the version
  -h                         print this

Exit status: 0 after a clean end, 1 when something fails, 23 when the options
are wrong.

`

func main() {
	os.Exit(command.Main(&command.Program{Side: options.Server, Help: help,
		Commands: []command.Command{certsCommand, checkCommand, reloadCommand, tokenCommand}, Run: run, RunConfig: runConfig}))
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
	server := &edge.Server{Log: job.Log, Hint: command.Hint, Tickets: ticketKeys(job), Fixed: true}
	config := fromOptions(job, certificates)
	if err := server.Apply(ctx, config); err != nil {
		return err
	}
	defer server.Close()
	background, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer awaitAll(&running, job.Log)
	defer stop()
	if err := certificates.run(background, &running, listeners(server, config)); err != nil {
		return err
	}
	if certificates.managed != nil {
		running.Go(func() { answerCommands(background, job, control.Service{Certificates: certificates.managed}) })
	}
	if o.TLS {
		loadTickets(background, server.Tickets)
		running.Go(func() { server.Tickets.Run(background) })
	}
	for _, l := range listeners(server, config) {
		job.Log.Info("listening", "address", l.Addr().String(), "target", job.Remote, "transport", transportName(o))
	}
	return server.Run(ctx)
}

// fromOptions makes of an option string what a config file says in more words: one site, one route.
func fromOptions(job *command.Job, certificates *certificates) *edge.Config {
	o := job.Options
	dialer := &tunnel.Dialer{Fwmark: o.Fwmark}
	route := &edge.Route{Path: o.Path, Host: o.Host, Target: job.Remote}
	site := &edge.Site{Certificate: certificates.GetCertificate, Tickets: ticketSite(job)}
	if o.WS {
		site.Routes = []*edge.Route{route}
	} else {
		site.Raw = route
	}
	config := &edge.Config{
		Listen: tunnel.ListenConfig{FastOpen: o.FastOpen, Fwmark: o.Fwmark}, Sites: []*edge.Site{site}, Dial: dialer.Dial,
		Timeout: o.Timeout, Linger: o.Linger, Drain: o.Drain, Ping: o.Ping, Level: slog.LevelDebug,
	}
	if o.Drain == 0 {
		config.Drain = -1
	}
	if certificates.acme != nil {
		config.Challenges = certificates.GetCertificate
	}
	for _, address := range job.Listen {
		config.Listeners = append(config.Listeners, edge.Listener{Address: address, Plain: !o.TLS})
	}
	return config
}

func transportName(o *options.Options) string {
	switch {
	case o.WS && o.TLS:
		return "wss"
	case o.WS:
		return "ws"
	case o.TLS:
		return "tls"
	}
	return "tcp"
}

// listeners are those that are open, in the order of the config.
func listeners(server *edge.Server, config *edge.Config) []net.Listener {
	opened := server.Listeners()
	var all []net.Listener
	for _, l := range config.Listeners {
		if l := opened[l.Address]; l != nil {
			all = append(all, l)
		}
	}
	return all
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

// ticketKeys makes clients resume after a restart, if there is a storage.
func ticketKeys(job *command.Job) *edge.TicketKeys {
	keys := &edge.TicketKeys{Log: job.Log}
	if root := storageRoot(job.Options.Storage); root != "" {
		keys.Storage = &storage.File{Root: root}
	}
	return keys
}

// loadTickets makes clients of an earlier process resume from the first connection on, unless the storage is slow.
// What is wrong with it is said by keys.Run.
func loadTickets(ctx context.Context, keys *edge.TicketKeys) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	loaded := make(chan struct{})
	go func() {
		defer cancel()
		defer close(loaded)
		keys.Load(ctx)
	}()
	select {
	case <-loaded:
	case <-ctx.Done():
	}
}

// ticketSite tells edges apart that share a storage: no ticket of one opens another.
func ticketSite(job *command.Job) string {
	o := job.Options
	return strings.ToLower(cmp.Or(o.Host, strings.Join(o.ACME, ","), o.ServerName, job.Remote))
}
