//go:build unix

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"raimon/internal/commandtest"
	"raimon/internal/tunneltest"
)

const deadTarget = "127.0.0.1:1" // tcpmux: nobody has it

func terminate(t *testing.T, p *commandtest.Process) {
	t.Helper()
	if err := syscall.Kill(p.PID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
}

// refused waits until address takes no more connections.
func refused(t *testing.T, address string) {
	t.Helper()
	for deadline := time.Now().Add(commandtest.Patience); ; {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatalf("%s still takes connections", address)
		}
	}
}

func TestDrainCutsWhatIsLeft(t *testing.T) {
	t.Parallel()
	p := commandtest.Start(t, exec.Command("raimons", "127.0.0.1:0", tunneltest.Echo(t), "drain=2s"))
	c := commandtest.Dial(t, p.Address)
	commandtest.Echoed(t, c)

	terminate(t, p)
	p.Log.Wait(t, `"shutting down","drain":"2s"`)
	refused(t, p.Address)
	commandtest.Echoed(t, c)

	// A cut is a reset, so that nobody takes it for the end of the stream.
	if n, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("got %d bytes, %v from the tunnel that was cut, want a reset", n, err)
	}
	if status := p.Ended(t); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
	p.Log.Wait(t, `"tunnel failed".*"error":"shut down while the tunnel was open`)
}

func TestDrainEndsWithTheLastTunnel(t *testing.T) {
	t.Parallel()
	p := commandtest.Start(t, exec.Command("raimons", "127.0.0.1:0", tunneltest.Echo(t), "drain=1h"))
	c := commandtest.Dial(t, p.Address)
	commandtest.Echoed(t, c)

	terminate(t, p)
	refused(t, p.Address)
	commandtest.Echoed(t, c)
	c.CloseWrite()

	if rest, err := io.ReadAll(c); len(rest) > 0 || err != nil {
		t.Errorf("got %q, %v; want the end of the stream", rest, err)
	}
	if status := p.Ended(t); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	p := commandtest.Start(t, exec.Command("raimons", "127.0.0.1:0", tunneltest.Echo(t), "drain=1h"))
	commandtest.Echoed(t, commandtest.Dial(t, p.Address))

	terminate(t, p)
	p.Log.Wait(t, "shutting down")
	terminate(t, p)

	if status := p.Ended(t); status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
}

// plugin is the environment in which shadowsocks starts raimons with an open tunnel to come.
func plugin(t *testing.T) (environment []string) {
	t.Helper()
	targetHost, targetPort, _ := net.SplitHostPort(tunneltest.Echo(t))
	return append(os.Environ(), "SS_REMOTE_HOST=127.0.0.1", "SS_REMOTE_PORT="+tunneltest.FreePort(),
		"SS_LOCAL_HOST="+targetHost, "SS_LOCAL_PORT="+targetPort, "SS_PLUGIN_OPTIONS=drain=1h")
}

// Shadowsocks-rust sends SIGKILL 10 ms after SIGTERM.
func TestPluginEndsAtOnce(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("raimons")
	cmd.Env = plugin(t)
	p := commandtest.Start(t, cmd)
	commandtest.Echoed(t, commandtest.Dial(t, p.Address))

	begin := time.Now()
	terminate(t, p)

	if status := p.Ended(t); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("the plugin took %v to end, want less than a second", d)
	}
}

func TestPluginLeavesWithItsParent(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sh", "-c", "raimons & echo plugin $! >&2; wait")
	cmd.Env = plugin(t)
	parent := commandtest.Start(t, cmd)
	t.Cleanup(func() { endChild(parent) })
	commandtest.Echoed(t, commandtest.Dial(t, parent.Address))

	if err := syscall.Kill(parent.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}

	parent.Ended(t) // the plugin has its standard error, too
	refused(t, parent.Address)
}

// endChild ends the plugin if it has outlived its parent.
func endChild(parent *commandtest.Process) {
	found, err := parent.Log.Find(regexp.MustCompile(`plugin (\d+)`))
	if err == nil && parent.Running() {
		pid, _ := strconv.Atoi(found[1])
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

func TestDeadTarget(t *testing.T) {
	t.Parallel()
	p := commandtest.Start(t, exec.Command("raimons", "127.0.0.1:0", deadTarget))

	const tries = 5
	for range tries {
		c, err := net.Dial("tcp", p.Address)
		if err == nil { // else the reset was there before the end of connect(2)
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if err == nil || err == io.EOF {
			t.Errorf("got %v from an edge without target, want a reset", err)
		}
	}

	terminate(t, p)
	if status := p.Ended(t); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
	const line = `"level":"WARN","msg":"tunnel failed","client":"127.0.0.1:\d+","error":"[^"]*","hint":"nothing listens there`
	if n := p.Log.Count(line); n != tries {
		t.Errorf("%d lines about %d tunnels without target:\n%s", n, tries, p.Log)
	}
	if n := p.Log.Count(`\n`); n != tries+2 { // and listening, shutting down
		t.Errorf("%d lines, want %d:\n%s", n, tries+2, p.Log)
	}
}

// Shadowsocks and load balancers look whether a port is open, often.
func TestProbesAreSilent(t *testing.T) {
	t.Parallel()
	ws, tls := "ws;host=localhost;path=/ws", "tls;servername=localhost;storage=off"
	for name, test := range map[string]struct {
		options string
		lines   int // with a certificate, besides listening and shutting down
	}{"tcp": {"", 0}, "ws": {ws, 0}, "tls": {tls, 1}, "wss": {ws + ";" + tls, 1}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			target := tunneltest.Echo(t)
			p := commandtest.Start(t, exec.Command("raimons", "127.0.0.1:0", target, test.options))
			for n := range 200 {
				c, err := net.Dial("tcp", p.Address)
				if err != nil {
					t.Fatal(err)
				}
				if n%2 == 0 {
					c.(*net.TCPConn).SetLinger(0) // ends with a reset
				}
				c.Close()
			}
			terminate(t, p)
			if status := p.Ended(t); status != 0 {
				t.Errorf("exit status %d, want 0", status)
			}
			if n := p.Log.Count(`\n`); n != 2+test.lines {
				t.Errorf("%d lines, want %d:\n%s", n, 2+test.lines, p.Log)
			}
		})
	}
}

// Neither end reads and both have sent all they can when the client vanishes: nothing of the tunnel may stay.
func TestVanishedClientLeavesNothing(t *testing.T) {
	t.Parallel()
	p := commandtest.Start(t, exec.Command("raimons", "127.0.0.1:0", tunneltest.Echo(t), "loglevel=debug"))
	c := commandtest.Dial(t, p.Address)
	for block := make([]byte, 1<<20); ; {
		c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		if _, err := c.Write(block); err != nil {
			break // everything is full from here to the target and back
		}
	}

	c.SetLinger(0)
	c.Close()

	p.Log.Wait(t, `"tunnel (reset|failed)"`)
}

// A log that nobody reads any more is no reason to end.
func TestLogWithoutReader(t *testing.T) {
	t.Parallel()
	log, logEnd, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("raimons", "127.0.0.1:0", deadTarget)
	cmd.Stderr = logEnd
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	logEnd.Close()
	var line struct{ Address string }
	if err := json.NewDecoder(log).Decode(&line); err != nil {
		t.Fatal(err)
	}
	log.Close()

	for range 3 { // each wants to write a line
		c, err := net.Dial("tcp", line.Address)
		if err == nil { // else the reset was there before the end of connect(2)
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("got %v from an edge without target, want a reset", err)
		}
	}
}

// A visitor who keeps his connection for another request is not waited for.
func TestVisitorsAreNotWaitedFor(t *testing.T) {
	t.Parallel()
	p := commandtest.Start(t, exec.Command("raimons", "127.0.0.1:0", deadTarget, "ws;host=localhost;path=/ws;drain=1h"))
	c := commandtest.Dial(t, p.Address)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || answer.StatusCode != http.StatusNotFound {
		t.Fatalf("got %v, %v; want 404", answer, err)
	}

	terminate(t, p)

	if status := p.Ended(t); status != 0 {
		t.Errorf("exit status %d, want 0", status)
	}
}

// Nor is one who has not said anything yet.
func TestSilentVisitorsAreNotWaitedFor(t *testing.T) {
	t.Parallel()
	for _, options := range []string{"ws;host=localhost;path=/ws", "tls;servername=localhost;storage=off"} {
		p := commandtest.Start(t, exec.Command("raimons", "127.0.0.1:0", deadTarget, options+";drain=1h;timeout=1h"))
		commandtest.Dial(t, p.Address)

		terminate(t, p)

		if status := p.Ended(t); status != 0 {
			t.Errorf("%s: exit status %d, want 0", options, status)
		}
	}
}
