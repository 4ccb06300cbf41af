//go:build interop && linux

package interop

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// soon is how long a connection may go on that is dead.
const soon = 10 * time.Second

// travel is a laptop with raimonc in a world, and raimons at the edge.
type travel struct {
	*world
	transport   transportCase
	target      *target
	edgeAddress string
	server      *process
	client      *process
	address     string // for programs of the laptop
}

// travels runs test for plain tcp and for wss, without a pool and with one, each in a world of its own, all at once.
func travels(t *testing.T, option string, test func(t *testing.T, v *travel)) {
	for _, c := range transports(t) {
		if c.name != "tcp" && c.name != "wss" {
			continue
		}
		for _, pool := range []string{"0", "2"} {
			t.Run(c.name+" pool="+pool, func(t *testing.T) {
				t.Parallel()
				test(t, newTravel(t, c, "198.51.100.1", "pool="+pool+";"+option))
			})
		}
	}
}

func wssCase(t testing.TB) transportCase { return transports(t)[3] }

// newTravel has the client dial host, an address of the edge.
func newTravel(t testing.TB, c transportCase, host, option string) *travel {
	t.Helper()
	v := &travel{world: newWorld(t), transport: c, target: &target{reports: make(map[string]chan string)}}
	v.target.address = v.edge.serve(t, "127.0.0.1:0", v.target.serve)
	v.edgeAddress = net.JoinHostPort(host, "443")
	v.startEdge()
	v.startClient(option)
	if strings.Contains(option, "pool=2") {
		v.awaitPool()
	}
	return v
}

func (v *travel) startClient(option string) {
	v.t.Helper()
	v.client = v.laptop.start(v.t, "raimonc", noProxy, "-v", "127.0.0.1:0", v.edgeAddress, strings.Trim(v.transport.client+";"+option, ";"))
	v.address = v.client.await(v.t, listening)[1]
}

func (v *travel) startEdge() {
	v.t.Helper()
	v.server = v.edge.start(v.t, "raimons", nil, "-v", v.edgeAddress, v.target.address, v.transport.server)
	v.server.await(v.t, listening)
}

// awaitPool waits until the client has two connections.
func (v *travel) awaitPool() {
	v.t.Helper()
	eventually(v.t, patience, "the pool is full", func() bool {
		n := 0
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", v.client.Process.Pid))
		for _, link := range links {
			if to, _ := os.Readlink(link); strings.HasPrefix(to, "socket:") {
				n++
			}
		}
		return n >= 4 // with the listener, and that of netwatch
	})
}

// held is a connection of a program of the laptop.
type held struct {
	net.Conn
	in *bufio.Reader
}

// open opens a connection to the target's echo, without a wait for it.
func (v *travel) open() (*held, error) {
	c, err := v.laptop.dial(v.address)
	if err != nil {
		return nil, err
	}
	v.t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, "echo\n"); err != nil {
		return nil, err
	}
	return &held{c, bufio.NewReader(c)}, nil
}

// hold opens connections that work.
func (v *travel) hold(count int) []*held {
	v.t.Helper()
	var all []*held
	for range count {
		h, err := v.open()
		if err == nil {
			err = h.say(patience)
		}
		if err != nil {
			v.t.Fatal(err)
		}
		all = append(all, h)
	}
	return all
}

// errHangs is what must never be.
var errHangs = errors.New("it hangs")

// say sends a word and wants it back.
func (h *held) say(limit time.Duration) error {
	h.SetDeadline(time.Now().Add(limit))
	if _, err := io.WriteString(h, "word\n"); err != nil {
		return err
	}
	line, err := h.in.ReadString('\n')
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errHangs
	case err == nil && line != "word\n":
		return fmt.Errorf("%q came back", line)
	}
	return err
}

// end waits for the end of a connection that is not used.
func (h *held) end(limit time.Duration) error {
	h.SetDeadline(time.Now().Add(limit))
	_, err := h.in.ReadByte()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errHangs
	}
	return err
}

// speak sends a word on each of them.
func speak(t testing.TB, all []*held) {
	t.Helper()
	for _, h := range all {
		if _, err := io.WriteString(h, "word\n"); err != nil {
			t.Error(err)
		}
	}
}

// hear wants the words of speak back.
func hear(t testing.TB, all []*held) {
	t.Helper()
	for _, h := range all {
		if line, err := h.in.ReadString('\n'); line != "word\n" {
			t.Errorf("%q came back, %v", line, err)
		}
	}
}

// outcome is what became of some connections.
type outcome struct {
	well, reset, hung int
	longest           time.Duration
}

func (o outcome) String() string {
	return fmt.Sprintf("%d go on, %d reset, %d hang; the longest took %v", o.well, o.reset, o.hung, o.longest.Round(10*time.Millisecond))
}

// each calls try for all connections at once.
func each(all []*held, try func(*held) error) (o outcome) {
	var mu sync.Mutex
	var tries sync.WaitGroup
	begin := time.Now()
	for _, h := range all {
		tries.Go(func() {
			err := try(h)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				o.well++
			case errors.Is(err, errHangs):
				o.hung++
			default:
				o.reset++
			}
			o.longest = max(o.longest, time.Since(begin))
		})
	}
	tries.Wait()
	return o
}

// works wants a new connection to work. Over plain tcp one of the pool may be dead already, which only its use shows:
// the program starts over.
func (v *travel) works(t testing.TB, limit time.Duration) {
	t.Helper()
	for again := v.transport.name == "tcp"; ; again = false {
		begin := time.Now()
		h, err := v.open()
		if err == nil {
			err = h.say(limit)
		}
		took := time.Since(begin).Round(time.Millisecond)
		switch {
		case err == nil:
			t.Logf("%s: a new connection worked after %v", t.Name(), took)
			return
		case again && !errors.Is(err, errHangs):
			t.Logf("%s: a new connection ended after %v: %v", t.Name(), took, err)
			continue
		}
		t.Errorf("a new connection: %v", err)
		return
	}
}

var logLine = regexp.MustCompile(`"level":"(INFO|WARN|ERROR)","msg":"([^"]*)"`)

// lines counts what the client has logged, by level and message.
func (v *travel) lines() map[string]int {
	n := make(map[string]int)
	for _, m := range logLine.FindAllStringSubmatch(v.client.log.String(), -1) {
		n[m[1]+" "+m[2]]++
	}
	return n
}

// oneOutage wants one line of the log for the outage and one for its end, and no more than one other warning.
func (v *travel) oneOutage(t testing.TB) {
	t.Helper()
	lines := v.lines()
	if began, ended := lines["WARN the edge cannot be reached"], lines["INFO the edge is reached again"]; began != 1 || ended != 1 {
		t.Errorf("%d lines say that the edge cannot be reached, and %d that it is again", began, ended)
	}
	v.fewWarnings(t)
}

func (v *travel) fewWarnings(t testing.TB) {
	t.Helper()
	warnings := 0
	lines := v.lines()
	for line, n := range lines {
		if !strings.HasPrefix(line, "INFO") {
			warnings += n
		}
	}
	if warnings > 2 {
		t.Errorf("%d warnings: %v", warnings, lines)
	}
}

// Twenty connections are open when the network goes away, and twenty are opened while it is away.
func TestLinkDown(t *testing.T) {
	t.Parallel()
	places := map[string]struct{ down, up func(v *travel) }{
		"cable": {
			func(v *travel) { v.home.ip(v.t, "link set lan down") },
			func(v *travel) { v.home.ip(v.t, "link set lan up") },
		},
		"uplink": { // nothing at the laptop shows it
			func(v *travel) { v.home.nft(v.t, "add rule inet filter extra drop") },
			func(v *travel) { v.home.nft(v.t, "flush chain inet filter extra") },
		},
	}
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			travels(t, "wait=60s", func(t *testing.T, v *travel) {
				all := v.hold(20)
				place.down(v)
				speak(t, all[:10])
				var mu sync.Mutex
				var fresh []*held
				var opening sync.WaitGroup
				for range 20 {
					time.Sleep(time.Second)
					opening.Go(func() {
						h, err := v.open()
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						defer mu.Unlock()
						fresh = append(fresh, h)
					})
				}
				opening.Wait()
				time.Sleep(10 * time.Second)
				place.up(v)

				var old, new outcome
				var both sync.WaitGroup
				both.Go(func() { new = each(fresh, func(h *held) error { return h.say(30 * time.Second) }) })
				both.Go(func() { old = each(all, func(h *held) error { return h.say(30 * time.Second) }) })
				both.Wait()
				t.Logf("%s: opened before: %v; opened meanwhile: %v", t.Name(), old, new)
				if old.hung > 0 || old.longest > soon {
					t.Errorf("opened before: %v", old)
				}
				if new.well != 20 || new.longest > soon {
					t.Errorf("opened meanwhile: %v", new)
				}
				v.works(t, soon)
				v.oneOutage(t)
			})
		})
	}
}

// What waits for longer than it may is turned away.
func TestWaitEnds(t *testing.T) {
	t.Parallel()
	for _, wait := range []time.Duration{0, 12 * time.Second} {
		t.Run(wait.String(), func(t *testing.T) {
			t.Parallel()
			v := newTravel(t, wssCase(t), "198.51.100.1", "timeout=4s;wait="+wait.String())
			v.hold(1)
			v.home.nft(t, "add rule inet filter extra drop")
			var all []*held
			for range 20 {
				h, err := v.open()
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, h)
			}
			begin := time.Now()
			got := each(all, func(h *held) error { return h.end(30 * time.Second) })
			t.Logf("wait=%v: %v", wait, got)
			least, most := max(wait, 4*time.Second)-time.Second, max(wait, 4*time.Second)+2*time.Second
			if took := time.Since(begin); got.reset != 20 || took < least || took > most {
				t.Errorf("%v, want 20 resets between %v and %v", got, least, most)
			}
			if n := v.lines()["WARN the edge cannot be reached"]; n != 1 {
				t.Errorf("%d lines about it, want 1: %v", n, v.lines())
			}
			v.fewWarnings(t)
		})
	}
}

func TestAddressChanged(t *testing.T) {
	t.Parallel()
	travels(t, "wait=20s", func(t *testing.T, v *travel) {
		all := v.hold(20)
		v.laptop.ip(t, "addr del 192.168.7.2/24 dev up7", "addr add 192.168.7.3/24 dev up7", "route replace default via 192.168.7.1")

		v.works(t, soon)
		got := each(all, func(h *held) error { return h.end(30 * time.Second) })
		t.Logf("%s: %v", t.Name(), got)
		if got.reset != 20 || got.longest > soon {
			t.Errorf("open connections: %v", got)
		}
		v.fewWarnings(t)
	})
}

// The way out leads over a router that does not know the connections.
func TestRouteChanged(t *testing.T) {
	t.Parallel()
	travels(t, "wait=20s", func(t *testing.T, v *travel) {
		all := v.hold(20)
		v.laptop.ip(t, "route replace default via 192.168.8.1")

		v.works(t, soon)
		got := each(all, func(h *held) error { return h.end(30 * time.Second) })
		t.Logf("%s: %v", t.Name(), got)
		if got.reset != 20 || got.longest > soon {
			t.Errorf("open connections: %v", got)
		}
		v.fewWarnings(t)
	})
}

func TestForgotten(t *testing.T) {
	t.Parallel()
	for _, pause := range []time.Duration{0, 7 * time.Second, 35 * time.Second} {
		t.Run("used after "+pause.String(), func(t *testing.T) {
			t.Parallel()
			travels(t, "wait=20s", func(t *testing.T, v *travel) {
				all := v.hold(5)
				v.home.forget(t)
				time.Sleep(pause)

				got := each(all, func(h *held) error { return h.say(30 * time.Second) })
				t.Logf("%s: %v", t.Name(), got)
				if got.reset != 5 || got.longest > soon {
					t.Errorf("open connections: %v", got)
				}
				v.works(t, soon)
				v.fewWarnings(t)
			})
		})
	}
}

// A connection that nobody uses ends too, if not as soon.
func TestForgottenWhileIdle(t *testing.T) {
	t.Parallel()
	travels(t, "wait=20s", func(t *testing.T, v *travel) {
		all := v.hold(5)
		v.home.forget(t)
		got := each(all, func(h *held) error { return h.end(2 * time.Minute) })
		t.Logf("%s: %v", t.Name(), got)
		if got.reset != 5 || got.longest > 45*time.Second {
			t.Errorf("open connections: %v", got)
		}
	})
}

// What the router has forgotten is replaced in a pool that nobody uses, before somebody does.
func TestForgottenPool(t *testing.T) {
	t.Parallel()
	for _, c := range transports(t) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := newTravel(t, c, "198.51.100.1", "pool=2")
			v.home.forget(t)
			time.Sleep(45 * time.Second) // one Ping, or keep-alive, and all that follows
			h, err := v.open()
			if err == nil {
				err = h.say(time.Second)
			}
			if err != nil {
				t.Error(err)
			}
			v.fewWarnings(t)
		})
	}
}

// What is kept for the next program, and the router has forgotten meanwhile, costs that program no more than what is ready in a pool; and only one.
func TestForgottenKept(t *testing.T) {
	t.Parallel()
	for _, pool := range []string{"0", "2"} {
		t.Run("pool="+pool, func(t *testing.T) {
			t.Parallel()
			v := newTravel(t, wssCase(t), "198.51.100.1", "pool="+pool)
			for _, h := range v.hold(3) {
				if err := h.Conn.(*net.TCPConn).CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if err := h.end(patience); err != io.EOF {
					t.Fatal(err)
				}
			}
			v.client.await(t, `(?s)("tunnel closed".*){3}`)
			v.home.forget(t)
			v.works(t, soon)
			v.works(t, time.Second)
			v.fewWarnings(t)
		})
	}
}

// Where nothing answers any more, and nothing says so, programs wait as long as they are told to, with a pool as well.
func TestWaitInSilence(t *testing.T) {
	t.Parallel()
	travels(t, "wait=3s", func(t *testing.T, v *travel) {
		v.home.nft(t, "add rule inet filter extra drop")
		begin := time.Now()
		h, err := v.open()
		if err != nil {
			t.Fatal(err)
		}
		err = h.say(30 * time.Second)
		took := time.Since(begin).Round(100 * time.Millisecond)
		t.Logf("%s: %v after %v", t.Name(), err, took)
		waits := v.transport.name == "wss" || strings.HasSuffix(t.Name(), "pool=0") // tcp knows no more than that a connection is there
		if waits && (err == nil || took < 2*time.Second || took > 6*time.Second) {
			t.Errorf("got %v after %v, want an end after 3s", err, took)
		}
	})
}

// One connection of several is dropped on the way.
func TestPortDropped(t *testing.T) {
	t.Parallel()
	v := newTravel(t, wssCase(t), "198.51.100.1", "")
	dead := v.hold(1)[0]
	port := ""
	for _, line := range strings.Split(readFile(t, fmt.Sprintf("/proc/%d/net/tcp", v.client.Process.Pid)), "\n") {
		if words := strings.Fields(line); len(words) > 3 && strings.HasSuffix(words[2], ":01BB") && words[3] == "01" {
			n, err := strconv.ParseUint(words[1][len(words[1])-4:], 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			port = strconv.Itoa(int(n))
		}
	}
	if port == "" {
		t.Fatal("no connection to the edge is found")
	}
	others := v.hold(5)
	v.home.nft(t, "add rule inet filter extra tcp sport "+port+" drop\nadd rule inet filter extra tcp dport "+port+" drop")

	if got := each([]*held{dead}, func(h *held) error { return h.say(30 * time.Second) }); got.reset != 1 || got.longest > soon {
		t.Errorf("the dropped one: %v", got)
	} else {
		t.Logf("the dropped one: %v", got)
	}
	if got := each(others, func(h *held) error { return h.say(soon) }); got.well != 5 {
		t.Errorf("the others: %v", got)
	}
}

func TestIPv6(t *testing.T) {
	t.Parallel()
	changes := map[string]func(v *travel){
		"forgotten": func(v *travel) { v.home.forget(v.t) },
		"address": func(v *travel) {
			v.laptop.ip(v.t, "addr del 2001:db8:7::2/64 dev up7", "addr add 2001:db8:7::3/64 dev up7")
		},
		"route": func(v *travel) { v.laptop.ip(v.t, "route replace default via 2001:db8:8::1") },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newTravel(t, wssCase(t), "2001:db8:ed::1", "pool=2")
			all := v.hold(5)
			change(v)
			got := each(all, func(h *held) error { return h.say(30 * time.Second) })
			t.Logf("%s: %v", t.Name(), got)
			if got.reset != 5 || got.longest > soon {
				t.Errorf("open connections: %v", got)
			}
			v.works(t, soon)
		})
	}
}

// Through a proxy it is the proxy that the laptop is connected to.
func TestChangesBehindProxy(t *testing.T) {
	t.Parallel()
	changes := map[string]func(v *travel){
		"forgotten": func(v *travel) { v.home.forget(v.t) },
		"address": func(v *travel) {
			v.laptop.ip(v.t, "addr del 192.168.7.2/24 dev up7", "addr add 192.168.7.3/24 dev up7", "route replace default via 192.168.7.1")
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newTravel(t, wssCase(t), "198.51.100.1", "")
			v.edge.serve(t, "198.51.100.1:3128", func(c *net.TCPConn) { v.proxy(c) })
			v.startClient("proxy=http://198.51.100.1:3128")
			all := v.hold(5)
			change(v)
			got := each(all, func(h *held) error { return h.say(30 * time.Second) })
			t.Logf("%s: %v", t.Name(), got)
			if got.reset != 5 || got.longest > soon {
				t.Errorf("open connections: %v", got)
			}
			v.works(t, soon)
		})
	}
}

// A process that is stopped is like a machine that sleeps: what happened meanwhile, it has not seen.
func TestSleep(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		happens func(v *travel)
		after   time.Duration
	}{
		"the edge is restarted": {func(v *travel) {
			v.signal(v.server, syscall.SIGTERM)
			<-v.server.done
			v.startEdge()
		}, 15 * time.Second},
		"the router forgets": {func(v *travel) { v.home.forget(v.t) }, 15 * time.Second},
		"another network": {func(v *travel) {
			v.laptop.ip(v.t, "link set up7 down", "addr flush dev up7", "route replace default via 192.168.8.1")
		}, 2 * time.Minute},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			travels(t, "wait=20s", func(t *testing.T, v *travel) {
				all := v.hold(20)
				v.signal(v.client, syscall.SIGSTOP)
				time.Sleep(5 * time.Second)
				c.happens(v)
				time.Sleep(c.after)
				v.signal(v.client, syscall.SIGCONT)

				v.works(t, soon)
				got := each(all, func(h *held) error { return h.end(30 * time.Second) })
				t.Logf("%s: %v", t.Name(), got)
				if got.reset != 20 || got.longest > soon {
					t.Errorf("open connections: %v", got)
				}
				v.fewWarnings(t)
			})
		})
	}
}

// What only looks dead goes on.
func TestNotCut(t *testing.T) {
	t.Parallel()
	const still = 70 * time.Second
	cases := map[string]func(t *testing.T, v *travel, all []*held){
		"hiccup": func(t *testing.T, v *travel, all []*held) {
			for range 4 {
				v.home.nft(t, "add rule inet filter extra drop")
				speak(t, all)
				time.Sleep(3 * time.Second)
				v.home.nft(t, "flush chain inet filter extra")
				hear(t, all)
			}
		},
		"away for half a minute": func(t *testing.T, v *travel, all []*held) {
			v.home.nft(t, "add rule inet filter extra drop")
			speak(t, all)
			time.Sleep(30 * time.Second)
			v.home.nft(t, "flush chain inet filter extra")
			hear(t, all)
		},
		"the wi-fi comes back": func(t *testing.T, v *travel, all []*held) {
			for range 4 {
				v.home.ip(t, "link set lan down")
				time.Sleep(2 * time.Second)
				v.home.ip(t, "link set lan up", "route replace default via 203.0.113.1", "addr replace 2001:db8:7::1/64 dev lan nodad")
				time.Sleep(4 * time.Second)
			}
		},
		"the edge stands still": func(t *testing.T, v *travel, all []*held) {
			v.signal(v.server, syscall.SIGSTOP)
			speak(t, all)
			time.Sleep(still / 2)
			v.signal(v.server, syscall.SIGCONT)
			hear(t, all)
		},
		"other addresses come and go": func(t *testing.T, v *travel, all []*held) {
			for range 5 {
				v.laptop.ip(t, "addr add 10.1.2.3/24 dev up8")
				time.Sleep(time.Second)
				v.laptop.ip(t, "addr del 10.1.2.3/24 dev up8")
				time.Sleep(time.Second)
			}
			time.Sleep(15 * time.Second)
		},
	}
	for name, happens := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newTravel(t, wssCase(t), "198.51.100.1", "wait=20s")
			all := v.hold(10)
			for _, h := range all {
				h.SetDeadline(time.Now().Add(2 * still))
			}
			happens(t, v, all)
			if got := each(all, func(h *held) error { return h.say(patience) }); got.well != 10 {
				t.Errorf("%v", got)
			}
		})
	}
	t.Run("the target reads nothing", func(t *testing.T) {
		t.Parallel()
		for _, c := range []transportCase{transports(t)[0], wssCase(t)} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				v := newTravel(t, c, "198.51.100.1", "")
				release := make(chan struct{})
				got := make(chan int64, 100)
				var accepted atomic.Int32
				stubborn := v.edge.serve(t, "127.0.0.1:0", func(c *net.TCPConn) {
					accepted.Add(1)
					<-release
					n, _ := io.Copy(io.Discard, c)
					got <- n
				})
				v.server.Process.Kill()
				<-v.server.done
				v.target.address = stubborn
				v.startEdge()
				conn, err := v.laptop.dial(v.address)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(3 * still))
				const size = 64 * megabyte
				sent := flow(conn.(*net.TCPConn), size, true)
				time.Sleep(still)
				close(release)
				if err := <-sent; err != nil {
					t.Error(err)
				}
				most := int64(0)
				for end := time.After(still); most < size; {
					select {
					case n := <-got: // also of those that only tried the network
						most = max(most, n)
					case <-end:
						t.Fatalf("it hangs: %d bytes have arrived", most)
					}
				}
				tries := int(accepted.Load()) - 1 + strings.Count(v.server.log.String(), `"msg":"no tunnel"`)
				t.Logf("%s: the network was tried %d times", t.Name(), tries)
				if tries > 3 {
					t.Errorf("the network was tried %d times", tries)
				}
			})
		}
	})
	t.Run("slow uplink", func(t *testing.T) {
		t.Parallel()
		v := newTravel(t, wssCase(t), "198.51.100.1", "")
		v.home.nft(t, `add rule inet filter extra iifname "lan" limit rate over 24 kbytes/second burst 8 kbytes drop`)
		var err error
		id := newID()
		conn, err := v.laptop.dial(v.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(3 * time.Minute))
		fmt.Fprintf(conn, "finish 0 %s\n", id)
		begin := time.Now()
		sent := flow(conn.(*net.TCPConn), megabyte, true)
		if err := <-sent; err != nil {
			t.Error(err)
		}
		select {
		case report := <-v.target.report(id):
			if want := sumOf(megabyte) + " <nil>"; report != want {
				t.Errorf("%s arrived, want %s", report, want)
			}
			t.Logf("1 MiB took %v", time.Since(begin).Round(time.Second))
		case <-time.After(3 * time.Minute):
			t.Error("it hangs")
		}
	})
}

// A laptop whose connections say nothing stays asleep.
func TestIdleCost(t *testing.T) {
	t.Parallel()
	travels(t, "", func(t *testing.T, v *travel) {
		v.hold(20)
		time.Sleep(5 * time.Second)
		const length = 30
		wakes, cpu := v.client.wakes(t), v.client.cpu(t)
		time.Sleep(length * time.Second)
		wakes, cpu = v.client.wakes(t)-wakes, v.client.cpu(t)-cpu
		t.Logf("%s: %.1f switches a second, %v of CPU time in %d s", t.Name(), float64(wakes)/length, cpu, length)
		if wakes > 60*length || cpu > 200*time.Millisecond {
			t.Errorf("%d switches and %v of CPU time in %d s", wakes, cpu, length)
		}
	})
}

func (v *travel) signal(p *process, s syscall.Signal) {
	v.t.Helper()
	if err := p.Process.Signal(s); err != nil {
		v.t.Fatal(err)
	}
}

// wakes counts how often a thread of p has waited and gone on.
func (p *process) wakes(t testing.TB) (n int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.Process.Pid))
	if err != nil || len(tasks) == 0 {
		t.Fatal("no threads", err)
	}
	for _, task := range tasks {
		if m := regexp.MustCompile(`(?m)^voluntary_ctxt_switches:\s+(\d+)`).FindStringSubmatch(readFile(t, task)); m != nil {
			count, _ := strconv.Atoi(m[1])
			n += count
		}
	}
	return n
}

// cpu is how long p has been computing.
func (p *process) cpu(t testing.TB) time.Duration {
	t.Helper()
	_, rest, _ := strings.Cut(readFile(t, fmt.Sprintf("/proc/%d/stat", p.Process.Pid)), ") ")
	words := strings.Fields(rest)
	user, _ := strconv.Atoi(words[11])
	system, _ := strconv.Atoi(words[12])
	return time.Duration(user+system) * 10 * time.Millisecond // proc(5): hundredths of a second
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// proxy serves one CONNECT.
func (v *travel) proxy(c *net.TCPConn) {
	in := bufio.NewReader(c)
	request, err := http.ReadRequest(in)
	if err != nil || request.Method != http.MethodConnect {
		return
	}
	to, err := v.edge.dial(request.Host)
	if err != nil {
		io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
		return
	}
	defer to.Close()
	io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		io.Copy(c, to)
		c.Close()
	}()
	io.Copy(to, in)
}
