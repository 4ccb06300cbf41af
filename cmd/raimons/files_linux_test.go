package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"raimon/internal/commandtest"
	"raimon/internal/tunneltest"
)

// openFiles returns the limits of a process.
func openFiles(t *testing.T, pid int) (soft, hard int) {
	t.Helper()
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(limits), "Max open files")
	if _, err := fmt.Sscan(line, &soft, &hard); err != nil {
		t.Fatalf("limit of open files: %v in\n%s", err, limits)
	}
	return soft, hard
}

// Package os raises the soft limit, which is 1024 nearly everywhere, to one below the hard one.
func TestFileLimitIsRaised(t *testing.T) {
	t.Parallel()
	p := commandtest.Start(t, exec.Command("sh", "-c", "ulimit -S -n 64 && ulimit -H -n 300 && exec raimons 127.0.0.1:0 "+deadTarget))
	if soft, hard := openFiles(t, p.PID()); hard != 300 || soft < hard-1 {
		t.Errorf("limit of open files: soft %d, hard %d; want 299 or 300 of 300", soft, hard)
	}
}

func TestOutOfFiles(t *testing.T) {
	t.Parallel()
	const files = 40
	script := fmt.Sprintf("ulimit -n %d && exec raimons 127.0.0.1:0 %s 'tls;servername=localhost;storage=off;timeout=1h'",
		files, tunneltest.Echo(t))
	p := commandtest.Start(t, exec.Command("sh", "-c", script))

	// Silent clients, each of which holds one descriptor of the edge; the last ones wait in the kernel.
	var clients []net.Conn
	for range files + 20 {
		clients = append(clients, commandtest.Dial(t, p.Address))
	}

	// It pauses longer and longer: 9 lines are 2.3 seconds.
	p.Log.Wait(t, `"msg":"accept","error":".*too many open files","hint":".*ulimit -n.*","retry_in":"1s"`)
	if n := p.Log.Count(`"msg":"accept"`); n > 12 {
		t.Errorf("%d lines about accept within some seconds:\n%s", n, p.Log)
	}
	if !p.Running() {
		t.Fatal("ended")
	}

	for _, c := range clients {
		c.Close()
	}
	c := tls.Client(commandtest.Dial(t, p.Address), &tls.Config{InsecureSkipVerify: true})
	defer c.Close()
	c.SetDeadline(time.Now().Add(commandtest.Patience))
	commandtest.Echoed(t, c)
}
