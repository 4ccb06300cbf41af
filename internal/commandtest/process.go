package commandtest

import (
	"bytes"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// Process is a program in the background.
type Process struct {
	Address string // the first one it listens on
	Pin     string // of its self-signed certificate; empty without
	Log     *Log   // its standard error

	cmd   *exec.Cmd
	ended chan struct{} // closed once the process has ended and nobody holds its standard error any more
}

// Start starts cmd and waits until it listens. It is killed with the test.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p, err := start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("log of %s:\n%s", cmd, p.Log)
		}
		if trouble := p.trouble(); trouble != "" {
			t.Errorf("%s: %s", cmd, trouble)
		}
	})
	return p
}

var (
	listening  = regexp.MustCompile(`"?msg"?[:=]"?listening"?[ ,]"?address"?[:=]"?([^"\s]+)`)
	certifying = regexp.MustCompile(`\bpin"?[:=]"?([A-Za-z0-9+/=]{44})`)
)

func start(cmd *exec.Cmd) (*Process, error) {
	p := &Process{Log: newLog(), cmd: cmd, ended: make(chan struct{})}
	cmd.Stderr = p.Log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		cmd.Wait()
		p.Log.end()
		close(p.ended)
	}()
	found, err := p.Log.Find(listening)
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("%s: %w", cmd, err)
	}
	p.Address = found[1]
	if pin := certifying.FindStringSubmatch(p.Log.String()); pin != nil {
		p.Pin = pin[1]
	}
	return p, nil
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended waits for the end of the process, and of all who hold its standard error, and returns its exit
// status; -1 if a signal ended it.
func (p *Process) Ended(t testing.TB) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(Patience):
		t.Fatalf("%s: still running after %v", p.cmd, Patience)
	}
	return p.cmd.ProcessState.ExitCode()
}

// Running tells whether the process has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Kill ends the process at once, as kill -9 does.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	select {
	case <-p.ended:
	case <-time.After(Patience): // a child of it lives on and has its standard error
	}
}

// trouble is a panic or a data race in the log.
func (p *Process) trouble() string {
	for _, sign := range []string{"WARNING: DATA RACE", "panic: ", "fatal error: "} {
		if log := p.Log.String(); strings.Contains(log, sign) {
			return log[strings.Index(log, sign):]
		}
	}
	return ""
}

// Log is what a process has written so far.
type Log struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed when there is more
	ended   bool
}

func newLog() *Log { return &Log{changed: make(chan struct{})} }

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.announce()
	return l.text.Write(p)
}

func (l *Log) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.announce()
}

func (l *Log) announce() {
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Find waits for the first match and returns it with its groups.
func (l *Log) Find(pattern *regexp.Regexp) ([]string, error) {
	deadline := time.After(Patience)
	for {
		l.mu.Lock()
		text, changed, ended := l.text.String(), l.changed, l.ended
		l.mu.Unlock()
		if found := pattern.FindStringSubmatch(text); found != nil {
			return found, nil
		}
		if ended {
			return nil, fmt.Errorf("ended without %q in its log:\n%s", pattern, text)
		}
		select {
		case <-changed:
		case <-deadline:
			return nil, fmt.Errorf("no %q in the log after %v:\n%s", pattern, Patience, text)
		}
	}
}

// Wait waits until the log matches.
func (l *Log) Wait(t testing.TB, pattern string) {
	t.Helper()
	if _, err := l.Find(regexp.MustCompile(pattern)); err != nil {
		t.Fatal(err)
	}
}

// Count returns how many times the log matches now.
func (l *Log) Count(pattern string) int {
	return len(regexp.MustCompile(pattern).FindAllString(l.String(), -1))
}
