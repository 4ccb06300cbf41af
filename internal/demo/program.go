package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
)

// program is raimons or raimonc, running.
type program struct {
	address string // it listens here
	pin     string // of its self-signed certificate, if it has one

	stop func() // ends it and waits until it has
}

// start returns once the program listens. If it ends before stop is called, end is told why.
func start(ctx context.Context, end func(error), path string, args ...string) (*program, error) {
	name := filepath.Base(path)
	cmd := exec.Command(path, args...)
	log, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	running, stopping := context.WithCancel(context.Background())
	ended, listens := make(chan struct{}), make(chan program, 1)
	go func() {
		defer close(ended)
		complaint := follow(log, listens)
		err := cmd.Wait()
		if running.Err() == nil {
			end(fmt.Errorf("%s ended early (%v) %s", name, err, complaint))
		}
	}()
	stop := func() {
		stopping()
		cmd.Process.Kill()
		<-ended
	}

	select {
	case p := <-listens:
		p.stop = stop
		return &p, nil
	case <-ctx.Done():
		stop()
		return nil, context.Cause(ctx)
	}
}

// follow reads the log to its end, tells when the program listens, and returns the last complaint.
func follow(log io.Reader, listens chan<- program) (complaint string) {
	var p program
	for lines := bufio.NewScanner(log); lines.Scan(); {
		var line struct{ Level, Msg, Address, Pin string }
		// An error that ends the program is plain text.
		if json.Unmarshal(lines.Bytes(), &line) != nil || line.Level != "INFO" {
			complaint = lines.Text()
		}
		if line.Pin != "" {
			p.pin = line.Pin
		}
		if line.Msg == "listening" {
			p.address = line.Address
			listens <- p
		}
	}
	return complaint
}
