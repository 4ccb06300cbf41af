package netwatch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// roleVariable makes this test binary a process with a network of its own that watches it: "netlink",
// or "portable" as where netlink is refused, with less patience.
const roleVariable = "RAIMON_NETWATCH_TEST_ROLE"

// patience is enough for a slow machine that polls.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := child(role); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child prints what changes, and does what it is told, a line at a time.
func child(role string) error {
	w := watcher{open: openEvents, look: netlinkLook, pause: beatPause}
	if role == "portable" {
		w.open, w.look = func() (*os.File, error) { return nil, unix.EACCES }, portableLook
		w.pause /= 30
	}
	ctx, cancel := context.WithCancel(context.Background())
	var looks atomic.Int64
	look := w.look
	w.look = func() (snapshot, error) {
		s, err := look()
		if looks.Add(1) == 1 {
			fmt.Println("watching")
		}
		return s, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.watch(ctx, func(c Change) { fmt.Printf("changed: %v %v %v\n", c.Addresses, c.Routes, c.Slept) })
	}()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		answer, err := do(lines.Text(), &looks)
		if err != nil {
			answer = "error: " + err.Error()
		}
		fmt.Println(answer)
	}
	cancel()
	<-ended
	return nil
}

func do(command string, looks *atomic.Int64) (string, error) {
	switch verb, rest, _ := strings.Cut(command, " "); verb {
	case "ip": // commands with semicolons between
		cmd := exec.Command("ip", "-batch", "-")
		cmd.Stdin = strings.NewReader(strings.ReplaceAll(rest, ";", "\n"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%v: %q", err, out)
		}
		return "done", nil
	case "looks":
		return fmt.Sprintf("looks %d", looks.Load()), nil
	case "addresses":
		addresses, err := Addresses()
		return fmt.Sprint(addresses), err
	case "overflow":
		return "done", overflow(rest)
	}
	return "", fmt.Errorf("unknown command %q", command)
}

// overflow lets two sockets overflow, with ip commands: one to see that it has, one to go on with.
func overflow(commands string) error {
	witness, err := cramped()
	if err != nil {
		return err
	}
	defer witness.Close()
	f, err := cramped()
	if err != nil {
		return err
	}
	if _, err := do("ip "+commands, nil); err != nil {
		return err
	}
	if _, err := witness.Read(make([]byte, 4096)); !eventsLost(err) {
		return fmt.Errorf("got %v from a socket that has overflowed", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	events := make(chan struct{}, 1)
	go forward(ctx, f, events)
	for range 3 {
		if _, ok := <-events; !ok {
			return errors.New("no events after an overflow")
		}
		if _, err := do("ip "+commands, nil); err != nil {
			return err
		}
	}
	return nil
}

// cramped has room for an event or two.
func cramped() (*os.File, error) {
	f, err := openEvents()
	if err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	controlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1) })
	return f, errors.Join(controlErr, err)
}

// machine is a child.
type machine struct {
	t       testing.TB
	process *os.Process
	stdin   io.Writer
	lines   chan string
	changes []string // that were read before the answer to a command
}

// boot starts a machine with a network: 192.0.2.2 and 2001:db8::2 at v0, whose other end is v1, and
// routers at 1 and 3. It returns when the machine watches.
func boot(t testing.TB, role string) *machine {
	t.Helper()
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip(8): ", err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skip("needs a network namespace: ", err)
	}
	m := &machine{t: t, process: cmd.Process, stdin: stdin, lines: make(chan string, 1000)}
	go func() {
		defer close(m.lines)
		for s := bufio.NewScanner(stdout); s.Scan(); {
			m.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		stdin.Close()
		for range m.lines { // cmd.Wait would cut them off
		}
		if err := cmd.Wait(); err != nil && !t.Skipped() {
			t.Errorf("the machine has ended with %v", err)
		}
	})
	if got := m.line(); got != "watching" {
		t.Fatalf("got %q, want that it watches", got)
	}
	m.setUp()
	return m
}

// setUp ends with the address that is told last, whatever number of reports came before.
func (m *machine) setUp() {
	m.t.Helper()
	if got := m.command("ip link add v0 type veth peer name v1"); got != "done" {
		m.t.Skip("needs veth devices: ", got)
	}
	m.ip("link set lo up", "link set v1 up", "link set v0 up", "addr add 192.0.2.2/24 dev v0",
		"addr add 2001:db8::2/64 dev v0 nodad", "route add default via 192.0.2.1", "route add default via 2001:db8::1")
	for end := time.Now().Add(patience); ; m.changes = nil {
		m.wait()
		if len(m.changes) == 0 {
			return
		}
		if time.Now().After(end) {
			m.t.Fatalf("the network does not settle: %q", m.changes)
		}
	}
}

// wait is over when what has been done is told. One who polls sees it, and sees it settled; the look after
// that comes when it has been told.
func (m *machine) wait() {
	m.t.Helper()
	for range 3 {
		before := m.looks()
		m.ip("route add 198.51.100.0/24 dev lo", "route del 198.51.100.0/24") // an event
		for end := time.Now().Add(patience); m.looks() == before; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				m.t.Fatal("the machine does not look any more")
			}
		}
	}
}

func (m *machine) looks() (n int) {
	m.t.Helper()
	if _, err := fmt.Sscanf(m.command("looks"), "looks %d", &n); err != nil {
		m.t.Fatal(err)
	}
	return n
}

func (m *machine) ip(commands ...string) {
	m.t.Helper()
	if got := m.command("ip " + strings.Join(commands, ";")); got != "done" {
		m.t.Fatalf("ip %q: %s", commands, got)
	}
}

// command returns the answer to command, and keeps the changes that are told meanwhile.
func (m *machine) command(command string) string {
	m.t.Helper()
	if _, err := fmt.Fprintln(m.stdin, command); err != nil {
		m.t.Fatal(err)
	}
	for {
		line := m.line()
		change, ok := strings.CutPrefix(line, "changed: ")
		if !ok {
			return line
		}
		m.changes = append(m.changes, change)
	}
}

// change is the next that is told: "addresses routes slept".
func (m *machine) change() string {
	m.t.Helper()
	if len(m.changes) > 0 {
		first := m.changes[0]
		m.changes = m.changes[1:]
		return first
	}
	line := m.line()
	change, ok := strings.CutPrefix(line, "changed: ")
	if !ok {
		m.t.Fatalf("got %q, want a change", line)
	}
	return change
}

func (m *machine) line() string {
	m.t.Helper()
	select {
	case line, ok := <-m.lines:
		if !ok {
			m.t.Fatal("the machine has ended")
		}
		return line
	case <-time.After(patience):
		m.t.Fatal("nothing from the machine")
	}
	return ""
}

// nothingMore fails if anything else is told than what was read.
func (m *machine) nothingMore() {
	m.t.Helper()
	m.wait()
	if len(m.changes) > 0 {
		m.t.Errorf("told besides: %q", m.changes)
	}
}

const (
	addressesOnly = "true false 0s"
	routesOnly    = "false true 0s"
	both          = "true true 0s"
)

func TestNetworkChanges(t *testing.T) {
	t.Parallel()
	steps := []struct {
		name     string
		commands []string
		netlink  string // what is told
		portable string
	}{
		{"address added", []string{"addr add 192.0.2.9/24 dev v0"}, addressesOnly, addressesOnly},
		{"address removed", []string{"addr del 192.0.2.9/24 dev v0"}, addressesOnly, addressesOnly},
		{"temporary ipv6 address", []string{"addr add 2001:db8::77/64 dev v0 nodad"}, addressesOnly, addressesOnly},
		{"and gone", []string{"addr del 2001:db8::77/64 dev v0"}, addressesOnly, addressesOnly},
		{"dhcp renewal", []string{"addr change 192.0.2.2/24 dev v0 valid_lft 3600 preferred_lft 1800"}, "", ""},
		{"router advertisement", []string{"route change default via 2001:db8::1 dev v0 expires 1000"}, "", ""},
		{"another gateway", []string{"route replace default via 192.0.2.3"}, routesOnly, ""},
		{"another ipv6 gateway", []string{"route replace default via 2001:db8::3"}, routesOnly, ""},
		{"ipv6 gateway gone", []string{"route del default via 2001:db8::3"}, routesOnly, routesOnly},
		{"ipv6 gateway back", []string{"route add default via 2001:db8::3"}, routesOnly, routesOnly},
		{"worse route beside", []string{"route add default via 192.0.2.1 metric 500"}, "", ""},
		{"another table", []string{"route add default via 192.0.2.4 table 77"}, "", ""},
		{"a rule that leads there", []string{"rule add table 77 pref 100"}, routesOnly, ""},
		{"rule gone", []string{"rule del pref 100"}, routesOnly, ""},
		{"cable out", []string{"link set v1 down"}, routesOnly, ""},
		{"cable in", []string{"link set v1 up"}, routesOnly, ""},
		{"two halves of a vpn", []string{
			"link add vpn type veth peer name vpn1", "link set vpn1 up", "link set vpn up", "addr add 10.9.8.7/24 dev vpn",
			"route add 0.0.0.0/1 dev vpn", "route add 128.0.0.0/1 dev vpn"}, both, both},
		{"vpn ends", []string{"link del vpn"}, both, both},
		{"interface down", []string{"link set v0 down"}, both, both}, // IPv6 addresses go with it
		{"interface up", []string{
			"link set v0 up", "addr add 2001:db8::2/64 dev v0 nodad", "route add default via 192.0.2.1", "route add default via 2001:db8::1"}, both, both},
		{"prohibited", []string{"route add prohibit 198.41.0.0/16"}, routesOnly, routesOnly},
	}
	for _, role := range []string{"netlink", "portable"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			m := boot(t, role)
			for _, step := range steps {
				m.ip(step.commands...)
				want := step.netlink
				if role == "portable" {
					want = step.portable
				}
				if want != "" {
					if got := m.change(); got != want {
						t.Errorf("%s: got %q, want %q", step.name, got, want)
					}
				}
				m.wait()
				if len(m.changes) > 0 {
					t.Errorf("%s: told besides: %q", step.name, m.changes)
					m.changes = nil
				}
			}
		})
	}
}

// What containers do all day changes nothing for the machine, and costs it few looks.
func TestFloodThatChangesNothing(t *testing.T) {
	t.Parallel()
	m := boot(t, "netlink")
	before, began := m.looks(), time.Now()
	for range 20 {
		m.ip("link add c0 type veth peer name c1", "link set c0 up", "link set c1 up", "addr add fe80::99/64 dev c0 nodad",
			"addr add 169.254.7.7/16 dev c0", "addr change 192.0.2.2/24 dev v0 valid_lft 7200 preferred_lft 3600",
			"route add 203.0.113.0/24 dev c0", "link del c0")
	}

	if looks, most := m.looks()-before, int(time.Since(began)/settleTime)+2; looks > most {
		t.Errorf("looked %d times, want at most %d", looks, most)
	}
	m.nothingMore()
	m.ip("addr add 192.0.2.9/24 dev v0")
	if got := m.change(); got != addressesOnly {
		t.Errorf("after the flood: got %q, want %q", got, addressesOnly)
	}
}

func TestOverflow(t *testing.T) {
	t.Parallel()
	m := boot(t, "netlink")
	commands := strings.Repeat("addr add 192.0.2.77/24 dev v0;addr del 192.0.2.77/24 dev v0;", 30)
	if got := m.command("overflow " + commands); got != "done" {
		t.Error(got)
	}
}

func TestStoppedProcess(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"netlink", "portable"} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			m := boot(t, role)
			if err := m.process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			time.Sleep(6 * time.Second) // it is the time that is to be noticed
			if err := m.process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}

			got := m.change()

			rest, ok := strings.CutPrefix(got, "false false ")
			slept, err := time.ParseDuration(rest)
			if !ok || err != nil || slept < 2*time.Second || slept > 15*time.Second {
				t.Errorf("got %q, want that it has slept for about 6 s, and nothing else", got)
			}
			m.nothingMore()
		})
	}
}

// Only what works as a connection's local address is the machine's.
func TestAddressesThatWork(t *testing.T) {
	t.Parallel()
	m := boot(t, "netlink")
	own := func(address string) bool {
		t.Helper()
		return strings.Contains(m.command("addresses"), netip.MustParseAddr(address).String()+":true")
	}
	if !own("192.0.2.2") || !own("2001:db8::2") || !own("127.0.0.1") || !own("::1") || own("192.0.2.1") {
		t.Errorf("addresses are %s", m.command("addresses"))
	}
	m.ip("addr add 2001:db8::88/64 dev v0")
	if own("2001:db8::88") {
		t.Error("an address is ours before it is known that no neighbour has it")
	}
	if got := m.change(); got != addressesOnly || !own("2001:db8::88") {
		t.Errorf("got %q, addresses are %s", got, m.command("addresses"))
	}
	m.ip("link set v1 down")
	if !own("192.0.2.2") {
		t.Error("without a link, for a moment perhaps, the address is not ours any more")
	}
	m.ip("link set v0 down")
	if own("192.0.2.2") || !own("127.0.0.1") {
		t.Errorf("with the interface down, addresses are %s", m.command("addresses"))
	}
}
