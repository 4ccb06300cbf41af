package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"raimon/internal/command"
	"raimon/internal/configfile"
	"raimon/internal/control"
	"raimon/internal/service"
	"raimon/internal/sockets"
)

const checkHelp = `raimons check says whether an edge would start with a config file, and why not.

    raimons check <file>

It reads all that the file names: certificates, keys, tokens, folders. It opens
no port and asks no CA.

Exit status: 0 when the edge would start, 23 when the file is wrong.
`

var checkCommand = command.Command{Name: "check", Help: checkHelp, Actions: []command.Action{{Argument: "file"}}, Run: checkConfig}

const reloadHelp = `raimons reload has a running edge take up its config file anew, and drops no
tunnel.

    raimons reload                       the edge with the usual storage
    raimons reload -config <file>        the edge with the storage that it names
    raimons reload 'storage=<folder>'    the edge with that storage

Where the file is wrong, reload says why, and the edge goes on with what it had.
SIGHUP does the same, but says so in the log only. To talk to an edge, be the
user who owns its storage, or root.

Exit status: 0 when it is done, 1 when the edge said no, 23 when the options are
wrong.
`

var reloadCommand = command.Command{Name: "reload", Help: reloadHelp, Actions: []command.Action{{Options: true}}, Run: reloadEdges}

// reloadEdges asks all edges that run on the storage.
func reloadEdges(ctx context.Context, job *command.Job) error {
	if err := storageOfConfig(job); err != nil {
		return err
	}
	root := storageRoot(job.Options.Storage)
	if root == "" {
		return &command.ConfigError{Err: errors.New("no storage to look into: neither storage= nor a home folder is known"), Fix: "add storage= as the edge has it"}
	}
	edges, err := control.Find(ctx, root)
	if err != nil {
		return err
	}
	if len(edges) == 0 {
		return &sockets.Error{Text: "no edge is running on " + root, Fix: "name its storage with -config, or with storage= as the edge has it"}
	}
	var failed []error
	for _, e := range edges {
		if err := e.ReloadConfig(ctx); err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintf(job.Stdout, "the edge with process id %s has taken up its config\n", e.PID)
	}
	return errors.Join(failed...)
}

// storageOfConfig makes the storage that a config file names that of job, for commands about the edge that runs with it.
func storageOfConfig(job *command.Job) error {
	if job.Config == "" || job.Options.Storage != "" {
		return nil
	}
	file, err := readConfig(job.Config)
	if err != nil {
		return err
	}
	job.Options.Storage = file.Storage
	return nil
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
	const untilThen = "restart the edge; until then the old config goes on. With -no-sandbox there are no such limits"
	if missing := d.sandbox.Missing(d.reach(file)); len(missing) > 0 {
		return &configfile.Error{File: file.from.Name, Problem: "the sandbox of the running edge does not reach " + strings.Join(missing, ", "), Fix: untilThen}
	}
	if d.sandbox != nil && file.runsPrograms() {
		return &configfile.Error{File: file.from.Name, Problem: "the sandbox of the running edge does not let programs run", Fix: untilThen}
	}
	config, next, err := d.build(file)
	if err == nil {
		err = d.server.Apply(ctx, config)
	}
	if err != nil {
		next.discard()
		return err
	}
	if d.certificates != nil && d.certificates.managed != nil {
		if err := d.certificates.managed.SetNames(file.acmeNames()); err != nil { // build has checked them
			d.job.Log.Error("names of certificates", "error", err, "hint", command.Hint(err))
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
	d.job.Log.Info("config taken up", "file", file.from.Name, "listeners", len(config.Listeners), "sites", len(config.Sites))
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
		{"fast-open", c.FastOpen != old.FastOpen},
		{"fwmark", c.Fwmark != old.Fwmark},
		{"log-level", c.LogLevel != old.LogLevel},
		{"admin", c.Admin != old.Admin},
		{"acme", fmt.Sprint(acmeNow) != fmt.Sprint(acmeOld)},
		{"site", c.asksCAs() && !old.asksCAs()},
	} {
		if k.changed {
			what := k.path + " has changed"
			if k.path == "site" {
				what = "this is the first config with a certificate from a CA"
			}
			return c.wrong(k.path, what+", which takes a restart", "restart the edge; until then the old config goes on")
		}
	}
	return nil
}
