package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

// tunnel is a subject that runs.
type tunnel struct {
	subject
	address        string // connect here
	server, client *process
	target         *process // where it leads, among others
}

// startTunnel starts a subject whose server leads to target. The client reaches the server by the
// address that between makes of the server's; nil changes nothing.
func (l *lab) startTunnel(ctx context.Context, s subject, target string, between func(server string) (string, error)) (*tunnel, error) {
	t := &tunnel{subject: s, address: target, target: l.target}
	if s.bare() {
		return t, nil
	}
	server, client := freeAddress(), freeAddress()
	var err error
	if t.server, err = l.run(ctx, s.server, place{listen: server, to: target, target: target}); err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	if between != nil {
		if server, err = between(server); err != nil {
			t.stop()
			return nil, err
		}
	}
	if t.client, err = l.run(ctx, s.client, place{listen: client, to: server, target: target}); err != nil {
		t.stop()
		return nil, fmt.Errorf("client: %w", err)
	}
	t.address = client
	return t, nil
}

// ends are the processes of the tunnel: client and server, or none.
func (t *tunnel) ends() []*process {
	var ends []*process
	for _, p := range []*process{t.client, t.server} {
		if p != nil {
			ends = append(ends, p)
		}
	}
	return ends
}

// ended returns why a tunnel runs no longer, nil if it does.
func (t *tunnel) ended() error {
	for _, p := range t.ends() {
		if err := p.ended(); err != nil {
			return err
		}
	}
	return nil
}

func (t *tunnel) stop() {
	for _, p := range t.ends() {
		p.stop()
	}
}

// place is between what a program stands.
type place struct{ listen, to, target string }

// run starts one end of a tunnel and waits until it listens.
func (l *lab) run(ctx context.Context, p program, at place) (*process, error) {
	path, err := l.find(p.words[0])
	if err != nil {
		return nil, err
	}
	fill, err := l.filler(p.config, at)
	if err != nil {
		return nil, err
	}
	storage, err := os.MkdirTemp(l.dir, "state") // raimons keeps ticket keys, each edge its own
	if err != nil {
		return nil, err
	}
	process, err := launch(ctx, path, fill(p.words[1:]), append(fill(p.env), "STATE_DIRECTORY="+storage))
	if err != nil {
		return nil, err
	}
	if err := process.awaitListening(at.listen); err != nil {
		process.stop()
		return nil, err
	}
	return process, nil
}

// filler returns what replaces the placeholders of a program.
func (l *lab) filler(config string, at place) (func([]string) []string, error) {
	var pairs []string
	for name, address := range map[string]string{"listen": at.listen, "to": at.to, "target": at.target} {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, "{"+name+"}", address, "{"+name+"-host}", host, "{"+name+"-port}", port)
	}
	for name, file := range l.secrets {
		pairs = append(pairs, "{"+name+"}", file)
	}
	if config != "" {
		file, err := l.writeFile(strings.NewReplacer(pairs...).Replace(config))
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, "{config}", file)
	}
	return func(words []string) []string {
		var filled []string
		for _, word := range words {
			filled = append(filled, strings.NewReplacer(pairs...).Replace(word))
		}
		return filled
	}, nil
}

// writeFile puts text into a new private file.
func (l *lab) writeFile(text string) (string, error) {
	f, err := os.CreateTemp(l.dir, "config")
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(text)
	return f.Name(), errors.Join(err, f.Close())
}
