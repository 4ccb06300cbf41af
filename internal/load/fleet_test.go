//go:build load && linux

package load

import (
	"errors"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"

	"raimon/internal/commandtest"
)

// transport is one of tcp, ws, tls and wss with the option strings of both sides.
type transport struct{ name, server, client string }

// transports leave no files behind, and have time: two cores are slow at thousands of handshakes at once.
func transports() []transport {
	const (
		timeout = "timeout=2m"
		ws      = ";ws;host=localhost;path=/tunnel"
		server  = ";tls;servername=localhost;storage=off"
		client  = ";tls;sni=localhost;insecure"
	)
	return []transport{
		{"tcp", timeout, timeout},
		{"ws", timeout + ws, timeout + ws},
		{"tls", timeout + server, timeout + client},
		{"wss", timeout + ws + server, timeout + ws + client},
	}
}

// fleet is an edge and a client, processes of their own, and the target of the tunnels through them.
type fleet struct {
	*target
	edge, client *commandtest.Process
}

// launcher makes the command that runs a program, as exec.Command does.
type launcher func(program string, arguments ...string) *exec.Cmd

func launch(t testing.TB, tr transport, command launcher) *fleet {
	t.Helper()
	f := &fleet{target: newTarget(t)}
	f.edge = commandtest.Start(t, command("raimons", "127.0.0.1:0", f.target.address, tr.server))
	f.client = commandtest.Start(t, command("raimonc", "127.0.0.1:0", f.edge.Address, tr.client))
	return f
}

// open makes n tunnels, some at a time; they are closed with the test.
func (f *fleet) open(t testing.TB, n int) []*line {
	t.Helper()
	lines := make([]*line, n)
	errs := make([]error, n)
	var next atomic.Int64
	var openers sync.WaitGroup
	for range 64 {
		openers.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				lines[i], errs[i] = f.target.open(f.client.Address)
			}
		})
	}
	openers.Wait()
	t.Cleanup(func() { closeAll(lines) })
	none(t, errs)
	return lines
}

func closeAll(lines []*line) {
	for _, l := range lines {
		if l != nil {
			l.close()
		}
	}
}

// each runs do for all lines at the same time.
func each(t testing.TB, lines []*line, do func(*line) error) {
	t.Helper()
	errs := make([]error, len(lines))
	var all sync.WaitGroup
	for i, l := range lines {
		all.Go(func() { errs[i] = do(l) })
	}
	all.Wait()
	none(t, errs)
}

// none fails the test with the first of errs, if there are any.
func none(t testing.TB, errs []error) {
	t.Helper()
	const shown = 10
	var found []error
	for _, err := range errs {
		if err != nil {
			found = append(found, err)
		}
	}
	if len(found) > 0 {
		t.Fatalf("%d of %d tunnels failed, such as:\n%v", len(found), len(errs), errors.Join(found[:min(shown, len(found))]...))
	}
}
