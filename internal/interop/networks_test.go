//go:build interop && linux

package interop

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// world is a laptop behind two routers, at home and of a phone, and an edge that both of them reach, each in a network
// namespace of its own:
//
//	         192.168.7.2 ── home ── 203.0.113.2
//	laptop                                       edge 198.51.100.1
//	         192.168.8.2 ── phone ─ 203.0.114.2
//
// IPv6 has the same hosts below 2001:db8:7::, 2001:db8:8:: and 2001:db8:1::, and no translation. The laptop leaves
// through home. A router forgets in silence: what belongs to no connection that it knows is dropped.
type world struct {
	t                         testing.TB
	laptop, home, phone, edge namespace
}

// namespace is the name of a network namespace.
type namespace string

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	for _, name := range []string{"ip", "nft", "conntrack"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s: internal/interop/install.sh gets it", name)
		}
	}
	id := fmt.Sprintf("raimon-%d-%06x-", os.Getpid(), rand.IntN(1<<24))
	w := &world{t: t, laptop: namespace(id + "laptop"), home: namespace(id + "home"), phone: namespace(id + "phone"), edge: namespace(id + "edge")}
	for _, n := range []namespace{w.laptop, w.home, w.phone, w.edge} {
		t.Cleanup(func() { exec.Command("ip", "netns", "del", string(n)).Run() })
		if out, err := exec.Command("ip", "netns", "add", string(n)).CombinedOutput(); err != nil {
			t.Skipf("needs network namespaces: %v: %s", err, out)
		}
		n.ip(t, "link set lo up")
	}
	w.laptop.ip(t, "addr add 127.0.0.2/32 dev lo")
	w.edge.ip(t, "addr add 198.51.100.1/32 dev lo", "addr add 2001:db8:ed::1/128 dev lo nodad")
	w.route(w.home, 7, 113)
	w.route(w.phone, 8, 114)
	w.laptop.ip(t, "route add default via 192.168.7.1", "route add default via 2001:db8:7::1")
	w.edge.ip(t, "route add 2001:db8:7::/64 via 2001:db8:1:113::2", "route add 2001:db8:8::/64 via 2001:db8:1:114::2")
	return w
}

// route makes router stand between the laptop, in the network lan, and the edge, in the network wan.
func (w *world) route(router namespace, lan, wan int) {
	w.t.Helper()
	w.laptop.ip(w.t, fmt.Sprintf("link add up%d type veth peer name lan netns %s", lan, router),
		fmt.Sprintf("link set up%d up", lan),
		fmt.Sprintf("addr add 192.168.%d.2/24 dev up%d", lan, lan), fmt.Sprintf("addr add 2001:db8:%d::2/64 dev up%d nodad", lan, lan))
	w.edge.ip(w.t, fmt.Sprintf("link add down%d type veth peer name wan netns %s", wan, router),
		fmt.Sprintf("link set down%d up", wan),
		fmt.Sprintf("addr add 203.0.%d.1/24 dev down%d", wan, wan), fmt.Sprintf("addr add 2001:db8:1:%d::1/64 dev down%d nodad", wan, wan))
	router.ip(w.t, "link set lan up", "link set wan up",
		fmt.Sprintf("addr add 192.168.%d.1/24 dev lan", lan), fmt.Sprintf("addr add 2001:db8:%d::1/64 dev lan nodad", lan),
		fmt.Sprintf("addr add 203.0.%d.2/24 dev wan", wan), fmt.Sprintf("addr add 2001:db8:1:%d::2/64 dev wan nodad", wan),
		fmt.Sprintf("route add default via 203.0.%d.1", wan), fmt.Sprintf("route add default via 2001:db8:1:%d::1", wan))
	router.nft(w.t, `
		table inet filter {
			chain strangers {
				type filter hook input priority 0;
				iifname "wan" meta l4proto tcp drop;
			}
			chain unknown {
				type filter hook forward priority 0;
				ct state invalid drop;
			}
			chain extra {
				type filter hook forward priority 1;
			}
		}
		table ip nat {
			chain out {
				type nat hook postrouting priority 100;
				oifname "wan" masquerade;
			}
		}`)
	router.run(w.t, "sh", "-ec", `
		echo 1 >/proc/sys/net/ipv4/ip_forward
		echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
		echo 0 >/proc/sys/net/netfilter/nf_conntrack_tcp_loose`)
}

// forget makes a router forget the connections that it knows.
func (n namespace) forget(t testing.TB) {
	t.Helper()
	n.run(t, "conntrack", "-F")
}

func (n namespace) ip(t testing.TB, commands ...string) {
	t.Helper()
	cmd := exec.Command("ip", "-n", string(n), "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip %q: %v: %s", commands, err, out)
	}
}

func (n namespace) nft(t testing.TB, rules string) {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", string(n), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s\n%s", err, out, rules)
	}
}

func (n namespace) run(t testing.TB, args ...string) {
	t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", string(n)}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", args, err, out)
	}
}

// do calls f on a thread that is in n: sockets that f opens, and programs that it starts, belong there.
func (n namespace) do(f func()) error {
	runtime.LockOSThread() // a thread that does not find its way back ends with its goroutine
	back, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer back.Close()
	there, err := os.Open("/run/netns/" + string(n))
	if err != nil {
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return os.NewSyscallError("setns", err)
	}
	f()
	if err := unix.Setns(int(back.Fd()), unix.CLONE_NEWNET); err != nil {
		return os.NewSyscallError("setns", err)
	}
	runtime.UnlockOSThread()
	return nil
}

func (n namespace) start(t testing.TB, name string, env []string, args ...string) (p *process) {
	t.Helper()
	if err := n.do(func() { p = start(t, name, env, args...) }); err != nil {
		t.Fatal(err)
	}
	return p
}

func (n namespace) dial(address string) (c net.Conn, err error) {
	if failed := n.do(func() { c, err = net.Dial("tcp", address) }); failed != nil {
		return nil, failed
	}
	return c, err
}

// serve is tunneltest.Serve in n.
func (n namespace) serve(t testing.TB, address string, handle func(*net.TCPConn)) string {
	t.Helper()
	var l net.Listener
	var err error
	if failed := n.do(func() { l, err = net.Listen("tcp", address) }); failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for c := range open {
			c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			go func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
				mu.Lock()
				defer mu.Unlock()
				delete(open, c)
			}()
		}
	}()
	return l.Addr().String()
}
