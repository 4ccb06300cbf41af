package main

import (
	"context"
	"errors"
	"fmt"

	"raimon/internal/command"
	"raimon/internal/control"
)

const checkHelp = `raimons check says whether an edge would start with a config file, and why not.

    raimons check <file>

It reads all that the file names: certificates, keys, tokens, folders. It opens no port and asks no CA.

Exit status: 0 when the edge would start, 23 when the file is wrong.
`

var checkCommand = command.Command{Name: "check", Help: checkHelp, Actions: []command.Action{{Argument: "file"}}, Run: checkConfig}

const reloadHelp = `raimons reload makes a running edge take up its config file anew, without dropping a tunnel.

    raimons reload                          the edge with the usual storage
    raimons reload -config <file>           the edge with the storage that the file names
    raimons reload 'storage=<folder>'       the edge with that storage

Where the file is wrong, reload says why, and the edge goes on with what it had. SIGHUP does the same, but
says so in the log only. To talk to an edge, be the user who owns its storage, or root.

Exit status: 0 when it is done, 1 when the edge said no, 23 when the options are wrong.
`

var reloadCommand = command.Command{Name: "reload", Help: reloadHelp, Actions: []command.Action{{}}, Run: reloadEdges}

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
		return &control.Error{Text: "no edge is running on " + root, Fix: "name its storage with -config, or with storage= as the edge has it"}
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
