//go:build load && linux

package load

import (
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"raimon/internal/commandtest"
)

// Frames of a flood are so few that ws with mask=skip makes hardly more system calls than tcp, both processes and both ways counted.
func TestSystemCalls(t *testing.T) {
	const (
		limit  = 1.2
		bytes  = 256 << 20 // each time
		rounds = 80        // in turns, so that both meet the same machine
	)
	tracepoints := openTracepoints(t)
	var tunnels []*counted
	for _, tr := range transports()[:2] { // tcp and ws
		f := launch(t, tr, exec.Command)
		tunnels = append(tunnels, &counted{
			line: f.open(t, 1)[0],
			of:   []*callCounter{tracepoints.count(t, f.edge), tracepoints.count(t, f.client)},
		})
	}
	for range rounds {
		for d := range 2 {
			for _, w := range tunnels {
				w.carry(t, d, bytes)
			}
		}
	}
	tcp, ws := tunnels[0], tunnels[1]
	for name, w := range map[string]*counted{"tcp": tcp, "ws": ws} {
		t.Logf("%s, calls a GB: %s", name, w.perGigabyte(2*rounds*bytes))
	}
	ratio := float64(ws.all()) / float64(tcp.all())
	t.Logf("ws makes %.2f times the calls of tcp", ratio)
	if ratio > limit {
		t.Errorf("ws makes %.2f times the system calls of tcp, want at most %v times", ratio, limit)
	}
}

// counted is a tunnel whose two processes are watched.
type counted struct {
	line *line
	of   []*callCounter      // edge, client
	sums []map[string]uint64 // of the same
}

// carry sends n bytes in direction d.
func (w *counted) carry(t testing.TB, d int, n int64) {
	t.Helper()
	before := make([]map[string]uint64, len(w.of))
	for i, c := range w.of {
		before[i] = c.calls(t)
	}
	if err := w.line.exchange(n, d); err != nil {
		t.Fatal(err)
	}
	for i, c := range w.of {
		if len(w.sums) <= i {
			w.sums = append(w.sums, make(map[string]uint64))
		}
		for call, n := range c.calls(t) {
			w.sums[i][call] += n - before[i][call]
		}
	}
}

// all is how many calls the two have made.
func (w *counted) all() (n uint64) {
	for _, sums := range w.sums {
		n += sums[everyCall]
	}
	return n
}

func (w *counted) perGigabyte(n uint64) (s string) {
	for i, side := range []string{"edge", "client"} {
		s += side
		for _, call := range slices.Sorted(maps.Keys(w.sums[i])) {
			s += fmt.Sprintf(" %d %s,", w.sums[i][call]*1e9/n, call)
		}
		s += " "
	}
	return strings.TrimSuffix(s, ", ")
}

// everyCall stands for all of them.
const everyCall = "all"

// tracepoints are numbers of the kernel's tracepoints, by system call.
type tracepoints map[string]uint64

// openTracepoints mounts the file system that knows the numbers, for the test alone.
func openTracepoints(t testing.TB) tracepoints {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tracefs", dir, "tracefs", 0, ""); err != nil {
		t.Skipf("needs root and tracefs, to count system calls: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	all := make(tracepoints)
	read := func(call, name string) {
		data, err := os.ReadFile(filepath.Join(dir, "events", name, "id"))
		if err != nil {
			t.Skipf("needs a kernel that counts system calls: %v", err)
		}
		if all[call], err = strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	read(everyCall, "raw_syscalls/sys_enter")
	for _, call := range []string{"splice", "sendto", "read", "write", "epoll_pwait", "futex", "nanosleep", "ioctl"} {
		read(call, "syscalls/sys_enter_"+call)
	}
	return all
}

// callCounter counts the system calls of a process with the kernel's own counters: these neither stop the process, as
// strace does, nor leave out splice(2), as /proc/PID/io does.
type callCounter struct {
	files map[string][]int // descriptors, one a thread, by system call
}

// count counts from now on what the threads of p do, and those that they start.
func (all tracepoints) count(t testing.TB, p *commandtest.Process) *callCounter {
	t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	c := &callCounter{files: make(map[string][]int)}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		for call, number := range all {
			event := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: number, Bits: unix.PerfBitInherit}
			event.Size = uint32(unsafe.Sizeof(event))
			file, err := unix.PerfEventOpen(&event, id, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
			if err != nil {
				t.Fatalf("perf_event_open of thread %d: %v", id, err)
			}
			t.Cleanup(func() { unix.Close(file) })
			c.files[call] = append(c.files[call], file)
		}
	}
	return c
}

// calls are those made so far.
func (c *callCounter) calls(t testing.TB) map[string]uint64 {
	t.Helper()
	sums := make(map[string]uint64)
	for call, files := range c.files {
		for _, file := range files {
			var b [8]byte
			if n, err := unix.Read(file, b[:]); n != len(b) || err != nil {
				t.Fatalf("read a counter: %d bytes, %v", n, err)
			}
			sums[call] += binary.NativeEndian.Uint64(b[:])
		}
	}
	return sums
}
