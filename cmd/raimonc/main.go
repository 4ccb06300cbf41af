// Raimonc is the client: it takes TCP connections on a laptop and carries them to raimons.
package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"syscall"

	"raimon/internal/client"
	"raimon/internal/command"
	"raimon/internal/options"
)

const help = `raimonc carries TCP connections to raimons, where only HTTPS passes.

    raimonc <listen> <remote> [options]  accept on listen, forward to the edge
    raimonc -config <file>               any number of tunnels, as a file says
    raimonc stdio <remote> [options]     standard input and output, for ssh
    raimonc check <file>                 say whether such a file is fine
    raimonc doctor <remote> [options]    look at everything up to the target
    raimonc status                       how the tunnels of clients do
    raimonc reload                       have clients take their files up anew
    raimonc service install -config <file>
                                         start a client with every login

raimonc <command> -h explains each of them.

The remote is a URL, wss://edge.example.com/path (ws, tls and tcp as well), or
host:port. The other address is host:port, [ipv6]:port, :port or unix:/path, or
socks://host:port for programs that choose where to, with SOCKS5 or HTTP
CONNECT. The options are one word, separated by ';', so put quotes around them.
With neither URL nor options it is plain tcp.

    raimonc 127.0.0.1:2222 wss://edge.example.com/ssh
    raimonc 127.0.0.1:2222 edge.example.com:443 \
        'ws;host=edge.example.com;path=/ssh;tls;sni=edge.example.com'
    ssh -o ProxyCommand='raimonc stdio wss://edge.example.com/ssh' user@host

It is also a shadowsocks plugin (SIP003): name it as plugin, and the options as
plugin_opts.

Flags:
  -config <file>             read the tunnels from a file, and anew with SIGHUP
  -v                         log every connection
  -log-format text|json      default: text on a terminal, else json
  -version                   print the version
  -h                         print this

Exit status: 0 after a clean end, 1 when something fails, 23 when the options
are wrong.

`

func main() {
	os.Exit(command.Main(&command.Program{Side: options.Client, Help: help,
		Commands: []command.Command{stdioCommand, checkCommand, doctorCommand, statusCommand, reloadCommand, serviceCommand}, Run: run, RunConfig: runConfig}))
}

func run(ctx context.Context, job *command.Job) error {
	t, err := newTunnel(ctx, "", job)
	if err != nil {
		return err
	}
	c := &client.Client{Log: job.Log, Hint: command.Hint, Alone: true, Quiet: job.Word == "stdio" && !job.Log.Enabled(ctx, slog.LevelDebug)}
	if err := c.Apply(ctx, []*client.Tunnel{t}); err != nil {
		return err
	}
	defer c.Close()
	if job.Word == "stdio" {
		return runStdio(ctx, c)
	}
	return c.Run(ctx)
}

const stdioHelp = `raimonc stdio forwards standard input and output, as ssh's ProxyCommand has it.

    raimonc stdio <remote> [options]     remote and options as for a tunnel

In ~/.ssh/config, where ssh wants a % as %%:

    Host work
        ProxyCommand raimonc stdio wss://edge.example.com/ssh 'token=file:/path'

Standard output has nothing but what comes from the target. What goes wrong is
told on standard error, and tried again for wait= (15 s).

Flags:
  -v                         log the connection
  -log-format text|json      default: text on a terminal, else json
  -h                         print this

Exit status: 0 after a clean end, 1 when something fails, 23 when the options
are wrong. SIGHUP, with which ssh ends it, is a clean end once the target has
answered.
`

var stdioCommand = command.Command{Name: "stdio", Help: stdioHelp,
	Actions: []command.Action{{Argument: "remote", Edge: true, Options: true, NoConfig: true}}, Run: run}

// runStdio carries one tunnel between standard input and output.
func runStdio(ctx context.Context, c *client.Client) error {
	local := newStdio(os.Stdin, os.Stdout)
	err := c.Handle(ctx, local)
	if ctx.Err() != nil {
		return afterSignal(context.Cause(ctx), err, local.answered.Load())
	}
	local.flush()
	return err
}

// afterSignal is what there is to tell of a tunnel over standard input and output that ended with err, when a signal has come.
func afterSignal(signal, err error, answered bool) error {
	switch ended := errors.Is(err, command.ErrHungUp); {
	case !errors.Is(signal, command.ErrHungUp):
		return command.ErrInterrupted
	case answered && (ended || errors.Is(err, syscall.EPIPE)):
		return nil // ssh is done, has closed its end, and says so with that signal
	}
	return err // what has broken by itself made ssh leave
}
