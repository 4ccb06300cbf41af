package main

import (
	"context"
	"errors"
	"maps"
	"net"
	"strings"
	"sync"
	"syscall"

	"raimon/internal/command"
	"raimon/internal/handover"
	"raimon/internal/service"
)

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
// edge that runs. Commit ends the taking over, if there was one: what counts is its first call.
func (d *deployment) takeListeners(ctx context.Context) (commit func(error) error, err error) {
	nothing := func(error) error { return nil }
	activated, err := service.Listeners()
	if err != nil {
		return nil, err
	}
	for _, l := range activated {
		d.server.Inherited = append(d.server.Inherited, l.Listener)
	}
	if !d.job.TakeOver {
		return nothing, nil
	}
	path := d.storagePath(handOverSocket)
	if path == "" {
		return nil, &command.ConfigError{Err: errors.New("flag -take-over: there is no storage, in which edges meet"), Fix: "add storage to the config file"}
	}
	all, done, err := handover.Take(ctx, path)
	if errors.Is(err, handover.ErrNobody) {
		d.job.Log.Info("there is nobody to take over from", "storage", storageRoot(d.job.Options.Storage))
		return nothing, nil
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
	return func(reason error) error {
		err := done(reason)
		if reason == nil && err == nil {
			d.job.Log.Info("the process before us has handed over")
		}
		return err
	}, nil
}

// inUse adds to the hint of err, where somebody listens at an address of ours, that it may be an edge to take over from.
func (d *deployment) inUse(err error) error {
	if !errors.Is(err, syscall.EADDRINUSE) || d.job.TakeOver || d.storagePath(handOverSocket) == "" {
		return err
	}
	return inUseError{err}
}

type inUseError struct{ error }

func (e inUseError) Unwrap() error { return e.error }

func (e inUseError) Hint() string {
	return command.Hint(e.error) + "; or, if it is a raimons with the same storage, add -take-over: its tunnels go on"
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
