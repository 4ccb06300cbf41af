package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"sync"
)

// program is raimons or raimonc, running.
type program struct {
	address string // it listens here

	stop func() // ends it and waits until it has
	log  *log
}

// log is what a program has said so far.
type log struct {
	mu      sync.Mutex
	said    map[string]bool // messages
	changed chan struct{}   // closed and replaced with each
}

// start returns once the program listens. If it ends before stop is called, end is told why.
func start(ctx context.Context, end func(error), path string, args ...string) (*program, error) {
	name := filepath.Base(path)
	cmd := exec.Command(path, args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	running, stopping := context.WithCancel(context.Background())
	p := &program{log: &log{said: make(map[string]bool), changed: make(chan struct{})}}
	ended, listens := make(chan struct{}), make(chan string, 1)
	go func() {
		defer close(ended)
		complaint := p.log.follow(stderr, listens)
		err := cmd.Wait()
		if running.Err() == nil {
			end(fmt.Errorf("%s ended early (%v) %s", name, err, complaint))
		}
	}()
	p.stop = func() {
		stopping()
		cmd.Process.Kill()
		<-ended
	}
	select {
	case p.address = <-listens:
		return p, nil
	case <-ctx.Done():
		p.stop()
		return nil, context.Cause(ctx)
	}
}

// follow reads the log to its end, tells where the program listens, and returns the last complaint.
func (l *log) follow(r io.Reader, listens chan<- string) (complaint string) {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		var line struct{ Level, Msg, Address string }
		// An error that ends the program is plain text.
		if json.Unmarshal(lines.Bytes(), &line) != nil || line.Level != "INFO" {
			complaint = lines.Text()
		}
		if line.Msg == "listening" {
			listens <- line.Address
		}
		l.mu.Lock()
		l.said[line.Msg] = true
		close(l.changed)
		l.changed = make(chan struct{})
		l.mu.Unlock()
	}
	return complaint
}

// await waits until the program has logged message.
func (p *program) await(ctx context.Context, message string) error {
	for {
		p.log.mu.Lock()
		said, changed := p.log.said[message], p.log.changed
		p.log.mu.Unlock()
		if said {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
