package main

import (
	"cmp"
	"context"
	"io"
	"log"
	"log/slog"
	"net"
	"path/filepath"
	"sync"

	"raimon/edge"
	"raimon/internal/command"
	"raimon/internal/sandbox"
	"raimon/internal/service"
	"raimon/storage"
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

// runConfig is run with a config file.
func runConfig(ctx context.Context, job *command.Job) error {
	d, err := openDeployment(job)
	if err != nil {
		return err
	}
	config, next, err := d.build(d.file)
	if err != nil {
		return err
	}
	commit, err := d.takeListeners(ctx)
	if err != nil {
		return err
	}
	if err := d.run(ctx, config, next, commit); err != nil {
		commit(err) // unless it is done
		return err
	}
	return nil
}

// openDeployment reads the config file that job names.
func openDeployment(job *command.Job) (*deployment, error) {
	file, err := readConfig(job.Config)
	if err != nil {
		return nil, err
	}
	if file.LogLevel != "" && job.Options.LogLevel == "" {
		job.SetLogLevel(file.LogLevel)
	}
	if cmp.Or(job.Options.LogLevel, file.LogLevel) != "debug" {
		log.SetOutput(io.Discard) // see run
	}
	recent := edge.NewRecentLog(job.Log.Handler())
	own, o := *job, *job.Options // the caller's are in use
	o.Storage = cmp.Or(o.Storage, file.Storage)
	own.Options, own.Log = &o, slog.New(recent)
	server := &edge.Server{Log: own.Log, Hint: command.Hint, Tickets: ticketKeys(&own), Metrics: edge.NewMetrics()}
	if keys := server.Tickets; keys.Storage != nil {
		keys.Storage = &storage.Watched{Storage: &storage.File{Root: storageRoot(o.Storage)}, Failed: server.Metrics.StorageFailed}
	}
	return &deployment{job: &own, server: server, file: file, parts: make(parts), recent: recent}, nil
}

// run does what config says until ctx ends, or another process has taken over and the last tunnel has ended. Commit
// ends our own taking over.
func (d *deployment) run(ctx context.Context, config *edge.Config, next parts, commit func(error) error) error {
	err := d.inUse(d.server.Apply(ctx, config))
	d.server.Metrics.Reloaded(err)
	if err != nil {
		return err
	}
	defer d.server.Close()
	d.closeUnused()
	background, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer awaitAll(&running, d.job.Log)
	defer stop()
	if err := d.start(background, &running, config, next); err != nil {
		return err
	}
	for _, l := range listeners(d.server, config) {
		d.job.Log.Info("listening", "address", l.Addr().String(), "sites", len(config.Sites))
	}
	if err := commit(nil); err != nil {
		return err
	}
	d.handOver(background, stop, &running)
	if err := service.Ready(counted(len(config.Sites), "site")); err != nil {
		d.job.Log.Warn("the service manager was not told", "error", err)
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

// start begins what runs beside the tunnels.
func (d *deployment) start(ctx context.Context, running *sync.WaitGroup, config *edge.Config, next parts) error {
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
	if err := d.restrict(); err != nil { // before anybody can reload
		return err
	}
	running.Go(func() { d.reloadOnSignal(ctx) })
	if storageRoot(d.job.Options.Storage) != "" {
		running.Go(func() { answerCommands(ctx, d.job, d.service()) })
	}
	return nil
}

// storagePath is a file in the storage; empty without one.
func (d *deployment) storagePath(name string) string {
	root := storageRoot(d.job.Options.Storage)
	if root == "" {
		return ""
	}
	return filepath.Join(root, name)
}
