//go:build load && linux

package load

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
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

// Frames of a flood are so few that ws with mask=skip makes hardly more system calls than a plain relay of tcp, both processes counted. Our tcp
// makes fewer: its calls are not told to Go's scheduler, which then makes none of its own to look after them. How ws compares with that is logged, and not bounded.
func TestSystemCalls(t *testing.T) {
	const (
		limit  = 1.2
		bytes  = 512 << 20 // each time
		rounds = 15        // in turns, so that all meet the same machine
	)
	tracepoints := openTracepoints(t)
	var tunnels []*counted
	watch := func(name string, f *fleet) {
		tunnels = append(tunnels, &counted{
			name: name,
			line: f.open(t, 1)[0],
			of:   []*callCounter{tracepoints.count(t, f.edge), tracepoints.count(t, f.client)},
		})
	}
	watch("relay", launchRelays(t))
	for _, tr := range transports()[:2] { // tcp and ws
		watch(tr.name, launch(t, tr, exec.Command))
	}
	for d, name := range []string{"up", "down"} {
		t.Run(name, func(t *testing.T) {
			all := make([][]uint64, len(tunnels))
			for _, w := range tunnels {
				w.sums = nil
			}
			for range rounds {
				for i, w := range tunnels {
					all[i] = append(all[i], w.carry(t, d, bytes))
				}
			}
			var medians []float64
			for i, w := range tunnels {
				slices.Sort(all[i])
				medians = append(medians, float64(all[i][rounds/2]))
				t.Log(w.perGigabyte(rounds * bytes))
			}
			relay, tcp, ws := medians[0], medians[1], medians[2]
			t.Logf("of a relay's calls tcp makes %.2f times, ws %.2f times (%.2f of those of tcp)", tcp/relay, ws/relay, ws/tcp)
			if ws > limit*relay || tcp > limit*relay {
				t.Errorf("tcp makes %.2f times the system calls of a relay, ws %.2f times, want at most %v times", tcp/relay, ws/relay, limit)
			}
		})
	}
}

// relayVariable makes of the test program a plain relay of tcp, to the address that it holds.
const relayVariable = "RAIMON_LOAD_RELAY"

// launchRelays starts two of them, where a tunnel has its client and its edge.
func launchRelays(t testing.TB) *fleet {
	t.Helper()
	relayTo := func(address string) *commandtest.Process {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), relayVariable+"="+address)
		return commandtest.Start(t, cmd)
	}
	f := &fleet{target: newTarget(t)}
	f.edge = relayTo(f.target.address)
	f.client = relayTo(f.edge.Address)
	return f
}

// relay is io.Copy both ways, which the runtime turns into splice(2).
func relay(to string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	slog.New(slog.NewTextHandler(os.Stderr, nil)).Info("listening", "address", l.Addr().String())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		next, err := net.Dial("tcp", to)
		if err != nil {
			return err
		}
		go carry(c, next)
		go carry(next, c)
	}
}

func carry(from, to net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close() // else the other direction would wait for ever
		return
	}
	to.(*net.TCPConn).CloseWrite()
}

// counted is a tunnel whose two processes are watched.
type counted struct {
	name string
	line *line
	of   []*callCounter      // edge, client
	sums []map[string]uint64 // of the same
}

// carry sends n bytes in direction d and returns how many calls that took.
func (w *counted) carry(t testing.TB, d int, n int64) (all uint64) {
	t.Helper()
	before := make([]map[string]uint64, len(w.of))
	for i, c := range w.of {
		before[i] = c.calls(t)
	}
	if err := w.line.exchange(n, d); err != nil {
		t.Fatalf("%s: %v", w.name, err)
	}
	for i, c := range w.of {
		if len(w.sums) <= i {
			w.sums = append(w.sums, make(map[string]uint64))
		}
		for call, n := range c.calls(t) {
			w.sums[i][call] += n - before[i][call]
		}
		all += c.calls(t)[everyCall] - before[i][everyCall]
	}
	return all
}

func (w *counted) perGigabyte(n uint64) string {
	s := w.name + ", calls a GB:"
	for i, side := range []string{"edge", "client"} {
		s += " " + side
		for _, call := range slices.Sorted(maps.Keys(w.sums[i])) {
			s += fmt.Sprintf(" %d %s,", w.sums[i][call]*1e9/n, call)
		}
	}
	return strings.TrimSuffix(s, ",")
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
