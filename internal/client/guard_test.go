package client

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// patient is a connection that a guard watches, with the health that the test gives it.
type patient struct {
	t testing.TB
	*watched
	guard   *guard
	now     tunnel.Health
	cutWith error
}

// local is a connection of which only the own address matters.
type local struct {
	tunnel.Conn
	address string
}

func (l *local) LocalAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(l.address), 50000))
}

func newPatient(t testing.TB, address string) *patient {
	o, _ := newOutage(time.Minute)
	p := &patient{t: t, guard: &o.link.client.guard, now: tunnel.Health{Known: true, Answers: 1000, RoundTrip: 20 * time.Millisecond}}
	p.watched = p.guard.watch(o.link, &local{address: address}, func(err error) { p.cutWith = err })
	p.health = func(net.Conn) tunnel.Health { return p.now }
	return p
}

// feels gives it another health.
func (p *patient) feels(change func(h *tunnel.Health)) {
	p.guard.mu.Lock()
	defer p.guard.mu.Unlock()
	change(&p.now)
}

func (p *patient) sendsAgain() {
	p.feels(func(h *tunnel.Health) { h.InFlight, h.Timeouts, h.Retransmitted = 1, h.Timeouts+1, h.Retransmitted+1 })
}

func (p *patient) isAnswered() {
	p.feels(func(h *tunnel.Health) { h.InFlight, h.Timeouts, h.Probes, h.Answers = 0, 0, 0, h.Answers+1 })
}

func (p *patient) probes(n uint32) { p.feels(func(h *tunnel.Health) { h.Probes = n }) }

// live lets time pass in which the guard looks, and finds that the network works, or not. It returns how often it
// was asked that.
func (p *patient) live(length time.Duration, works error) (proofs int) {
	for end := time.Now().Add(length); time.Now().Before(end) && p.cutWith == nil; {
		unproven, pause := p.guard.look(time.Now())
		for _, l := range unproven {
			proofs++
			began := time.Now()
			time.Sleep(10 * time.Millisecond)
			p.guard.judge(l, began, works, nil)
		}
		if pause == 0 {
			p.t.Fatal("the guard sleeps")
		}
		time.Sleep(pause)
	}
	return proofs
}

var errNoWay = errors.New("no route to host")

// What is sent again in vain while new connections are made is dead, within seconds.
func TestGuardCutsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, "192.0.2.2")
		p.live(10*time.Second, nil)
		begin := time.Now()
		go func() { // as the kernel does it, with the pauses of hurry
			for _, pause := range []time.Duration{200, 400, 800, 1600, 2000, 2000, 2000, 2000} {
				time.Sleep(pause * time.Millisecond)
				p.sendsAgain()
			}
		}()
		proofs := p.live(time.Minute, nil)
		if took := time.Since(begin); p.cutWith != ErrForgotten || took > 8*time.Second || proofs != 2 {
			t.Errorf("cut with %v after %v and %d proofs", p.cutWith, took, proofs)
		}
		time.Sleep(time.Minute)
	})
}

// Without a proof it is left alone, for as long as that takes, and asked less and less often.
func TestGuardBearsOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, "192.0.2.2")
		p.sendsAgain()
		proofs := p.live(time.Hour, errNoWay)
		if n := int(time.Hour / longestProof); p.cutWith != nil || proofs > 2*n+10 || proofs < n/2 {
			t.Fatalf("cut with %v after %d proofs", p.cutWith, proofs)
		}
		p.live(2*time.Second, nil) // the network is back; the segment is sent again, and arrives
		p.sendsAgain()
		p.live(time.Second, nil)
		p.isAnswered()
		p.live(time.Minute, nil)
		if p.cutWith != nil || !p.stalled.IsZero() {
			t.Errorf("cut with %v, stalled since %v", p.cutWith, p.stalled)
		}
	})
}

// A network that comes and goes proves nothing: the second look counts too.
func TestGuardBearsFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, "192.0.2.2")
		p.sendsAgain()
		for range 20 {
			for p.proven.IsZero() {
				p.live(guardPause, nil)
			}
			p.sendsAgain() // into the void
			for !p.proven.IsZero() {
				p.live(guardPause, errNoWay)
			}
		}
		if p.cutWith != nil {
			t.Errorf("cut with %v", p.cutWith)
		}
	})
}

// Old kernels may wait for minutes before they send again: nobody has that much time.
func TestGuardDoesNotWaitForKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, "192.0.2.2")
		p.sendsAgain()
		begin := time.Now()
		p.live(time.Minute, nil)
		if took := time.Since(begin); p.cutWith != ErrForgotten || took < askTime || took > askTime+5*time.Second {
			t.Errorf("cut with %v after %v", p.cutWith, took)
		}
	})
}

// What only looks dead, and how often it is asked whether the network works.
func TestGuardLetsLive(t *testing.T) {
	for name, c := range map[string]struct {
		second func(h *tunnel.Health)
		proofs int
	}{
		"takes nothing, and says so": {func(h *tunnel.Health) { h.InFlight, h.Probes = 0, 0 }, 0},
		"slow":                       {func(h *tunnel.Health) { h.InFlight, h.Answers = 9, h.Answers+1 }, 0},
		"lossy":                      {func(h *tunnel.Health) { h.InFlight, h.Retransmitted, h.Answers = 9, h.Retransmitted+3, h.Answers+1 }, 0},
		"a long way": {func(h *tunnel.Health) { // an answer takes 4 s
			h.RoundTrip = 4 * time.Second
			if h.InFlight = 1; time.Now().Second()%4 == 0 {
				h.Answers++
			}
			h.Retransmitted++
		}, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPatient(t, "192.0.2.2")
				proofs := 0
				for range 200 {
					p.feels(c.second)
					proofs += p.live(time.Second, nil)
				}
				if p.cutWith != nil || proofs > c.proofs {
					t.Errorf("cut with %v after %d proofs, want at most %d", p.cutWith, proofs, c.proofs)
				}
			})
		})
	}
}

// A keep-alive without an answer has more of them sent, and that is a proof too.
func TestGuardFindsDeadIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, "192.0.2.2")
		p.live(time.Minute, nil)
		p.probes(1)
		begin := time.Now()
		p.live(time.Minute, nil)
		if took := time.Since(begin); p.cutWith != ErrForgotten || took > 8*time.Second {
			t.Errorf("cut with %v after %v", p.cutWith, took)
		}
	})
}

// After a change of the network those that do not answer are dead; what they send again themselves is no answer.
func TestGuardAfterChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := newPatient(t, "192.0.2.2")
		dead.guard.networkChanged()
		go func() {
			for range 6 {
				time.Sleep(1100 * time.Millisecond)
				dead.probes(1)
				time.Sleep(300 * time.Millisecond)
				dead.probes(0) // something has come in
			}
			dead.probes(1)
		}()
		begin := time.Now()
		dead.live(time.Minute, nil)
		if took := time.Since(begin); dead.cutWith != ErrForgotten || took > 9*time.Second {
			t.Errorf("cut with %v after %v", dead.cutWith, took)
		}
		time.Sleep(time.Minute)

		well := newPatient(t, "192.0.2.2")
		well.guard.networkChanged()
		if proofs := well.live(time.Second, nil); proofs != 1 || well.quick.IsZero() {
			t.Errorf("%d proofs, and asked since %v", proofs, well.quick)
		}
		for range 2 {
			well.probes(1)
			well.live(guardPause, nil)
			well.isAnswered()
		}
		if proofs := well.live(time.Hour, nil); proofs != 0 || well.cutWith != nil || !well.quick.IsZero() {
			t.Errorf("after it has answered: %d proofs, cut with %v, asked since %v", proofs, well.cutWith, well.quick)
		}
	})
}

// A proof that began over the old network says nothing of the new one.
func TestGuardForgetsOldProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, "192.0.2.2")
		p.sendsAgain()
		time.Sleep(time.Second)
		p.guard.look(time.Now())
		began := time.Now()
		time.Sleep(time.Second)
		p.guard.networkChanged()
		p.guard.judge(p.link, began, nil, nil)
		if !p.proven.IsZero() || !p.link.proof.due {
			t.Error("it counts")
		}
	})
}

func TestGuardCutsMoved(t *testing.T) {
	own := map[netip.Addr]bool{netip.MustParseAddr("192.0.2.9"): true, netip.MustParseAddr("fe80::1"): true, netip.MustParseAddr("2001:db8::9"): true}
	for address, moved := range map[string]bool{
		"192.0.2.9": false, "192.0.2.2": true, "2001:db8::9": false, "2001:db8::2": true, "::ffff:192.0.2.9": false, "fe80::1%eth0": false, "127.0.0.2": false, "::1": false,
	} {
		t.Run(address, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPatient(t, address)
				judge := func(own map[netip.Addr]bool) {
					unproven, _ := p.guard.look(time.Now())
					for _, l := range unproven {
						p.guard.judge(l, time.Now(), nil, own)
					}
				}
				p.guard.networkChanged()
				judge(nil) // the system does not tell
				if p.cutWith != nil {
					t.Fatal("nobody knows")
				}
				p.guard.networkChanged()
				judge(own)
				if p.cutWith != nil {
					t.Fatal("addresses come back within a second")
				}
				if moved { // and it does
					time.Sleep(time.Second)
					back := map[netip.Addr]bool{netip.MustParseAddr(address): true}
					judge(back)
					if p.cutWith != nil || p.link.proof.due {
						t.Fatal("it is back")
					}
					p.guard.networkChanged()
					judge(own)
				}
				for range 3 {
					time.Sleep(time.Second)
					judge(own)
				}
				if want := map[bool]error{true: ErrMoved}[moved]; p.cutWith != want {
					t.Errorf("cut with %v, want %v", p.cutWith, want)
				}
			})
		})
	}
}

// The guard wakes up only where there is something to look after.
func TestGuardSleeps(t *testing.T) {
	o, _ := newOutage(time.Minute)
	g := &o.link.client.guard
	if unproven, pause := g.look(time.Now()); pause != 0 || unproven != nil {
		t.Errorf("without a connection: %v", pause)
	}
	p := newPatient(t, "192.0.2.2")
	if _, pause := p.guard.look(time.Now()); pause != restPause {
		t.Errorf("while all is well: %v", pause)
	}
	p.now.InFlight = 1
	if _, pause := p.guard.look(time.Now()); pause != guardPause {
		t.Errorf("with something under way: %v", pause)
	}
	p.guard.leave(p.watched)
	if _, pause := p.guard.look(time.Now()); pause != 0 {
		t.Errorf("without one any more: %v", pause)
	}
}

// A new connection wakes a guard that had nothing to do.
func TestGuardWakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := newOutage(time.Minute)
		g := &o.link.client.guard
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); g.run(ctx) }()
		time.Sleep(time.Hour)
		looks := 0
		w := g.watch(o.link, &local{address: "127.0.0.1"}, func(error) {})
		g.mu.Lock()
		w.health = func(net.Conn) tunnel.Health { looks++; return tunnel.Health{Known: true} }
		g.mu.Unlock()
		time.Sleep(20*time.Second - time.Millisecond)
		g.mu.Lock()
		if looks < 9 || looks > 11 {
			t.Errorf("%d looks in 20 s", looks)
		}
		g.mu.Unlock()
		g.leave(w)
		cancel()
		<-ended
	})
}

// A connection that dies before the edge has said that the target is there is replaced, and its program notices
// nothing.
func TestDeadBeforeOpen(t *testing.T) {
	t.Parallel()
	e := newEdge(t, ws(), tunneltest.Echo(t))
	g := newGate(t, e.address)
	address, l := startClient(t, &Tunnel{Remote: g.address, Dialer: new(tunnel.Dialer), Transport: ws(), Pool: 1, Wait: patience})
	full(t, l)
	release, _ := g.hold(fromEdge)
	got := make(chan error, 1)
	go func() {
		answer, err := exchange(t, address, "text")
		if err == nil && answer != "text" {
			err = errors.New(answer)
		}
		got <- err
	}()
	guard := &l.client.guard
	var dead *watched
	eventually(t, "the connection is watched", func() bool {
		guard.mu.Lock()
		defer guard.mu.Unlock()
		for dead = range guard.all {
			guard.end(dead, ErrForgotten)
		}
		return dead != nil
	})
	eventually(t, "the connection is closed", func() bool { return errors.Is(dead.conn.SetReadDeadline(past), net.ErrClosed) })
	release()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// A connection that dies in the moment in which it is handed over is not handed over alive.
func TestDeadWhileEntrusted(t *testing.T) {
	p := newPatient(t, "192.0.2.2")
	p.guard.end(p.watched, ErrMoved)
	told := new(doomed)
	p.guard.entrust(p.watched, told)
	if p.cutWith != ErrMoved || told.cutWith != ErrMoved {
		t.Errorf("cut with %v, and then with %v", p.cutWith, told.cutWith)
	}
}

// doomed is a session that notes why it is cut.
type doomed struct{ cutWith error }

func (d *doomed) Cut(err error) { d.cutWith = err }

func (d *doomed) Sent() int64 { return 0 }

func (d *doomed) Received() int64 { return 0 }

// The kernel of a peer that reads nothing answers, so the guard has nothing to ask.
func TestPeerThatReadsNothing(t *testing.T) {
	t.Parallel()
	over := make(chan struct{})
	c, err := net.Dial("tcp", tunneltest.Serve(t, func(*net.TCPConn) { <-over }))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer close(over)
	if !tunnel.HealthOf(c).Known {
		t.Skip("this system says nothing about its peers")
	}
	c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	block := []byte(strings.Repeat("x", 1<<20))
	for err == nil {
		_, err = c.Write(block)
	}
	o, _ := newOutage(time.Minute)
	w := o.link.client.guard.watch(o.link, c.(*net.TCPConn), func(error) { t.Error("cut") })
	eventually(t, "it is well", func() bool {
		isWell, wants := w.look(time.Now())
		if wants {
			t.Error("it is asked whether the network works")
		}
		return isWell
	})
}

// A connection that nobody uses is seldom looked at, and found dead all the same once a Ping of it is not answered; one
// that is taken is looked at as any other.
func TestGuardOfSpareOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPatient(t, "192.0.2.2")
		p.guard.rest(p.watched)
		looks := 0
		p.health = func(net.Conn) tunnel.Health { looks++; return p.now }
		p.live(10*time.Minute, nil)
		if looks > int(10*time.Minute/idleRest)+1 {
			t.Errorf("%d looks in 10 minutes", looks)
		}
		p.sendsAgain() // a Ping
		go func() {
			for range 20 {
				time.Sleep(time.Second)
				p.sendsAgain()
			}
		}()
		begin := time.Now()
		p.live(time.Minute, nil)
		if took := time.Since(begin); p.cutWith != ErrForgotten || took > 25*time.Second {
			t.Errorf("cut with %v after %v", p.cutWith, took)
		}
		time.Sleep(time.Minute)

		taken := newPatient(t, "192.0.2.2")
		taken.guard.rest(taken.watched)
		taken.live(time.Second, nil)
		taken.guard.rouse(taken.watched)
		if _, pause := taken.guard.look(time.Now()); pause != restPause {
			t.Errorf("a connection in use is looked at after %v", pause)
		}
	})
}
