//go:build load && linux

package load

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
)

// Ten thousand tunnels of an unprivileged user in 256 MB a side, of which a thousand move: none is lost. With TLS they
// get more: what the kernel and crypto/tls hold of them alone would fill that.
//
// A process has to have a descriptor for each end of a tunnel. Where the hard limit (ulimit -Hn) is too low for that,
// the tunnels are divided among several edges and clients, and so is the memory.
func TestCramped(t *testing.T) {
	const (
		idle   = 9000
		moving = 1000
		spare  = 500 // descriptors for all else
	)
	memory := map[string]int{"tcp": 256 << 20, "ws": 256 << 20, "tls": 512 << 20, "wss": 512 << 20} // bytes a side
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	parts := 1
	for 2*(idle+moving)/parts+spare > int(min(limit.Max, 1<<30)) {
		parts++
	}
	newCgroup(t, 64<<20) // or the test is skipped
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			var all []*part
			for range parts {
				all = append(all, startPart(t, partOrder{
					Transport: tr.name, Memory: memory[tr.name] / parts,
					Idle: idle / parts, Moving: moving / parts, Bytes: 1 << 20,
				}))
			}
			for range crampedSteps {
				for _, p := range all {
					p.await(t)
				}
				for _, p := range all {
					p.goOn(t)
				}
			}
			for _, p := range all {
				p.end(t)
				t.Logf("part of %d:\n%s", parts, shorten(p.output.String()))
			}
		})
	}
}

// crampedSteps is how many steps a part takes: all tunnels are open, have moved, are alive.
const crampedSteps = 3

// partVariable holds the order of a process that is a part of TestCramped.
const partVariable = "RAIMON_LOAD_PART"

// partOrder is what a part does.
type partOrder struct {
	Transport    string
	Memory       int   // bytes a side
	Idle, Moving int   // tunnels
	Bytes        int64 // each way in each tunnel that moves
}

// part is a process that has a fleet of its own. It says when it has taken a step, and waits before the next one.
type part struct {
	*exec.Cmd
	output bytes.Buffer
	steps  io.Reader
	next   io.WriteCloser
	ended  func() error
}

func startPart(t testing.TB, order partOrder) *part {
	t.Helper()
	data, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &part{Cmd: exec.Command(self, "-test.v", "-test.run=^TestPart$", "-test.timeout=10m")}
	p.Env = append(os.Environ(), partVariable+"="+string(data))
	p.Stdout, p.Stderr = &p.output, &p.output
	steps, said, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	t.Cleanup(func() { steps.Close() })
	p.ExtraFiles = []*os.File{said}
	p.steps = steps
	if p.next, err = p.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	p.ended = sync.OnceValue(p.Wait)
	t.Cleanup(func() { p.end(t) })
	return p
}

// end lets the part clean up, at whatever step it is.
func (p *part) end(t testing.TB) {
	t.Helper()
	p.next.Close()
	if err := p.ended(); err != nil {
		t.Errorf("part %d: %v\n%s", p.Process.Pid, err, shorten(p.output.String()))
	}
}

// shorten leaves out the middle of what is long.
func shorten(s string) string {
	const half = 3000
	if len(s) > 2*half {
		return s[:half] + "\n...\n" + s[len(s)-half:]
	}
	return s
}

// await waits until the part has taken a step. A part that fails ends instead.
func (p *part) await(t testing.TB) {
	t.Helper()
	if _, err := io.ReadFull(p.steps, make([]byte, 1)); err != nil {
		t.Fatalf("part %d has ended", p.Process.Pid)
	}
}

func (p *part) goOn(t testing.TB) {
	t.Helper()
	if _, err := p.next.Write([]byte{1}); err != nil {
		t.Fatalf("part %d: %v", p.Process.Pid, err)
	}
}

// TestPart is what each process of TestCramped runs.
func TestPart(t *testing.T) {
	if os.Getenv(partVariable) == "" {
		t.Skip("it is a part of TestCramped")
	}
	var order partOrder
	if err := json.Unmarshal([]byte(os.Getenv(partVariable)), &order); err != nil {
		t.Fatal(err)
	}
	var tr transport
	for _, other := range transports() {
		if other.name == order.Transport {
			tr = other
		}
	}
	edge, client := newCgroup(t, order.Memory), newCgroup(t, order.Memory)
	said := os.NewFile(3, "steps")
	step := func(what string) {
		t.Helper()
		t.Logf("%s: peak %d MB at the edge, %d MB at the client, of %d", what, edge.peak()>>20, client.peak()>>20, order.Memory>>20)
		if _, err := said.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(os.Stdin, make([]byte, 1)); err != nil {
			t.Fatal("the test has ended")
		}
	}
	f := launch(t, tr, func(program string, arguments ...string) *exec.Cmd {
		if program == "raimons" {
			return edge.command(program, arguments...)
		}
		return client.command(program, arguments...)
	})
	t.Cleanup(func() {
		if n, m := edge.kills(t), client.kills(t); n > 0 || m > 0 {
			t.Errorf("the kernel has killed %d edges and %d clients", n, m)
		}
	})

	lines := f.open(t, order.Idle+order.Moving)
	step("all are open")
	each(t, lines[order.Idle:], func(l *line) error { return l.exchange(order.Bytes, 0, 1) })
	step("all have moved")
	each(t, lines, func(l *line) error { return l.exchange(1000, 0, 1) })
	step("all are alive")
}
