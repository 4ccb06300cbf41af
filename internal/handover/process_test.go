//go:build linux || darwin || freebsd

package handover_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"raimon/edge"
	"raimon/internal/handover"
	"raimon/tunnel"
)

const patience = 60 * time.Second

// Variables that make this test binary an edge.
const (
	roleVariable   = "RAIMON_HANDOVER_TEST_ROLE" // first, next, or what becomes of a process that takes over
	pathVariable   = "RAIMON_HANDOVER_TEST_PATH"
	listenVariable = "RAIMON_HANDOVER_TEST_LISTEN" // addresses, with blanks between
	targetVariable = "RAIMON_HANDOVER_TEST_TARGET"
)

func TestMain(m *testing.M) {
	role := os.Getenv(roleVariable)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := run(role); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println("ended")
}

// run is an edge that tunnels everything to the target, as cmd/raimons would run it.
func run(role string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	path := os.Getenv(pathVariable)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	server := &edge.Server{Log: log}
	commit := func(err error) error { return err }
	if role != "first" {
		var err error
		if server.Handed, commit, err = handover.Take(ctx, path); err != nil {
			return err
		}
	}
	switch role {
	case "hang": // until it is killed
		fmt.Println("taken")
		<-ctx.Done()
		return ctx.Err()
	case "fail":
		return commit(errors.New("the new config has a mistake\nand another line"))
	}
	config := &edge.Config{
		Sites: []*edge.Site{{Raw: &edge.Route{Target: os.Getenv(targetVariable)}}},
		Level: slog.LevelDebug, Timeout: 5 * time.Second, Drain: -1,
	}
	for address := range strings.FieldsSeq(os.Getenv(listenVariable)) {
		config.Listeners = append(config.Listeners, edge.Listener{Address: address, Plain: true})
	}
	if err := commit(server.Apply(ctx, config)); err != nil {
		return err
	}
	serving, end := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer end()
	running.Go(func() {
		err := handover.Serve(serving, path, server.Listeners, log)
		switch {
		case err == nil:
			server.Retire()
			fmt.Println("retired")
		case serving.Err() == nil:
			fmt.Println("error:", err)
		}
	})
	for c, err := net.Dial("unix", path); ; c, err = net.Dial("unix", path) { // until it is served
		if err == nil {
			c.Close()
			break
		}
	}
	for _, l := range config.Listeners {
		fmt.Println("listening", server.Listeners()[l.Address].Addr())
	}
	fmt.Println("ready")
	return server.Run(ctx)
}

// process is an edge in a process of its own.
type process struct {
	*exec.Cmd
	lines chan string // closed with its standard output
}

// settings are what processes of one edge share.
type settings struct {
	path, target string
	listen       []string
}

func (s *settings) start(t testing.TB, role string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0]), lines: make(chan string, 16)}
	p.Env = append(os.Environ(), roleVariable+"="+role, pathVariable+"="+s.path,
		listenVariable+"="+strings.Join(s.listen, " "), targetVariable+"="+s.target)
	p.Stderr = t.Output()
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(p.lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
	}()
	t.Cleanup(func() {
		p.Process.Kill()
		for range p.lines {
		}
		<-read
		p.Wait()
	})
	return p
}

// says waits for a line that begins with want, and returns the rest of it.
func (p *process) says(t testing.TB, want string) string {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("the process has ended, and did not say %q", want)
			}
			if rest, found := strings.CutPrefix(line, want); found {
				return strings.TrimSpace(rest)
			}
			if strings.HasPrefix(line, "error:") {
				t.Fatalf("the process says %q, want %q", line, want)
			}
		case <-limit:
			t.Fatalf("the process does not say %q", want)
		}
	}
}

// echoes tells whether what is written to c comes back.
func echoes(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	const text = "is anybody there"
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != text {
		return fmt.Errorf("%q came back", got)
	}
	return nil
}

// visit opens a connection, has it echo, and ends it in order.
func visit(address string) error {
	network, name, err := tunnel.ParseAddress(address)
	if err != nil {
		return err
	}
	c, err := net.Dial(network, name)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := echoes(c); err != nil {
		return err
	}
	if err := c.(tunnel.Conn).CloseWrite(); err != nil {
		return err
	}
	rest, err := io.ReadAll(c)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%q came at the end", rest)
	}
	return err
}
