package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"raimon/internal/command"
	"raimon/internal/doctor"
	"raimon/internal/options"
	"raimon/tunnel"
)

const doctorHelp = `raimonc doctor looks at everything from this machine to the target of a tunnel.

    raimonc doctor <remote> [options]       remote and options as for a tunnel
    raimonc doctor -config <file> [tunnel]  one tunnel of a file, or all of them

Each step has a line: ok, warning or failed, what was found, and how long it
took; below a failure or a warning stands what to do. It goes as far as it can:
after a failure, the steps that need what has failed are left out.

    options      those that have no effect
    proxy        which one, and who says so: option proxy, or the environment
    dns          the addresses of the edge, or of the proxy
    tcp          each address, tried on its own
    connect      the way through the proxy
    tls          version, key exchange, cipher, ALPN
    certificate  its names, who issued it, how long it lasts, why it is trusted
    staple       what its CA has said of it lately
    clock        this machine's, next to that of the edge
    resumption   whether a second connection is faster
    upgrade      the WebSocket, and which program the edge is
    echo         the time to the edge and back, through the tunnel
    throughput   what goes through both ways at once: 2 seconds, 32 MiB at most
    target       whether the edge reaches it, and what it says by itself
    programs     how long they wait: a new connection, and one from the pool

It makes three connections to the edge, one after the other, and one more to
each address. The target sees one of them (in tls two, in tcp all), on which
nothing is said. A step takes timeout= (10 s) at most.

Flags:
  -json                      print an array with one object for each tunnel
  -h                         print this

Exit status: 0 when nothing has failed, 1 otherwise, 23 when the options or the
file are wrong.
`

var doctorCommand = command.Command{Name: "doctor", Help: doctorHelp,
	Actions: []command.Action{{Argument: "remote", Edge: true, Options: true, JSON: true, Warnings: true}}, Run: runDoctor}

// diagnosis is what -json prints of a tunnel.
type diagnosis struct {
	Tunnel string        `json:"tunnel,omitempty"`
	Remote string        `json:"remote"`
	OK     bool          `json:"ok"`
	Steps  []doctor.Step `json:"steps"`
}

func runDoctor(ctx context.Context, job *command.Job) error {
	patients, err := patients(job)
	if err != nil {
		return err
	}
	all, failed := []diagnosis{}, []string{}
	for _, p := range patients {
		if len(patients) > 1 && !job.JSON {
			fmt.Fprintf(job.Stdout, "%s, %s\n", p.name, p.job.Remote)
		}
		d, err := examine(ctx, p)
		if err != nil {
			return err
		}
		if all = append(all, d); !d.OK {
			failed = append(failed, d.Steps[slices.IndexFunc(d.Steps, func(s doctor.Step) bool { return s.Verdict == doctor.Failed })].Name)
		}
	}
	if job.JSON {
		encoder := json.NewEncoder(job.Stdout)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(all); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("doctor: failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

// patient is a tunnel that is to be looked at.
type patient struct {
	name string
	job  *command.Job
	file *profiles // that it stands in; nil: none
	from *profile
}

// patients are the tunnels that job is about.
func patients(job *command.Job) ([]patient, error) {
	if job.Config == "" {
		return []patient{{job: job}}, nil
	}
	file, err := readProfiles(job.Config)
	if err != nil {
		return nil, err
	}
	for _, warning := range file.warnings {
		job.Log.Warn(warning)
	}
	var all []patient
	var names []string
	for _, p := range file.tunnels {
		names = append(names, p.name)
		if job.Argument == "" || job.Argument == p.name {
			own := p.job(job)
			own.Options.Warnings = nil // told with the file
			all = append(all, patient{p.name, own, file, p})
		}
	}
	if len(all) == 0 {
		return nil, &command.ConfigError{Err: fmt.Errorf("%s has no tunnel %q", job.Config, job.Argument), Fix: "it has " + strings.Join(names, ", ")}
	}
	return all, nil
}

// examine looks at p, and prints what it finds as it goes. Its error is a mistake in the options.
func examine(ctx context.Context, p patient) (diagnosis, error) {
	job := p.job
	// What is looked at is the network, not what is remembered of it.
	job.Options.ZeroRTT, job.Options.FastOpen = false, false
	d := diagnosis{Tunnel: p.name, Remote: job.Remote}
	examiner := &doctor.Doctor{Options: job.Options, Getenv: os.Getenv, Hint: command.Hint}
	var err error
	if examiner.Tunnel, err = newTunnel(ctx, p.name, job); err == nil {
		examiner.Direct, err = directDialer(job)
	}
	switch {
	case err != nil && p.file != nil:
		return d, p.file.aboutBuild(p.from, err)
	case err != nil:
		return d, err
	}
	var printing error
	examiner.Report = func(s doctor.Step) {
		if ctx.Err() != nil {
			return // what fails from now on is our own doing
		}
		d.Steps = append(d.Steps, s)
		if !job.JSON && printing == nil {
			printing = s.Print(job.Stdout)
		}
	}
	d.OK = examiner.Run(ctx)
	if ctx.Err() != nil {
		return d, command.ErrInterrupted
	}
	return d, printing
}

// directDialer is that of job without a proxy.
func directDialer(job *command.Job) (*tunnel.Dialer, error) {
	own, without := *job, *job.Options
	without.Proxy, without.ProxyAuth = options.Disabled, ""
	own.Options = &without
	return dialer(&own)
}
