package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"raimon/internal/autostart"
	"raimon/internal/client"
	"raimon/internal/command"
	"raimon/internal/service"
)

const checkHelp = `raimonc check says whether raimonc would start with a config file, and why not.

    raimonc check <file>

It reads all that the file names: certificates, keys, tokens. It opens no port
and reaches no edge; raimonc doctor does that.

Exit status: 0 when raimonc would start, 23 when the file is wrong.
`

var checkCommand = command.Command{Name: "check", Help: checkHelp, Actions: []command.Action{{Argument: "file"}}, Run: check}

func check(ctx context.Context, job *command.Job) error {
	tunnels, err := checkFile(ctx, job, job.Argument)
	if err != nil {
		return err
	}
	fmt.Fprintf(job.Stdout, "%s is fine: %s\n", job.Argument, counted(tunnels))
	return nil
}

// checkFile returns the number of tunnels in a file that raimonc would start with.
func checkFile(ctx context.Context, job *command.Job, name string) (tunnels int, err error) {
	all, err := readProfiles(name)
	if err != nil {
		return 0, err
	}
	for _, warning := range all.warnings {
		job.Log.Warn(warning)
	}
	built, err := all.build(ctx, job)
	return len(built), err
}

func counted(tunnels int) string {
	if tunnels == 1 {
		return "1 tunnel"
	}
	return fmt.Sprintf("%d tunnels", tunnels)
}

// runConfig is run with a config file.
func runConfig(ctx context.Context, job *command.Job) error {
	f := &follower{job: job}
	return autostart.Run(ctx, serviceName(job.Config), filepath.Dir(job.Config), job.LogTo, f.start, f.run)
}

// follower is a client that does what a config file says.
type follower struct {
	job    *command.Job
	client *client.Client

	loading sync.Mutex
}

// start opens what the file names.
func (f *follower) start(ctx context.Context) error {
	f.client = &client.Client{Log: f.job.Log, Hint: command.Hint}
	return f.load(ctx)
}

// run serves until ctx ends.
func (f *follower) run(ctx context.Context) error {
	defer f.client.Close()
	background, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { f.reloadOnSignal(background) })
	running.Go(func() { f.answerCommands(background) })
	if err := service.Ready(""); err != nil {
		f.job.Log.Warn("the service manager was not told", "error", err)
	}
	defer context.AfterFunc(ctx, func() { service.Stopping() })()
	return f.client.Run(ctx)
}

// load takes up what the file says now. Where that is wrong, nothing changes.
func (f *follower) load(ctx context.Context) error {
	f.loading.Lock()
	defer f.loading.Unlock()
	all, err := readProfiles(f.job.Config)
	if err != nil {
		return err
	}
	tunnels, err := all.build(ctx, f.job)
	if err != nil {
		return err
	}
	if err := f.client.Apply(ctx, tunnels); err != nil {
		return all.aboutListener(err, cmp.Or(f.twin(ctx, err), command.Hint(err)))
	}
	f.job.SetLogLevel(cmp.Or(f.job.Options.LogLevel, all.logLevel))
	for _, warning := range all.warnings {
		f.job.Log.Warn(warning)
	}
	return nil
}

// twin says what to do where it is a client with the same file that listens already; empty: it is none.
func (f *follower) twin(ctx context.Context, err error) string {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return ""
	}
	found, err := findRunning(ctx, f.job.Config, slog.New(slog.DiscardHandler))
	if err != nil || found[0].PID == os.Getpid() {
		return "" // nobody that can be asked
	}
	return fmt.Sprintf("a client runs with this file already, with the process id %d: raimonc reload has it take the file up", found[0].PID)
}

// reloadOnSignal loads the file anew with each SIGHUP until ctx ends.
func (f *follower) reloadOnSignal(ctx context.Context) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		f.reload(ctx)
	}
}

// reload is load, and says in the log what came of it.
func (f *follower) reload(ctx context.Context) error {
	if err := f.load(ctx); err != nil {
		f.job.Log.Error("config refused, the old one goes on", "error", err, "hint", command.Hint(err))
		return err
	}
	f.job.Log.Info("config taken up", "file", f.job.Config)
	return nil
}
