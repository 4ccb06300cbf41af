package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"raimon/acme"
	"raimon/internal/command"
	"raimon/internal/control"
	"raimon/storage"
)

const certsHelp = `raimons certs looks after the certificates that raimons obtains by itself.

    raimons certs list [-json] [options]   what there is, and what went wrong
    raimons certs renew <name> [options]   replace a certificate now
    raimons certs revoke <name> [options]  tell the CA to trust it no more

The options are those of the edge, in quotes. With storage= in them, or without
it at the usual place, certs finds the edge that is running there, and the edge
does the work. So this is enough for most:

    raimons certs list
    raimons certs renew edge.example.com
    raimons certs list 'storage=/srv/raimon'
    raimons certs list -config /etc/raimon/edge.toml

Where no edge is running, list and revoke work on what is stored, and renew
needs all of the edge's options that have to do with certificates; it takes port
80 (or http=) and port 443 as long as it runs:

    raimons certs renew edge.example.com \
        'tls;acme=edge.example.com;email=me@example.com'

An edge replaces what was revoked at once. Without one it is removed, and the
next edge obtains another. To talk to an edge, be the user who owns its storage,
or root.

Flags:
  -json                      list prints an array of objects, with times as in
                             RFC 3339
  -v                         log what is done, to standard error
  -log-format text|json      default: text on a terminal, else json
  -h                         print this

Times are in UTC. Exit status: 0 when it is done, 1 when the CA or something
else said no, 23 when the options are wrong.
`

var certsCommand = command.Command{
	Name: "certs",
	Help: certsHelp,
	Actions: []command.Action{
		{Word: "list", Options: true, JSON: true},
		{Word: "renew", Argument: "name", Options: true},
		{Word: "revoke", Argument: "name", Options: true},
	},
	Run: func(ctx context.Context, job *command.Job) error {
		err := certs(ctx, job)
		if err != nil && ctx.Err() != nil {
			return command.ErrInterrupted
		}
		return err
	},
}

func certs(ctx context.Context, job *command.Job) error {
	if job.Options.LogLevel != "debug" {
		log.SetOutput(io.Discard) // see run
	}
	if err := storageOfConfig(job); err != nil {
		return err
	}
	root := storageRoot(job.Options.Storage)
	if root == "" {
		return &command.ConfigError{Err: errors.New("no storage to look into: neither storage= nor a home folder is known"), Fix: "add storage= as the edge has it"}
	}
	if err := checkStorage(root, job.Action); err != nil {
		return err
	}
	edges, err := control.Find(ctx, root)
	if err != nil {
		return err
	}
	if job.Action == "list" {
		return listCerts(ctx, job, root, edges)
	}
	name, err := acme.ParseName(job.Argument)
	if err != nil {
		return &command.ConfigError{Err: err, Fix: command.Hint(err)}
	}
	edges, err = keeping(ctx, job.Log, edges, name)
	if err != nil {
		return err
	}
	switch {
	case len(edges) > 0:
		return askEdges(ctx, job, edges, name)
	case job.Action == "renew":
		return renewHere(ctx, job, name)
	}
	return revokeHere(ctx, job, root, name)
}

// checkStorage finds out whether root is the wrong folder, or that of another user.
func checkStorage(root, action string) error {
	info, err := os.Stat(root)
	fix := "storage= names the folder that the edge has; without it, that is a folder of the user who runs raimons"
	switch {
	case err == nil && !info.IsDir():
		err = fmt.Errorf("%s is no folder", root)
	case err == nil, errors.Is(err, fs.ErrNotExist) && action == "renew": // the first certificate makes it
		return nil
	case errors.Is(err, fs.ErrPermission):
		fix = "only the owner of the storage may look into it: become that user, or root"
	}
	return &command.ConfigError{Err: fmt.Errorf("storage: %w", err), Fix: fix}
}

// askAll asks all edges at once what they keep, and tells of those that do not answer.
func askAll(ctx context.Context, log *slog.Logger, edges []*control.Edge) (answers [][]acme.Status, errs []error) {
	answers, errs = make([][]acme.Status, len(edges)), make([]error, len(edges))
	var all sync.WaitGroup
	for n, e := range edges {
		all.Go(func() { answers[n], errs[n] = e.Certificates(ctx) })
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			log.Warn("an edge does not say what it keeps", "error", err, "hint", cmp.Or(command.Hint(err), "is it stopped, or very busy?"))
		}
	}
	return answers, errs
}

// listCerts prints what the edges keep, or what is stored.
func listCerts(ctx context.Context, job *command.Job, root string, edges []*control.Edge) error {
	var all []acme.Status
	answers, errs := askAll(ctx, job.Log, edges)
	for n, answer := range answers {
		if errs[n] == nil {
			all = append(all, answer...)
		}
	}
	switch {
	case len(edges) == 0:
		fmt.Fprintln(os.Stderr, "no edge is running on this storage: this is what is stored")
		var err error
		if all, err = acme.Stored(ctx, &storage.File{Root: root}); err != nil {
			return err
		}
	case !slices.Contains(errs, nil):
		return errors.Join(errs...)
	default:
		all = merge(all)
	}
	if job.JSON {
		return printJSON(os.Stdout, all)
	}
	if len(all) == 0 {
		fmt.Fprintln(os.Stderr, "there are no certificates")
		return nil
	}
	return printTable(os.Stdout, all)
}

// merge makes one of what several edges say of the same name: the newest certificate, and what went wrong
// with any.
func merge(all []acme.Status) []acme.Status {
	slices.SortStableFunc(all, func(a, b acme.Status) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), b.NotAfter.Compare(a.NotAfter))
	})
	merged := []acme.Status{}
	for _, s := range all {
		if n := len(merged) - 1; n >= 0 && merged[n].Name == s.Name {
			if merged[n].LastError == "" {
				merged[n].LastError, merged[n].Hint = s.LastError, s.Hint
			}
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

// keeping returns those of edges that keep the certificate of name. One that does not answer may well be
// among them: then nothing is done behind its back.
func keeping(ctx context.Context, log *slog.Logger, edges []*control.Edge, name string) ([]*control.Edge, error) {
	answers, errs := askAll(ctx, log, edges)
	var keepers []*control.Edge
	for n, e := range edges {
		if slices.ContainsFunc(answers[n], func(s acme.Status) bool { return s.Name == name }) {
			keepers = append(keepers, e)
		}
	}
	if len(keepers) == 0 {
		return nil, errors.Join(errs...)
	}
	return keepers, nil
}

// askEdges has the first edge do it; the others take up the result. Asked too, they would each use up one
// of the few certificates that a CA gives in a week, and revoke what the first has just obtained.
func askEdges(ctx context.Context, job *command.Job, edges []*control.Edge, name string) error {
	first, did := edges[0], "renewed"
	ask := first.Renew
	if job.Action == "revoke" {
		ask, did = first.Revoke, "revoked and replaced"
	}
	job.Log.Debug("asking the edge", "pid", first.PID, "name", name)
	s, err := ask(ctx, name)
	if err != nil {
		return err
	}
	for _, e := range edges[1:] {
		if _, err := e.Reload(ctx, name); err != nil {
			job.Log.Warn("another edge has not taken up the new certificate", "pid", e.PID, "name", name, "error", err, "hint", "restart it")
		}
	}
	fmt.Printf("%s: %s by the edge with process id %s, valid until %s, from %s\n", name, did, first.PID, timeText(s.NotAfter), issuerText(s.Issuer))
	return nil
}
