package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// startTimeout is how long a program may take until it listens.
const startTimeout = 10 * time.Second

// process is a program that runs until it is stopped.
type process struct {
	cmd  *exec.Cmd
	name string
	log  *tail
	done chan struct{} // closed when it has ended
}

// launch starts a program in a process group of its own, which ends with ctx or with us.
func launch(ctx context.Context, path string, args, env []string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, path, args...), name: filepath.Base(path), log: &tail{}, done: make(chan struct{})}
	p.cmd.Env = append(environment(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	p.cmd.Cancel = func() error { return syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }
	p.cmd.WaitDelay = time.Second
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// environment is ours without proxies, which are no part of what is measured.
func environment() []string {
	var kept []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if !strings.HasSuffix(strings.ToLower(name), "_proxy") {
			kept = append(kept, e)
		}
	}
	return kept
}

// stop ends the process and waits for it.
func (p *process) stop() {
	syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// ended returns why a process runs no longer, nil if it does.
func (p *process) ended() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended (%v): %s", p.name, p.cmd.ProcessState, p.log.last())
	default:
		return nil
	}
}

// awaitListening waits until the process listens at address. It asks the kernel: a connection would
// already be a tunnel.
func (p *process) awaitListening(address string) error {
	for end := time.Now().Add(startTimeout); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if err := p.ended(); err != nil {
			return err
		}
		if listening, err := isListening(address); listening || err != nil {
			return err
		}
	}
	return fmt.Errorf("%s does not listen on %s: %s", p.name, address, p.log.last())
}

// isListening looks into /proc/net/tcp, which has addresses as hexadecimal numbers of the machine's byte order.
func isListening(address string) (bool, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false, err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return false, err
	}
	ip := net.ParseIP(host).To4()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		return false, err
	}
	const state = " 00000000:0000 0A " // no remote end, LISTEN
	return bytes.Contains(table, fmt.Appendf(nil, "%02X%02X%02X%02X:%04X%s", ip[3], ip[2], ip[1], ip[0], number, state)), nil
}

// cpu is the user and system time of all threads so far, dead ones included, to the nanosecond.
func (p *process) cpu() (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED of a process; see clock_getcpuclockid(3)
	var t unix.Timespec
	if err := unix.ClockGettime(^int32(p.cmd.Process.Pid)<<3|scheduled, &t); err != nil {
		return 0, errors.Join(fmt.Errorf("cpu time of %s: %w", p.name, err), p.ended())
	}
	return time.Duration(t.Nano()), nil
}

// memory is a number of bytes from /proc/PID/status, such as VmHWM.
func (p *process) memory(key string) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, errors.Join(err, p.ended())
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return n * 1024, err
		}
	}
	return 0, errors.Join(fmt.Errorf("no %s in /proc/PID/status of %s", key, p.name), p.ended())
}

// files counts open descriptors.
func (p *process) files() (float64, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		return 0, errors.Join(err, p.ended())
	}
	return float64(len(entries)), nil
}

// freeAddress is drawn from all of 127.0.0.0/8 and below the ports of outgoing connections: some
// programs have to be told where to listen.
func freeAddress() string {
	return fmt.Sprintf("127.%d.%d.%d:%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254), 20000+rand.IntN(12000))
}

// tail keeps the end of what a program says.
type tail struct {
	mu   sync.Mutex
	data []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const kept = 4 << 10
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	if len(t.data) > 2*kept {
		t.data = append([]byte(nil), t.data[len(t.data)-kept:]...)
	}
	return len(p), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.data)
}

// last is the last line that is not empty.
func (t *tail) last() string {
	lines := strings.Split(strings.TrimSpace(t.text()), "\n")
	line := lines[len(lines)-1]
	if len(line) > 300 {
		line = line[:300] + "…"
	}
	return line
}
