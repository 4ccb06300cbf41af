//go:build interop

package interop

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long anything may take that takes a moment.
const patience = 15 * time.Second

// bin is where TestMain puts raimons and raimonc.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	if n := flag.Lookup("test.parallel"); n.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		n.Value.Set("8") // most of the time is spent waiting
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "raimon-interop")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	build := exec.Command("go", "build", "-o", dir, "raimon/cmd/raimons", "raimon/cmd/raimonc")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// program finds what the test runs; one that is missing fails the test.
func program(t testing.TB, name string) string {
	t.Helper()
	var places []string
	switch name {
	case "raimons", "raimonc":
		return filepath.Join(bin, name)
	case "kaminaris", "kaminaric":
		places = peers(t, "kaminari-*", name)
	case "sslocal", "ssserver":
		places = peers(t, "shadowsocks-rust-*", name)
	case "initdb", "postgres":
		places, _ = filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	default:
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
		places, _ = filepath.Glob("/usr/sbin/" + name)
	}
	if len(places) == 0 {
		t.Fatalf("program %s is missing: run internal/interop/install.sh", name)
	}
	return places[len(places)-1]
}

// peers finds what install.sh compiled.
func peers(t testing.TB, folder, name string) []string {
	t.Helper()
	root := os.Getenv("RAIMON_PEERS")
	if root == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		root = filepath.Join(cache, "raimon-interop")
	}
	found, err := filepath.Glob(filepath.Join(root, folder, "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// process is a program that runs until the test ends.
type process struct {
	*exec.Cmd
	log  *logTail
	done chan struct{} // closed when it has ended
}

// start runs a program in a process group of its own, so that what it starts dies with it.
func start(t testing.TB, name string, env []string, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(program(t, name), args...), log: &logTail{}, done: make(chan struct{})}
	p.Env = append(append(os.Environ(), "STATE_DIRECTORY="+t.TempDir()), env...) // root's own is not for tests
	p.Stdout, p.Stderr = p.log, p.log
	p.WaitDelay = 5 * time.Second // for what it left behind with our pipe
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		syscall.Kill(-p.Process.Pid, syscall.SIGKILL)
		<-p.done
		if t.Failed() {
			t.Logf("%s %q (%v):\n%s", name, args, p.ProcessState, p.log.short())
		}
	})
	return p
}

// await waits until what is logged matches pattern, and returns its submatches.
func (p *process) await(t testing.TB, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var match []string
	eventually(t, patience, fmt.Sprintf("%s logs %q", filepath.Base(p.Path), pattern), func() bool {
		match = re.FindStringSubmatch(p.log.String())
		return match != nil || p.ended(t)
	})
	return match
}

func (p *process) ended(t testing.TB) bool {
	t.Helper()
	select {
	case <-p.done:
		t.Fatalf("%s has ended: %v", filepath.Base(p.Path), p.ProcessState)
	default:
	}
	return false
}

// awaitPort waits until something takes connections at address.
func (p *process) awaitPort(t testing.TB, address string) {
	t.Helper()
	eventually(t, patience, filepath.Base(p.Path)+" listens on "+address, func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil || p.ended(t)
	})
}

// status reads a number from /proc/PID/status, such as VmRSS in KiB.
func (p *process) status(t testing.TB, key string) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + key + `:\s+(\d+)`).FindSubmatch(data)
	if m == nil {
		t.Fatalf("no %s in /proc/PID/status", key)
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n
}

// files counts open file descriptors.
func (p *process) files(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// settledFiles is how many there are once that has not changed for a while: programs log the end of a tunnel and then close its connections.
func (p *process) settledFiles(t testing.TB) (n int) {
	t.Helper()
	same := 0
	eventually(t, patience, "open files stay as many", func() bool {
		last := n
		if n = p.files(t); n == last {
			same++
		} else {
			same = 0
		}
		return same == 20
	})
	return n
}

// minute is how long a program may take that the test waits for.
func minute(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls until ok.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// logTail keeps the first and the last of what a program says.
type logTail struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (l *logTail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.data.Write(p)
	if l.data.Len() > 1<<20 {
		l.data.Next(512 << 10)
	}
	return len(p), nil
}

func (l *logTail) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.data.String()
}

// short is what fits into a test's output.
func (l *logTail) short() string {
	const half = 4000
	s := l.String()
	if len(s) > 2*half {
		s = s[:half] + "\n...\n" + s[len(s)-half:]
	}
	return s
}

// freePort is an address for a program that has to be told where to listen. It is drawn from all of
// 127.0.0.0/8 and never tried out: a listener of ours, even a closed one, could still be held for a
// moment by a child that another test forks just then, and some peers bind without SO_REUSEADDR.
func freePort() string {
	return fmt.Sprintf("127.%d.%d.%d:%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254), 20000+rand.IntN(12000))
}

func host(address string) string {
	host, _, _ := net.SplitHostPort(address)
	return host
}

func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

const listening = `"msg":"listening","address":"([^"]+)"`

// startRaimons starts an edge on a free port.
func startRaimons(t testing.TB, target, option string) (*process, string) {
	t.Helper()
	p := start(t, "raimons", nil, "-v", "127.0.0.1:0", target, option)
	return p, p.await(t, listening)[1]
}

// startRaimonc starts a client on a free port.
func startRaimonc(t testing.TB, remote, option string) (*process, string) {
	t.Helper()
	p := start(t, "raimonc", noProxy, "-v", "127.0.0.1:0", remote, option)
	return p, p.await(t, listening)[1]
}

// noProxy keeps a proxy of this machine out of the tests.
var noProxy = []string{"http_proxy=", "https_proxy=", "all_proxy=", "HTTP_PROXY=", "HTTPS_PROXY=", "ALL_PROXY="}

func trim(s string, n int) string {
	if s = strings.TrimSpace(s); len(s) > n {
		return s[:n] + "..."
	}
	return s
}

// children are the processes whose parent is pid.
func children(t testing.TB, pid int) []int {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(lists) == 0 {
		t.Fatalf("children of %d: %v", pid, err)
	}
	var pids []int
	for _, list := range lists {
		data, _ := os.ReadFile(list)
		for _, word := range strings.Fields(string(data)) {
			child, _ := strconv.Atoi(word)
			pids = append(pids, child)
		}
	}
	return pids
}

// alive tells whether pid runs; a zombie does not.
func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(data), ") ")
	return !strings.HasPrefix(state, "Z")
}

func addrPort(t testing.TB, address string) netip.AddrPort {
	t.Helper()
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
