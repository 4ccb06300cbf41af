package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"raimon/acme"
	"raimon/acme/dns"
	"raimon/edge"
	"raimon/internal/command"
	"raimon/internal/control"
	"raimon/internal/handover"
	"raimon/internal/options"
	"raimon/internal/sandbox"
	"raimon/internal/service"
	"raimon/storage"
	"raimon/tunnel"
)

// deployment is an edge that follows a config file.
type deployment struct {
	job      *command.Job
	server   *edge.Server
	checking bool // nothing is kept

	background context.Context // of what runs beside the tunnels; nil before run
	running    *sync.WaitGroup

	reloading    sync.Mutex
	file         *configFile   // in force
	certificates *certificates // by ACME; nil if there are none

	mu    sync.Mutex
	parts parts

	recent        *edge.RecentLog
	handed        map[string]net.Listener // beside those for tunnels
	adminListener net.Listener
	adminAddress  string // as the config has it
	sandbox       *sandbox.Sandbox
}

// parts are what a config names and what follows files of its own. They are kept from one config to the
// next where nothing about them has changed, so that nobody is without a certificate in between.
type parts map[string]*part

type part struct {
	value watched
	stop  context.CancelFunc // nil: it is not followed yet
}

// watched is what is loaded once, and then follows its files.
type watched interface {
	Load() error
	Watch(ctx context.Context)
}

// runConfig is run with a config file.
func runConfig(ctx context.Context, job *command.Job) (err error) {
	file, err := readConfig(job.Config)
	if err != nil {
		return err
	}
	if file.LogLevel != "" && job.Options.LogLevel == "" {
		job.SetLogLevel(file.LogLevel)
	}
	if cmp.Or(job.Options.LogLevel, file.LogLevel) != "debug" {
		log.SetOutput(io.Discard) // see run
	}
	recent := edge.NewRecentLog(job.Log.Handler())
	job.Log = slog.New(recent)
	job.Options.Storage = cmp.Or(job.Options.Storage, file.Storage)
	d := &deployment{job: job, file: file, parts: make(parts), recent: recent}
	d.server = &edge.Server{Log: job.Log, Hint: command.Hint, Tickets: ticketKeys(job), Metrics: edge.NewMetrics()}
	if keys := d.server.Tickets; keys.Storage != nil {
		keys.Storage = &storage.Watched{Storage: &storage.File{Root: storageRoot(job.Options.Storage)}, Failed: d.server.Metrics.StorageFailed}
	}
	config, next, err := d.build(file)
	if err != nil {
		return err
	}
	taken, err := d.takeListeners(ctx)
	if err != nil {
		return err
	}
	if taken != nil {
		defer func() {
			if taken != nil { // before it was done
				taken(err)
			}
		}()
	}
	err = d.server.Apply(ctx, config)
	d.server.Metrics.Reloaded(err)
	if err != nil {
		return err
	}
	defer d.server.Close()
	d.closeUnused()
	background, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer awaitAll(&running, job.Log)
	defer stop()
	if err := d.start(background, stop, &running, config, next); err != nil {
		return err
	}
	for _, l := range listeners(d.server, config) {
		job.Log.Info("listening", "address", l.Addr().String(), "sites", len(config.Sites))
	}
	if taken != nil {
		done := taken
		taken = nil
		if err := done(nil); err != nil {
			return err
		}
		job.Log.Info("the process before us has handed over")
	}
	d.handOver(background, stop, &running)
	if err := service.Ready(counted(len(config.Sites), "site")); err != nil {
		job.Log.Warn("the service manager was not told", "error", err)
	}
	defer context.AfterFunc(ctx, func() { service.Stopping() })()
	return d.serve(ctx)
}

// serve runs the server, and tells the watchdog that it does for as long as it does: also when another process
// has taken over and only tunnels are left.
func (d *deployment) serve(ctx context.Context) error {
	watched, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer stop()
	watching.Go(func() {
		if err := service.Watch(watched, d.healthy, d.job.Log); err != nil && watched.Err() == nil {
			d.job.Log.Warn("watchdog", "error", err)
		}
	})
	return d.server.Run(ctx)
}

// closeUnused closes the listeners that were open already and that the config does not name: nobody would accept there.
func (d *deployment) closeUnused() {
	for _, l := range d.server.Inherited {
		d.job.Log.Warn("a socket of the service manager is not used: no listener of the config has its address", "address", l.Addr().String())
		l.Close()
	}
	for _, l := range d.server.Handed {
		l.Close()
	}
	d.server.Inherited, d.server.Handed = nil, nil
}

// takeListeners finds listeners that are open already: those of a service manager, and with -take-over those of the
// edge that runs. Commit ends the taking over; it is nil where there was none.
func (d *deployment) takeListeners(ctx context.Context) (commit func(error) error, err error) {
	activated, err := service.Listeners()
	if err != nil {
		return nil, err
	}
	for _, l := range activated {
		d.server.Inherited = append(d.server.Inherited, l.Listener)
	}
	if !d.job.TakeOver {
		return nil, nil
	}
	path := d.storagePath(handOverSocket)
	if path == "" {
		return nil, &command.ConfigError{Err: errors.New("flag -take-over: there is no storage, in which edges meet"), Fix: "add storage to the config file"}
	}
	all, commit, err := handover.Take(ctx, path)
	if errors.Is(err, handover.ErrNobody) {
		d.job.Log.Info("there is nobody to take over from", "storage", storageRoot(d.job.Options.Storage))
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d.server.Handed = make(map[string]net.Listener)
	d.handed = make(map[string]net.Listener)
	for key, l := range all {
		if address, found := strings.CutPrefix(key, edgeKey); found {
			d.server.Handed[address] = l
		} else {
			d.handed[key] = l
		}
	}
	return commit, nil
}

const (
	handOverSocket = "handover/edge.sock" // in the storage
	// edgeKey stands before the address of a listener for tunnels where it is handed over.
	edgeKey  = "edge "
	adminKey = "admin "
)

// have is a listener beside those for tunnels that was handed over, once; nil: there is none.
func (d *deployment) have(key string) net.Listener {
	l := d.handed[key]
	delete(d.handed, key)
	return l
}

// handOver lets another process have our listeners, whenever it asks, and then leaves everything to it but the
// tunnels that are open.
func (d *deployment) handOver(ctx context.Context, stop context.CancelFunc, running *sync.WaitGroup) {
	for _, l := range d.handed { // nobody needs them any more
		l.Close()
	}
	path := d.storagePath(handOverSocket)
	if path == "" {
		return
	}
	running.Go(func() {
		err := handover.Serve(ctx, path, d.listeners, d.job.Log)
		switch {
		case err == nil:
			d.job.Log.Info("handed over: open tunnels go on until they end")
			d.server.Retire()
			stop()
		case ctx.Err() == nil:
			d.job.Log.Warn("no other process can take over", "error", err, "hint", command.Hint(err))
		}
	})
}

// listeners are all that are open, with keys that say what they are for.
func (d *deployment) listeners() map[string]net.Listener {
	all := make(map[string]net.Listener)
	for address, l := range d.server.Listeners() {
		all[edgeKey+address] = l
	}
	if d.certificates != nil {
		maps.Copy(all, d.certificates.web)
	}
	if d.adminListener != nil {
		all[adminKey+d.adminAddress] = d.adminListener
	}
	return all
}

// start begins what runs beside the tunnels.
func (d *deployment) start(ctx context.Context, stop context.CancelFunc, running *sync.WaitGroup, config *edge.Config, next parts) error {
	d.background, d.running = ctx, running
	if d.certificates != nil {
		d.certificates.have = d.have
		if err := d.certificates.run(ctx, running, listeners(d.server, config)); err != nil {
			return err
		}
	}
	if err := d.startAdmin(ctx); err != nil {
		return err
	}
	loadTickets(ctx, d.server.Tickets)
	running.Go(func() { d.server.Tickets.Run(ctx) })
	d.follow(next)
	running.Go(func() { d.reloadOnSignal(ctx) })
	if storageRoot(d.job.Options.Storage) != "" {
		running.Go(func() { answerCommands(ctx, d.job, d.service()) })
	}
	return d.restrict()
}

// healthy says whether this process still does something.
func (d *deployment) healthy(context.Context) error {
	d.server.Tunnels() // it would wait for ever if the server did
	return nil
}

// startAdmin opens the listener for metrics and status.
func (d *deployment) startAdmin(ctx context.Context) error {
	address := d.file.Admin.Listen
	if address == "" {
		return nil
	}
	listen := tunnel.ListenConfig{Log: d.job.Log, Have: func(address string) net.Listener { return d.have(adminKey + address) }}
	opened, err := listen.Listen(ctx, address)
	if err != nil {
		return d.file.wrong("admin.listen", err.Error(), command.Hint(err))
	}
	d.adminListener, d.adminAddress = opened[0], address
	admin := &edge.Admin{
		Server: d.server, Metrics: d.server.Metrics, Certificates: d.certificateStatus, Storage: d.checkStorage,
		TokenFile: d.file.Admin.Token, Recent: d.recent, Log: d.job.Log, Version: command.Version(),
	}
	d.job.Log.Info("listening for metrics and status", "address", d.adminListener.Addr().String())
	d.running.Go(func() {
		if err := admin.Serve(ctx, d.adminListener); err != nil && ctx.Err() == nil {
			d.job.Log.Error("metrics and status", "error", err, "hint", command.Hint(err))
		}
	})
	return nil
}

// certificateStatus tells of all certificates, those from files too.
func (d *deployment) certificateStatus() (all []edge.CertificateStatus) {
	d.mu.Lock()
	parts, c := d.parts, d.certificates
	d.mu.Unlock()
	if c != nil && c.managed != nil {
		for _, s := range c.managed.Status() {
			all = append(all, edge.CertificateStatus(s))
		}
	}
	for _, p := range parts {
		switch c := p.value.(type) {
		case *edge.CertificateFiles:
			all = append(all, c.Status()...)
		case *selfSigned:
			leaf := c.cert.Leaf
			all = append(all, edge.CertificateStatus{Name: c.job.Options.ServerName, Issuer: "self-signed", NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter})
		}
	}
	slices.SortFunc(all, func(a, b edge.CertificateStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// checkStorage says why the storage cannot be written to.
func (d *deployment) checkStorage(ctx context.Context) error {
	root := storageRoot(d.job.Options.Storage)
	if root == "" {
		return nil
	}
	return storage.Check(ctx, &storage.File{Root: root})
}

// restrict takes all files from us that the config does not name.
func (d *deployment) restrict() error {
	switch {
	case d.job.NoSandbox:
		d.job.Log.Info("sandbox", "state", "off: -no-sandbox")
		return nil
	case d.file.runsPrograms():
		d.job.Log.Info("sandbox", "state", "off: the config names a program, which may need anything")
		return nil
	}
	s, err := sandbox.Restrict(d.reach(d.file))
	if err != nil {
		return err
	}
	d.sandbox = s
	d.job.Log.Info("sandbox", "state", s.State)
	return nil
}

// runsPrograms tells whether the config names programs.
func (c *configFile) runsPrograms() bool {
	return dns.Runs(c.ACME.DNS) || c.ACME.OnDemand != "" && !strings.Contains(c.ACME.OnDemand, "://")
}

// reach are the files that the config needs.
func (d *deployment) reach(c *configFile) sandbox.Paths {
	p := sandbox.Paths{Read: []string{c.name, c.ACME.Root, c.Admin.Token}, Write: dns.Files(c.ACME.DNS)}
	for _, s := range c.Sites {
		p.Read = append(p.Read, s.Cert, s.Key, s.OCSP, s.Root, s.ClientCA, s.ClientCRL, s.Tokens)
		for _, r := range s.Routes {
			p.Read = append(p.Read, r.Tokens)
		}
		p.Write = append(p.Write, s.AccessLog)
	}
	for _, e := range c.ACME.EAB {
		name, _ := strings.CutPrefix(e, "file:")
		if name != e {
			p.Read = append(p.Read, name)
		}
	}
	addresses := append([]string{c.Admin.Listen, c.HTTP}, c.Listen...)
	for _, l := range c.Listeners {
		addresses = append(addresses, l.Address)
	}
	for _, a := range addresses {
		if path, found := strings.CutPrefix(a, "unix:"); found {
			p.Write = append(p.Write, path)
		}
	}
	p.Write = append(p.Write, storageRoot(d.job.Options.Storage))
	given := func(all []string) []string { return slices.DeleteFunc(all, func(s string) bool { return s == "" }) }
	p.Read, p.Write = given(p.Read), given(p.Write)
	return p
}

// checkConfig says whether an edge would start with the config file.
func checkConfig(_ context.Context, job *command.Job) error {
	file, err := readConfig(job.Argument)
	if err != nil {
		return err
	}
	// Nothing is written: whoever checks may be another user than the edge.
	job.Options.Storage = cmp.Or(job.Options.Storage, file.Storage)
	d := &deployment{job: job, parts: make(parts), checking: true}
	config, _, err := d.build(file)
	if err != nil {
		return err
	}
	fmt.Fprintf(job.Stdout, "%s is fine: %s, %s\n", job.Argument, counted(len(config.Listeners), "listener"), counted(len(config.Sites), "site"))
	return nil
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// service is what commands can ask of this edge.
func (d *deployment) service() control.Service {
	service := control.Service{Reload: d.reload}
	if d.certificates != nil {
		service.Certificates = d.certificates.managed
	}
	return service
}

// reloadOnSignal reloads with each SIGHUP until ctx ends. After that the signal does nothing: it must not end tunnels
// that go on after a hand-over.
func (d *deployment) reloadOnSignal(ctx context.Context) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		if err := d.reload(ctx); err != nil {
			d.job.Log.Error("config refused, the old one goes on", "error", err, "hint", command.Hint(err))
		}
	}
}

// reload takes up what the file says now. Where that is wrong, nothing changes.
func (d *deployment) reload(ctx context.Context) (err error) {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	service.Reloading()
	defer func() {
		d.server.Metrics.Reloaded(err)
		service.Ready("")
	}()
	file, err := readConfig(d.job.Config)
	if err != nil {
		return err
	}
	if err := file.needsRestart(d.file); err != nil {
		return err
	}
	if missing := d.sandbox.Missing(d.reach(file)); len(missing) > 0 || d.sandbox != nil && file.runsPrograms() {
		return &configError{file: file.name, problem: fmt.Sprintf("the sandbox does not let us read %s", strings.Join(missing, ", ")),
			fix: "restart the edge; until then the old config goes on. -no-sandbox starts it without"}
	}
	config, next, err := d.build(file)
	if err != nil {
		return err
	}
	if err := d.server.Apply(ctx, config); err != nil {
		return err
	}
	if d.certificates != nil && d.certificates.managed != nil {
		if err := d.certificates.managed.SetNames(file.acmeNames()); err != nil {
			return err
		}
	}
	d.follow(next)
	for _, p := range next {
		if a, ok := p.value.(*accessLog); ok {
			if err := a.file.Reopen(); err != nil {
				d.job.Log.Warn("access log", "error", err, "hint", command.Hint(err))
			}
		}
	}
	d.file = file
	d.job.Log.Info("config taken up", "file", file.name, "listeners", len(config.Listeners), "sites", len(config.Sites))
	return nil
}

// needsRestart refuses what cannot change while the edge runs.
func (c *configFile) needsRestart(old *configFile) error {
	acmeNow, acmeOld := c.ACME, old.ACME
	for _, k := range []struct {
		path    string
		changed bool
	}{
		{"http", c.HTTP != old.HTTP},
		{"storage", c.Storage != old.Storage},
		{"log-level", c.LogLevel != old.LogLevel},
		{"admin", c.Admin != old.Admin},
		{"acme", fmt.Sprint(acmeNow) != fmt.Sprint(acmeOld)},
		{"site", len(c.acmeNames()) > 0 && len(old.acmeNames()) == 0 && old.ACME.OnDemand == ""},
	} {
		if k.changed {
			what := k.path + " has changed"
			if k.path == "site" {
				what = "the first site with certificate = \"acme\""
			}
			return c.wrong(k.path, what+", which takes a restart", "restart the edge; until then the old config goes on")
		}
	}
	return nil
}

// follow makes next the parts in use: those that are new follow their files from now on.
func (d *deployment) follow(next parts) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, p := range d.parts {
		if next[key] == nil && p.stop != nil {
			p.stop()
		}
	}
	for _, p := range next {
		if p.stop == nil {
			var ctx context.Context
			ctx, p.stop = context.WithCancel(d.background)
			d.running.Go(func() { p.value.Watch(ctx) })
		}
	}
	d.parts = next
}

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
	config.Dial = (&tunnel.Dialer{Fwmark: b.Fwmark}).Dial
	for _, step := range []func(*edge.Config) error{b.listeners, b.times, b.limits, b.names, b.acme, b.sites, b.admin} {
		if err := step(config); err != nil {
			return nil, err
		}
	}
	return config, nil
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
	switch l.WhenFull {
	case "", "queue":
	case "refuse":
		config.Limits.Refuse = true
	default:
		return b.wrong("limits.when-full", fmt.Sprintf("%q is neither queue nor refuse", l.WhenFull), `write when-full = "queue" or "refuse"`)
	}
	config.Limits.Connections = cmp.Or(l.Connections, connectionsThatFit())
	config.Limits.PerAddress = cmp.Or(l.PerAddress, max(1, config.Limits.Connections/4))
	config.Limits.Rate = cmp.Or(l.Rate, 1000)
	return nil
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
	if len(names) == 0 && b.ACME.OnDemand == "" || !b.tls() {
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
		if section.Target == "" {
			return nil, b.wrong(at, "target is missing", "add target = \"127.0.0.1:22\", the address to which the tunnel goes")
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
	access := given([]key{{"from", s.From != nil}, {"tokens", s.Tokens != ""}, {"clients", s.Clients != nil}, {"max", s.Max != 0}})
	if s.Proxy != "" && s.Pass == "" {
		access = append(access, "proxy-protocol")
	}
	certificate := given([]key{{"certificate", s.Certificate != ""}, {"cert", s.Cert != ""}, {"key", s.Key != ""}, {"ocsp", s.OCSP != ""}, {"client-ca", s.ClientCA != ""}})
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

// selfSigned is a certificate that nobody but us has signed.
type selfSigned struct {
	job      *command.Job
	checking bool
	cert     *tls.Certificate
}

// Load reads the certificate or makes it.
func (s *selfSigned) Load() (err error) {
	if s.checking {
		s.cert, err = edge.SelfSigned(s.job.Options.ServerName)
		return err
	}
	s.cert, err = selfSignedCertificate(s.job)
	return err
}

// Watch has nothing to do: it is good for years.
func (s *selfSigned) Watch(context.Context) {}

// GetCertificate is for tls.Config.
func (s *selfSigned) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.cert, nil
}

// part returns the value of that key which is in use, or else loads fresh.
func (b *builder) part(key string, fresh watched) (watched, error) {
	if p := cmp.Or(b.next[key], b.deployment.parts[key]); p != nil {
		b.next[key] = p
		return p.value, nil
	}
	if err := fresh.Load(); err != nil {
		return nil, err
	}
	b.next[key] = &part{value: fresh}
	return fresh, nil
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

// route fills in what routes with and without HTTP have in common.
func (b *builder) route(path string, r *edge.Route, proxy string, a accessSection, s *siteSection) error {
	if _, _, err := tunnel.ParseAddress(r.Target); err != nil {
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

// accessLog is a log file that lives as long as a config names it.
type accessLog struct {
	name     string
	log      *slog.Logger
	checking bool
	file     *edge.LogFile
}

// Load opens the file.
func (a *accessLog) Load() (err error) {
	if a.checking {
		_, err = os.Stat(filepath.Dir(a.name))
		return err
	}
	a.file, err = edge.OpenLogFile(a.name, a.log)
	return err
}

// Watch closes the file at the end of ctx. It follows the name by itself.
func (a *accessLog) Watch(ctx context.Context) {
	<-ctx.Done()
	a.file.Close()
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

// problemOf is err without the option that it would be about on a command line.
func problemOf(err error) string {
	var option *options.Error
	if errors.As(err, &option) {
		return option.Problem
	}
	return err.Error()
}

// storagePath is a file in the storage; empty without one.
func (d *deployment) storagePath(name string) string {
	root := storageRoot(d.job.Options.Storage)
	if root == "" {
		return ""
	}
	return filepath.Join(root, name)
}
