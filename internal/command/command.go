// Package command is the frame of raimons and raimonc: arguments and environment in, log lines and an
// exit status out. What a program does with them stands in its own main.go.
package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"raimon/internal/memory"
	"raimon/internal/options"
	"raimon/internal/sip003"
	"raimon/tunnel"
)

// Exit statuses. Service managers can be told not to restart after ExitConfig.
const (
	ExitOK     = 0
	ExitFailed = 1
	ExitConfig = 23 // v2ray-plugin's "configuration error"
)

// Program is one of the two.
type Program struct {
	Side options.Side
	// Help is the text of -h before the options.
	Help string
	// Commands are first arguments that are followed by words of their own instead of addresses.
	Commands []Command
	// Run does the work until ctx ends. An error that is a *ConfigError exits with ExitConfig, and so does
	// one with a method IsConfig that returns true.
	Run func(ctx context.Context, job *Job) error
	// RunConfig is Run with a config file in place of addresses and options. Nil: there is no -config.
	RunConfig func(ctx context.Context, job *Job) error
}

// Job is what the user asked for.
type Job struct {
	Word      string   // the name of a Command, or empty
	Action    string   // of the Command
	Argument  string   // of the Action; empty where it takes none
	JSON      bool     // results are for programs
	Listen    []string // addresses to accept connections on; none with a Word
	Remote    string   // address to forward them to; with a Command only where its Action is about an Edge
	Options   *options.Options
	Plugin    bool   // started by shadowsocks
	TakeOver  bool   // -take-over
	NoSandbox bool   // -no-sandbox
	Config    string // file of -config; empty: none. To a Command it names the edge that it is about
	Log       *slog.Logger
	Stdout    io.Writer // for results

	remoteName  string // what logs call Remote
	level       *slog.LevelVar
	ownWarnings bool // whoever does the work tells of Options.Warnings
}

// SetLogLevel changes the level of Log to one of the words of loglevel=.
func (job *Job) SetLogLevel(word string) { job.level.Set(levels[word]) }

// LogTo makes w the place of Log, as text, for a process whose standard error nobody has.
func (job *Job) LogTo(w io.Writer) { job.Log = newLogger(w, "text", job.level) }

// ConfigError is a mistake in what the user wrote, and what to do about it.
type ConfigError struct {
	Err error
	Fix string
}

func (e *ConfigError) Error() string { return e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *ConfigError) Hint() string { return e.Fix }

// Main runs p with the arguments and environment of this process and returns its exit status.
func Main(p *Program) int {
	i := &invocation{Program: p, parent: os.Getppid(), stdout: os.Stdout, stderr: os.Stderr}
	if err := i.parse(os.Args[1:], os.LookupEnv); err != nil {
		return i.fail(err)
	}
	if i.done {
		return ExitOK
	}
	ctx, stop := i.lifetime()
	defer stop()
	run := func(ctx context.Context, job *Job) error {
		go memory.Manage(ctx)
		if job.Config != "" {
			return p.RunConfig(ctx, job)
		}
		return p.Run(ctx, job)
	}
	if c := p.command(i.job.Word); c != nil {
		run = c.Run
	}
	if err := run(ctx, i.job); err != nil {
		return i.fail(err)
	}
	return ExitOK
}

// invocation is one start of a program.
type invocation struct {
	*Program
	parent         int // process id
	stdout, stderr io.Writer
	job            *Job
	done           bool // -h or -version have been answered
}

// parse finds out what is asked for: SIP003's environment wins over arguments.
func (i *invocation) parse(args []string, env func(string) (string, bool)) error {
	plugin, err := sip003.FromEnvironment(env, i.Side == options.Server)
	if err != nil {
		return &ConfigError{err, hintOf(err)}
	}
	flags, words, err := i.flags(args)
	if plugin != nil {
		// Whatever shadowsocks adds to the command line must not keep its plugin from running.
		return i.prepare(flags, &Job{Plugin: true, Listen: plugin.Listen, Remote: plugin.Dial}, plugin.Options)
	}
	switch {
	case err != nil:
		return err
	case len(words) > 0 && i.command(words[0]) != nil && !flags.version:
		return i.parseCommand(i.command(words[0]), flags, words[1:])
	case flags.json:
		return &ConfigError{errors.New("flag -json: there is nothing to print"), i.Side.String() + " -h shows how it is called"}
	case flags.help:
		fmt.Fprint(i.stdout, i.Help)
		options.Help(i.stdout, i.Side)
		i.done = true
		return nil
	case flags.version:
		fmt.Fprintln(i.stdout, i.Side, Version())
		i.done = true
		return nil
	}
	if flags.config != "" {
		return i.parseConfigFile(flags, words)
	}
	if flags.takeOver || flags.noSandbox {
		return &ConfigError{errors.New("flags -take-over and -no-sandbox: they go with -config"), i.Side.String() + " -h shows how it is called"}
	}
	job, option, err := i.words(words)
	if err != nil {
		return err
	}
	return i.prepare(flags, job, option)
}

// parseConfigFile is for a command line whose config file says everything.
func (i *invocation) parseConfigFile(flags flagValues, words []string) error {
	switch {
	case i.RunConfig == nil:
		return &ConfigError{errors.New("flag -config: it is not known here"), i.Side.String() + " -h shows how it is called"}
	case len(words) > 0:
		return &ConfigError{fmt.Errorf("flag -config: %q is one argument too many", words[0]), "addresses and options stand in the file then"}
	}
	return i.prepare(flags, &Job{Config: flags.config, TakeOver: flags.takeOver, NoSandbox: flags.noSandbox}, "")
}

// flagValues are the settings that start with a dash.
type flagValues struct {
	help, version, verbose, androidVPN, json bool
	logFormat                                string
	config                                   string
	takeOver, noSandbox                      bool // for -config
}

// flags takes the flags out of args, wherever they stand, and returns the other words.
func (i *invocation) flags(args []string) (v flagValues, words []string, err error) {
	set := flag.NewFlagSet(i.Side.String(), flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.BoolVar(&v.help, "h", false, "")
	set.BoolVar(&v.help, "help", false, "")
	set.BoolVar(&v.version, "version", false, "")
	set.BoolVar(&v.verbose, "v", false, "")
	set.BoolVar(&v.androidVPN, "V", false, "")
	set.BoolVar(&v.json, "json", false, "")
	set.StringVar(&v.logFormat, "log-format", "", "")
	set.StringVar(&v.config, "config", "", "")
	set.BoolVar(&v.takeOver, "take-over", false, "")
	set.BoolVar(&v.noSandbox, "no-sandbox", false, "")
	for len(args) > 0 {
		e := set.Parse(args)
		rest := set.Args()
		if e != nil && err == nil {
			err = &ConfigError{e, i.flagFix(args[max(0, len(args)-len(rest)-1)])}
		}
		switch {
		case e != nil && len(rest) == len(args):
			rest = rest[1:] // package flag does not take off what is no flag at all, such as ---x
		case e == nil && len(rest) > 0:
			words = append(words, rest[0])
			rest = rest[1:]
		}
		args = rest
	}
	if err == nil && v.logFormat != "" && v.logFormat != "text" && v.logFormat != "json" {
		err = &ConfigError{fmt.Errorf("flag -log-format: %q is neither text nor json", v.logFormat), i.Side.String() + " -h shows how it is called"}
	}
	return v, words, err
}

// flagFix is for an argument that starts with a dash and is wrong.
func (i *invocation) flagFix(argument string) string {
	name, _, _ := strings.Cut(strings.TrimLeft(argument, "-"), "=")
	if slices.Contains(options.Keys(i.Side), name) {
		return name + " is an option: it has no dash, and stands in the one word of options behind the addresses"
	}
	return i.Side.String() + " -h shows how it is called"
}

// words reads the arguments that are not flags.
func (i *invocation) words(words []string) (*Job, string, error) {
	name := i.Side.String()
	if len(words) == 0 {
		return nil, "", &ConfigError{errors.New("no addresses given"), fmt.Sprintf("%s <listen> <%s> [options]; %s -h explains", name, i.remoteName(), name)}
	}
	if !strings.ContainsAny(words[0], ":/") {
		return nil, "", &ConfigError{fmt.Errorf("%q is neither an address nor a command", words[0]), i.wordFix(words[0])}
	}
	if len(words) == 1 {
		return nil, "", &ConfigError{fmt.Errorf("the second address is missing: where %s connects to", name),
			fmt.Sprintf("%s <listen> <%s> [options]; %s -h explains", name, i.remoteName(), name)}
	}
	if len(words) > 3 {
		return nil, "", &ConfigError{fmt.Errorf("%d arguments where three are known: %q is one too many", len(words), words[3]),
			"put quotes around the options: ';' means something to the shell"}
	}
	job := &Job{Listen: words[:1], Remote: words[1]}
	if len(words) == 3 {
		return job, words[2], nil
	}
	return job, "", nil
}

func (i *invocation) wordFix(word string) string {
	switch {
	case i.Side == options.Client && word == "server":
		return "raimonc is the client: the server is raimons"
	case i.Side == options.Server && (word == "client" || word == "stdio"):
		return "raimons is the server: the client is raimonc"
	}
	if _, err := strconv.ParseUint(word, 10, 16); err == nil {
		if i.Side == options.Client {
			return "a port stands behind an address: write 127.0.0.1:" + word
		}
		return "a port stands behind a colon: write :" + word
	}
	if word == "help" || word == "version" {
		return fmt.Sprintf("did you mean %s -%s?", i.Side, word)
	}
	var names []string
	for _, c := range i.Commands {
		if names = append(names, c.Name); strings.HasPrefix(c.Name, word) || strings.HasPrefix(word, strings.TrimSuffix(c.Name, "s")) {
			return fmt.Sprintf("did you mean %s %s?", i.Side, c.Name)
		}
	}
	if near := options.Nearest(word, names); near != "" {
		return fmt.Sprintf("did you mean %s %s?", i.Side, near)
	}
	if strings.HasSuffix(word, ".toml") && i.RunConfig != nil {
		return fmt.Sprintf("to start with that file: %s -config %s", i.Side, word)
	}
	if strings.Contains(word, ".") {
		return "an address ends with its port: write " + word + ":443"
	}
	return "an address is host:port, :port or unix:/path; " + i.Side.String() + " -h shows all"
}

func (i *invocation) remoteName() string {
	if i.Side == options.Server {
		return "target"
	}
	return "remote"
}

// prepare completes job and tells about options that are ignored.
func (i *invocation) prepare(flags flagValues, job *Job, option string) error {
	settings, err := options.Split(option)
	if err != nil {
		return err
	}
	if i.Side == options.Client {
		if settings, err = job.takeURLs(settings); err != nil {
			return err
		}
	}
	addresses := job.Listen
	if job.Word == "" && job.Config == "" || job.Remote != "" {
		addresses = append([]string{job.Remote}, addresses...)
	}
	for _, address := range addresses {
		if _, _, err := tunnel.ParseAddress(address); err != nil {
			return &ConfigError{err, "addresses are host:port, [ipv6]:port, :port or unix:/path"}
		}
	}
	o, err := options.ParseSettings(i.Side, settings)
	if err != nil {
		return err
	}
	o.AndroidVPN = o.AndroidVPN || flags.androidVPN
	if flags.verbose {
		o.LogLevel = "debug"
	}
	job.Options, job.remoteName = o, i.remoteName()
	job.level, job.Stdout = new(slog.LevelVar), i.stdout
	job.SetLogLevel(o.LogLevel)
	job.Log = newLogger(i.stderr, flags.logFormat, job.level)
	for _, warning := range o.Warnings {
		if !job.ownWarnings {
			job.Log.Warn(warning)
		}
	}
	i.job = job
	return nil
}

// takeURLs makes plain addresses of those that are URLs, and adds to settings what these say.
func (job *Job) takeURLs(settings []options.Setting) (_ []options.Setting, err error) {
	if job.Remote, settings, err = options.Remote(job.Remote, settings); err != nil {
		return nil, aboutAddress(err)
	}
	for n := range job.Listen {
		if job.Listen[n], settings, err = options.Listen(job.Listen[n], settings); err != nil {
			return nil, aboutAddress(err)
		}
	}
	return settings, nil
}

// aboutAddress makes of an options.Error, whose Option is the name of an argument here, one that says so.
func aboutAddress(err error) error {
	var e *options.Error
	if errors.As(err, &e) {
		return &ConfigError{fmt.Errorf("%s: %s", e.Option, e.Problem), e.Hint}
	}
	return err
}

// lifetime returns a context that ends with the first SIGTERM or interrupt. The second ends the
// process at once. A plugin ends at once with the first, or with its parent.
func (i *invocation) lifetime() (context.Context, func()) {
	// A log that nobody reads any more is no reason to die.
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if i.Side == options.Client && i.job.Config == "" && !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP) // a closed terminal; ssh to its ProxyCommand
	}
	go func() {
		first := <-signals
		if i.job.Plugin {
			os.Exit(ExitOK)
		}
		switch {
		case i.job.Config != "":
			i.job.Log.Info("shutting down")
		case i.job.Word == "":
			i.job.Log.Info("shutting down", "drain", i.job.Options.Drain.String())
		}
		if first == syscall.SIGHUP {
			cancel(ErrHungUp)
		} else {
			cancel(nil)
		}
		<-signals
		os.Exit(ExitFailed)
	}()
	if i.job.Plugin {
		go func() {
			if sip003.WatchParent(ctx, i.parent) == nil {
				os.Exit(ExitOK)
			}
		}()
	}
	return ctx, func() { cancel(nil) }
}

// fail prints err and its hint and returns the exit status.
func (i *invocation) fail(err error) int {
	if errors.Is(err, ErrHungUp) {
		return ExitFailed
	}
	name := i.Side.String()
	var option *options.Error
	var config *ConfigError
	if errors.As(err, &option) {
		// The misspelt option that was ignored is often why another one is missing.
		for _, warning := range option.Warnings {
			fmt.Fprintf(i.stderr, "%s: %s\n", name, warning)
		}
	}
	fmt.Fprintf(i.stderr, "%s: %v\n", name, err)
	if hint := Hint(err); hint != "" {
		fmt.Fprintf(i.stderr, "%s: hint: %s\n", name, hint)
	}
	var other interface{ IsConfig() bool }
	if errors.As(err, &option) || errors.As(err, &config) || errors.As(err, &other) && other.IsConfig() {
		return ExitConfig
	}
	return ExitFailed
}

// Version is the version of this build and the commit it was made from, as far as the build knows.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	version := info.Main.Version
	if version == "" || version == "(devel)" {
		version = "devel"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && !strings.Contains(version, s.Value[:min(12, len(s.Value))]) {
			version += " " + s.Value[:min(12, len(s.Value))]
		}
	}
	return version + " " + info.GoVersion
}

// Open listens where job says.
func (job *Job) Open(ctx context.Context, config tunnel.ListenConfig) ([]net.Listener, error) {
	config.Log = job.Log
	return config.Listen(ctx, job.Listen...)
}

// Serve runs f on listeners, with the time limits of job's options, until ctx ends and all tunnels have.
func (job *Job) Serve(ctx context.Context, f *tunnel.Forwarder, listeners []net.Listener) error {
	job.Configure(f)
	transport := append(f.Accept[:len(f.Accept):len(f.Accept)], f.Connect...) // one of them is plain tcp
	for _, l := range listeners {
		job.Log.Info("listening", "address", l.Addr().String(), job.remoteName, job.Remote, "transport", transport.String())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(listeners))
	var all sync.WaitGroup
	for n, l := range listeners {
		all.Go(func() {
			errs[n] = f.Serve(ctx, l)
			cancel()
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// Configure gives f the log and the time limits of job.
func (job *Job) Configure(f *tunnel.Forwarder) {
	o := job.Options
	f.Log, f.Hint = job.Log, Hint
	f.Timeout, f.Linger, f.Drain = o.Timeout, o.Linger, o.Drain
	if f.Drain == 0 {
		f.Drain = -1
	}
}
