package edge

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// lane is a client that uses its connection for one tunnel after the other, one at a time, as raimonc does.
type lane struct {
	t       testing.TB
	connect func() (bare, c tunnel.Conn, err error) // a new connection to the edge

	fresh int                       // connections that were made
	take  func(c tunnel.Conn) error // what the edge is told on a connection that waits; nil: to dial its own target
	bare  tunnel.Conn               // of kept
	kept  tunnel.Conn               // the edge waits on it; nil: there is none
}

// newLane has connections from a loopback address to address, over ws, or wss where ca is not nil.
func newLane(t testing.TB, from, address string, ca *tunneltest.CA, w tunnel.WebSocket) *lane {
	w.Reuse = true
	layers := tunnel.Transport{&w}
	if ca != nil {
		layers = tunnel.Transport{&tunnel.TLS{ClientConfig: &tls.Config{RootCAs: ca.Pool, ServerName: w.Host}}, &w}
	}
	l := &lane{t: t, connect: func() (bare, c tunnel.Conn, err error) {
		bare, err = connectFrom(from, address)
		if err != nil {
			return nil, nil, err
		}
		bare.SetDeadline(time.Now().Add(patience))
		defer bare.SetDeadline(time.Time{})
		if c, err = layers.Client(t.Context(), bare); err != nil {
			bare.Close()
			return nil, nil, err
		}
		return bare, c, nil
	}}
	t.Cleanup(l.close)
	return l
}

// lane is one of a.test of s.
func (s *scene) lane(path string) *lane {
	return newLane(s.t, "127.0.0.1", s.address, s.ca, tunnel.WebSocket{Host: "a.test", Path: path})
}

func (l *lane) close() {
	if l.kept != nil {
		l.kept.Close()
		l.kept = nil
	}
}

// program is one that uses a lane.
type program struct {
	*lane
	net.Conn
	ended chan error
}

// open begins a tunnel on the connection that the lane has kept, or on a new one.
func (l *lane) open() *program {
	local, accepted := tunneltest.Pair(l.t)
	local.SetDeadline(time.Now().Add(patience))
	f := &tunnel.Forwarder{
		Open: func(ctx context.Context, _ tunnel.Conn, _ *tunnel.Info) (bare, c tunnel.Conn, err error) {
			if l.kept == nil {
				l.fresh++
				if bare, c, err = l.connect(); err != nil {
					return nil, nil, err
				}
				return bare, c, tunnel.AwaitOpen(c) // at once, unless a target was named
			}
			bare, c, l.kept = l.bare, l.kept, nil
			take := l.take
			if take == nil {
				take = func(c tunnel.Conn) error { return tunnel.Take(c, "") }
			}
			c.SetDeadline(time.Now().Add(patience))
			defer c.SetDeadline(time.Time{})
			return bare, c, errors.Join(take(c), tunnel.AwaitOpen(c))
		},
		Keep: func(_ *tunnel.Session, bare, c tunnel.Conn) bool {
			l.bare, l.kept = bare, c
			return true
		},
	}
	p := &program{lane: l, Conn: local, ended: make(chan error, 1)}
	go func() { p.ended <- f.Handle(context.Background(), accepted) }()
	return p
}

// finish says text and ends, and returns what comes back.
func (p *program) finish(text string) (answer string, err error) {
	if _, err = io.WriteString(p, text); err == nil {
		err = p.Conn.(*net.TCPConn).CloseWrite()
	}
	var got []byte
	if err == nil {
		got, err = io.ReadAll(p.Conn)
	}
	p.Close()
	if cause := <-p.ended; cause != nil {
		err = cause
	}
	return string(got), err
}

// echo is a whole tunnel to a target that sends back what it gets.
func (l *lane) echo(text string) error {
	got, err := l.open().finish(text)
	if err == nil && got != text {
		err = errOther
	}
	return err
}

// wait has a tunnel, after which the edge has to wait on the connection.
func (l *lane) wait() {
	l.t.Helper()
	if err := l.echo("hello"); err != nil {
		l.t.Fatal(err)
	}
	if l.kept == nil {
		l.t.Fatal("the edge does not wait")
	}
}

// hearsClose is what is heard on a connection that waits.
func (l *lane) hearsClose(code int) {
	l.t.Helper()
	l.kept.SetReadDeadline(time.Now().Add(patience))
	err := tunnel.AwaitOpen(l.kept)
	var closed *tunnel.CloseError
	if !errors.As(err, &closed) || closed.Code != code {
		l.t.Errorf("who waits hears %v, want a Close %d", err, code)
	}
	l.close()
}

// stillWaits says that the next tunnel needs no other connection.
func (l *lane) stillWaits() {
	l.t.Helper()
	before := l.fresh
	if l.wait(); l.fresh != before {
		l.t.Error("the connection waits no longer")
	}
}

// line is what the log of a scene says of a tunnel.
type line struct {
	Message  string `json:"msg"`
	Reason   string
	Client   string
	Site     string
	Route    string
	Target   string
	User     string
	Sent     int64
	Received int64
	Duration string
}

// tunnels are the lines of the log about tunnels, when there are so many.
func (s *scene) tunnels(want int) (all []line) {
	s.t.Helper()
	ok := s.eventually(func() bool {
		all = nil
		for text := range strings.Lines(s.log.String()) {
			var l line
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				s.t.Fatalf("log: %q: %v", text, err)
			}
			if strings.HasPrefix(l.Message, "tunnel ") {
				all = append(all, l)
			}
		}
		return len(all) >= want
	})
	if !ok || len(all) != want {
		s.t.Fatalf("the log has %d lines of tunnels, want %d\n%s", len(all), want, s.log)
	}
	return all
}

// edges are those of config files and of option strings, with metrics and without.
var edges = map[string]func(*scene){
	"config file":                nil,
	"option string":              func(s *scene) { s.server.Fixed, s.server.Metrics = true, nil },
	"option string, and metrics": func(s *scene) { s.server.Fixed = true },
	"config file, and a limit":   func(s *scene) { s.config.Limits = Limits{Connections: 1000, PerAddress: 100, Rate: 1000} },
}

// Each tunnel of a connection is one of its own to the log and to all that counts, and no sum ever falls.
func TestEachTunnelOfAConnectionIsCounted(t *testing.T) {
	for name, tweak := range edges {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, tweak)
			stop := s.neverFalls()
			l := s.lane(tunnelPath)
			var begun []time.Time
			var took []time.Duration
			total := 0
			for n := range 5 {
				begun = append(begun, time.Now())
				p := l.open()
				if err := isEcho(p); err != nil {
					t.Fatal(err)
				}
				if n == 0 {
					time.Sleep(300 * time.Millisecond) // which the next are not to inherit
				}
				text := strings.Repeat("x", 1000*n)
				total += len(text) + len("anybody there?")
				if got, err := p.finish(text); err != nil || got != text {
					t.Fatalf("tunnel %d: %d bytes, %v", n, len(got), err)
				}
				all := s.tunnels(n + 1)
				took = append(took, time.Since(begun[n]))
				last := all[n]
				d, err := time.ParseDuration(last.Duration)
				if err != nil || d > took[n]+time.Millisecond { // it is rounded
					t.Errorf("tunnel %d lasted %v, the log says %s", n, took[n], last.Duration)
				}
				want := line{"tunnel closed", "client_closed", l.bare.LocalAddr().String(), "a.test", "/tunnel", "", "",
					int64(len(text) + 14), int64(len(text) + 14), last.Duration}
				if last != want {
					t.Errorf("the log says %+v, want %+v", last, want)
				}
				if open := s.server.Tunnels(); len(open) != 0 {
					t.Errorf("while it waits, open are %+v", open)
				}
			}
			if l.fresh != 1 {
				t.Errorf("there were %d connections", l.fresh)
			}
			if s.server.Metrics != nil {
				for series, want := range map[string]float64{
					`raimon_connections_total{listener="127.0.0.1:0"}`:                              1,
					`raimon_connections_open`:                                                       1,
					`raimon_tls_handshake_duration_seconds_count{site="a.test"}`:                    1,
					`raimon_tunnel_setup_duration_seconds_count{site="a.test"}`:                     5,
					`raimon_tunnels_open{route="/tunnel",site="a.test"}`:                            0,
					`raimon_tunnels_opened_total{route="/tunnel",site="a.test"}`:                    5,
					`raimon_tunnels_ended_total{reason="closed",route="/tunnel",site="a.test"}`:     5,
					`raimon_tunnel_bytes_total{direction="sent",route="/tunnel",site="a.test"}`:     float64(total),
					`raimon_tunnel_bytes_total{direction="received",route="/tunnel",site="a.test"}`: float64(total),
				} {
					s.metric(series, want)
				}
			}
			l.close()
			s.metric(`raimon_connections_open`, 0)
			stop()
			for series, value := range s.metrics() { // who had enough has not failed at anything
				if (strings.HasPrefix(series, "raimon_handshake_failures_total") || strings.HasPrefix(series, "raimon_target_failures_total") ||
					strings.HasPrefix(series, "raimon_visits_total") || strings.HasPrefix(series, "raimon_refusals_total")) && value != 0 {
					t.Errorf("%s is %v", series, value)
				}
			}
			s.tunnels(5)
			if strings.Contains(s.log.String(), `"level":"WARN"`) {
				t.Errorf("the log warns:\n%s", s.log)
			}
		})
	}
}

// neverFalls looks at the sums of the server until stop, again and again.
func (s *scene) neverFalls() (stop func()) {
	enough := make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() {
		last := make(map[string]Traffic)
		for {
			for _, now := range s.server.Traffic() {
				before := last[now.Site+now.Route]
				if now.Sent < before.Sent || now.Received < before.Received || now.Opened < before.Opened || now.Open < 0 {
					s.t.Errorf("after %+v there is %+v", before, now)
				}
				last[now.Site+now.Route] = now
			}
			for _, open := range s.server.Tunnels() {
				if open.Site == "" || open.Begin.IsZero() {
					s.t.Errorf("a tunnel that is open: %+v", open)
				}
			}
			select {
			case <-enough:
				return
			case <-time.After(100 * time.Microsecond):
			}
		}
	})
	return sync.OnceFunc(func() { close(enough); looking.Wait() })
}

// Who was let in by a token, or by a certificate, is named once with each tunnel.
func TestEachTunnelOfAConnectionNamesItsUser(t *testing.T) {
	for name, tweak := range edges {
		for _, label := range []string{"", "home"} {
			t.Run(name+" label="+label, func(t *testing.T) {
				tokens, _ := newTokens(t, "alice "+HashToken("hers"))
				if err := tokens.Load(); err != nil {
					t.Fatal(err)
				}
				s := newScene(t, func(s *scene) {
					s.config.Sites = append(s.config.Sites, &Site{Label: label, Certificate: s.certificate("b.test"),
						Routes: []*Route{{Path: "/mine", Target: s.config.Sites[0].Routes[0].Target, Access: Access{Tokens: tokens}}}})
					if tweak != nil {
						tweak(s)
					}
				})
				l := newLane(t, "127.0.0.1", s.address, s.ca, tunnel.WebSocket{Host: "b.test", Path: "/mine",
					Token: func(context.Context) (string, error) { return "hers", nil }})
				for range 4 {
					l.wait()
				}
				for _, told := range s.tunnels(4) {
					if told.User != "alice" || told.Site != label {
						t.Errorf("the log says %+v", told)
					}
				}
				for text := range strings.Lines(s.log.String()) {
					if strings.Count(text, `"user"`) > 1 {
						t.Errorf("the log says %s", text)
					}
				}
			})
		}
	}
}

// The second tunnel goes where it is told to, and not where the first has been.
func TestNextTunnelHasItsOwnTarget(t *testing.T) {
	speaks := func(text string) string {
		return tunneltest.Serve(t, func(c *net.TCPConn) { io.WriteString(c, text); io.Copy(io.Discard, c) })
	}
	one, two, own := speaks("one"), speaks("two"), speaks("own")
	for name, tweak := range edges {
		for _, first := range []string{"", one} {
			t.Run(fmt.Sprintf("%s, after %q", name, first), func(t *testing.T) {
				s := newScene(t, func(s *scene) {
					s.config.Sites[0].Routes = append(s.config.Sites[0].Routes,
						&Route{Path: "/both", Target: own, Targets: rules(t, "127.0.0.1:*")})
					if tweak != nil {
						tweak(s)
					}
				})
				l := newLane(t, "127.0.0.1", s.address, s.ca, tunnel.WebSocket{Host: "a.test", Path: "/both", Target: first})
				want := map[string]string{"": "own", one: "one", two: "two"}
				targets := []string{first, "", two, "", "", one, two, ""}
				for n, target := range targets {
					l.take = func(c tunnel.Conn) error { return tunnel.Take(c, target) }
					got, err := l.open().finish("")
					if err != nil || got != want[target] {
						t.Fatalf("tunnel %d, to %q: got %q, %v", n, target, got, err)
					}
				}
				l.take = tunnel.Echo
				if err := l.echo("hello"); err != nil {
					t.Errorf("an echo: %v", err)
				}
				l.take = nil
				if got, err := l.open().finish(""); err != nil || got != "own" || l.fresh != 1 {
					t.Errorf("after an echo: got %q, %v, over %d connections", got, err, l.fresh)
				}
				for n, told := range s.tunnels(len(targets) + 2)[:len(targets)] {
					if told.Target != targets[n] {
						t.Errorf("of the target %q the log says %q", targets[n], told.Target)
					}
				}
			})
		}
	}
}

// A target that nobody may have, or that is not there, ends the connection with its reason; what the client may have it still has on the next one.
func TestNextTunnelMayFail(t *testing.T) {
	s := newScene(t, func(s *scene) {
		own := s.config.Sites[0].Routes[0].Target
		s.config.Sites[0].Routes = append(s.config.Sites[0].Routes, &Route{Path: "/both", Target: own, Targets: rules(t, "127.0.0.1:*")})
	})
	l := s.lane("/both")
	for target, reason := range map[string]string{"10.0.0.1:22": tunnel.ReasonForbidden, closedPort(t): tunnel.ReasonRefused} {
		l.wait()
		l.take = func(c tunnel.Conn) error { return tunnel.Take(c, target) }
		if got, err := l.open().finish("hello"); tunnel.Reason(err) != reason || got != "" || l.kept != nil {
			t.Errorf("to %s: got %q, %v, want %q", target, got, err, reason)
		}
		l.take = nil
		s.metric(`raimon_target_failures_total{reason="`+reason+`",route="/both",site="a.test"}`, 1)
	}
	s.metric(`raimon_connections_open`, 0)
	s.metric(`raimon_tunnels_open{route="/both",site="a.test"}`, 0)
}

// What a target is told of the client does not depend on which tunnel of the connection it is.
func TestProxyHeaderOfEachTunnel(t *testing.T) {
	for name, tweak := range edges {
		for version := 1; version <= 2; version++ {
			t.Run(fmt.Sprintf("%s, version %d", name, version), func(t *testing.T) {
				target, headers := headed(t)
				s := newScene(t, func(s *scene) {
					s.config.Sites[0].Routes = append(s.config.Sites[0].Routes, &Route{Path: "/told", Target: target, Proxy: version})
					if tweak != nil {
						tweak(s)
					}
				})
				told := func(l *lane) (text string) {
					t.Helper()
					p := l.open()
					if _, err := p.finish("hello"); err != nil {
						t.Fatal(err)
					}
					header := <-headers
					b, err := header.Format()
					if err != nil {
						t.Fatal(err)
					}
					if tlvs, err := header.TLVs(); version == 2 && (err != nil || !slices.ContainsFunc(tlvs, func(d proxyproto.TLV) bool { return d.Type == proxyproto.PP2_TYPE_SSL })) {
						t.Errorf("no TLS in %v, %v", tlvs, err)
					}
					return string(b)
				}
				l := s.lane("/told")
				first := told(l)
				for range 3 {
					if next := told(l); next != first {
						t.Errorf("after %q it is told %q", first, next)
					}
				}
				if l.fresh != 1 {
					t.Fatalf("there were %d connections", l.fresh)
				}

				// An echo needs no header; who comes behind it does.
				l = newLane(t, "127.0.0.1", s.address, s.ca, tunnel.WebSocket{Host: "a.test", Path: "/told", Wait: true})
				bare, c, err := l.connect()
				if err != nil {
					t.Fatal(err)
				}
				l.bare, l.kept, l.take = bare, c, tunnel.Echo
				if err := l.echo("hello"); err != nil {
					t.Fatal(err)
				}
				l.take = nil
				afterEcho := told(l)
				if version == 2 && len(afterEcho) != len(first) || l.fresh != 0 {
					t.Errorf("after an echo: %q, before %q", afterEcho, first)
				}
			})
		}
	}
}

// A connection that waits again has its address's place only as long as nobody else from there wants it.
func TestWaitingAgainMakesRoom(t *testing.T) {
	for _, fixed := range []bool{false, true} {
		t.Run(fmt.Sprint("fixed=", fixed), func(t *testing.T) {
			s := newScene(t, func(s *scene) { s.server.Fixed, s.config.Limits.PerAddress = fixed, 2 })
			kept, used, newcomer := s.lane(tunnelPath), s.lane(tunnelPath), s.lane(tunnelPath)
			begin := time.Now()
			kept.wait()
			open := used.open()
			if err := isEcho(open); err != nil {
				t.Fatal(err)
			}
			if err := newcomer.echo("hello"); err == nil && time.Since(begin) < handshakeGrace {
				t.Error("a third has the place at once")
			}
			if !s.eventually(func() bool { return newcomer.kept != nil || newcomer.echo("hello") == nil }) {
				t.Fatal("a third never has the place")
			}
			if took := time.Since(begin); took < handshakeGrace {
				t.Errorf("it has it after %v, want %v", took, handshakeGrace)
			}
			kept.hearsClose(1001)

			// One that has been taken again is as firm as any other.
			firm := newcomer.open()
			if err := isEcho(firm); err != nil {
				t.Fatal(err)
			}
			time.Sleep(handshakeGrace + 100*time.Millisecond)
			if err := s.lane(tunnelPath).echo("hello"); err == nil {
				t.Error("a third is served while two are in use")
			}
			for _, p := range []*program{firm, open} {
				if got, err := p.finish("bye"); err != nil || got != "bye" {
					t.Errorf("one in use: %q, %v", got, err)
				}
			}
			newcomer.stillWaits()
			used.stillWaits()
			newcomer.close()
			used.close()
			s.metric(`raimon_connections_open`, 0)
			if n := s.server.addresses.all[network(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})]; n != nil && n.open != 0 {
				t.Errorf("%d connections are still counted", n.open)
			}
		})
	}
}

// A connection whose client has still to take something of its last tunnel makes no room: it would not be gone at once, but no longer be counted.
func TestUntakenTailKeepsItsPlace(t *testing.T) {
	for name, limits := range map[string]Limits{
		"per address": {PerAddress: 1},
		"altogether":  {Connections: 1, Refuse: true},
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			answer := tunneltest.Bytes(100<<10, 3)
			e := run(t, &Config{
				Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}}, Limits: limits,
				Sites: []*Site{{Routes: []*Route{{Path: "/tunnel", Target: tunneltest.Serve(t, func(c *net.TCPConn) {
					io.Copy(io.Discard, c)
					c.Write(answer)
				})}}}},
			})
			layer := &tunnel.WebSocket{Host: "edge.test", Path: "/tunnel", Reuse: true}
			connect := func() (*net.TCPConn, tunnel.Conn, error) {
				bare, err := net.Dial("tcp", e.address)
				if err != nil {
					return nil, nil, err
				}
				t.Cleanup(func() { bare.Close() })
				bare.(*net.TCPConn).SetReadBuffer(4 << 10)
				bare.SetDeadline(time.Now().Add(20 * time.Second))
				c, err := layer.Client(t.Context(), bare.(*net.TCPConn))
				return bare.(*net.TCPConn), c, err
			}
			bare, slow, err := connect()
			if err != nil {
				t.Fatal(err)
			}
			if err := slow.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			rests := func() bool {
				e.room.mu.Lock()
				defer e.room.mu.Unlock()
				return e.room.idle.Len() == 1
			}
			for end := time.Now().Add(20 * time.Second); !rests(); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the edge does not wait for another tunnel")
				}
			}
			time.Sleep(handshakeGrace + 50*time.Millisecond)
			if _, _, err := connect(); err == nil {
				t.Error("another one has the place of a client that has not taken all")
			}
			if n := e.room.count(); n != 1 {
				t.Errorf("%d connections are open", n)
			}

			if got, err := io.ReadAll(slow); err != nil || !bytes.Equal(got, answer) {
				t.Fatalf("got %d bytes of %d, %v", len(got), len(answer), err)
			}
			bare.SetReadDeadline(time.Now().Add(20 * time.Second))
			time.Sleep(handshakeGrace + 50*time.Millisecond)
			if _, _, err := connect(); err != nil {
				t.Errorf("nobody has the place of a client that has taken all: %v", err)
			}
		})
	}
}

// Nobody is refused where somebody who waits makes room.
func TestWhoMakesRoomIsNotRefused(t *testing.T) {
	s := newScene(t, func(s *scene) { s.config.Limits.PerAddress = 1 })
	kept := s.lane(tunnelPath)
	for range 3 {
		kept.wait()
		time.Sleep(handshakeGrace + 50*time.Millisecond)
		next := s.lane(tunnelPath)
		next.wait()
		kept.hearsClose(1001)
		kept = next
	}
	s.metric(`raimon_refusals_total{limit="per_address"}`, 0)
	if strings.Contains(s.log.String(), `"level":"WARN"`) {
		t.Errorf("the log warns:\n%s", s.log)
	}
}

// Where all connections are in use, and somebody is at the door, nobody waits for what may never come.
func TestFullHouseKeepsNobodyWaiting(t *testing.T) {
	tunneltest.NoLeaks(t)
	e := run(t, &Config{
		Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}}, Limits: Limits{Connections: 2},
		Sites: []*Site{{Routes: []*Route{{Path: "/tunnel", Target: tunneltest.Echo(t)}}}},
	})
	client := func() *lane {
		return newLane(t, "127.0.0.1", e.address, nil, tunnel.WebSocket{Host: "edge.test", Path: "/tunnel"})
	}
	first, second, third := client(), client(), client()
	var used []*program
	for _, l := range []*lane{first, second} {
		l.wait()
		p := l.open()
		if err := isEcho(p); err != nil {
			t.Fatal(err)
		}
		used = append(used, p)
	}
	answer := make(chan error, 1)
	go func() { answer <- third.echo("hello") }()
	within(t, patience, "a third is at the door", e.room.isAwaited)
	if got, err := used[0].finish("bye"); err != nil || got != "bye" {
		t.Errorf("the first: %q, %v", got, err)
	}
	if err := <-answer; err != nil {
		t.Errorf("the third: %v", err)
	}
	if first.kept != nil {
		first.hearsClose(1001)
	}
	if got, err := used[1].finish("bye"); err != nil || got != "bye" || second.fresh != 1 {
		t.Errorf("the second: %q, %v, over %d connections", got, err, second.fresh)
	}
	second.stillWaits()
	third.stillWaits()
}

// A connection that waits has no place on its route, and looks for one when it is taken.
func TestWaitingAgainHasNoPlaceOnItsRoute(t *testing.T) {
	for _, queue := range []bool{false, true} {
		t.Run(fmt.Sprint("queue=", queue), func(t *testing.T) {
			tunneltest.NoLeaks(t)
			q := &queueing{running: run(t, &Config{
				Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}}, Timeout: time.Minute,
				Sites: []*Site{{Routes: []*Route{{Path: "/tunnel", Target: tunneltest.Echo(t), Limit: 1, Queue: queue}}}},
			})}
			client := func() *lane {
				return newLane(t, "127.0.0.1", q.address, nil, tunnel.WebSocket{Host: "edge.test", Path: "/tunnel"})
			}
			first, second, third := client(), client(), client()
			for n, l := range []*lane{first, second, third} {
				l.wait()
				within(t, patience, "the edge waits", func() bool { return len(q.log.with("tunnel closed")) == n+1 })
			}
			holds := first.open()
			if err := isEcho(holds); err != nil {
				t.Fatal(err)
			}
			if !queue {
				if got, err := second.open().finish("hello"); tunnel.Reason(err) != tunnel.ReasonBusy || got != "" {
					t.Errorf("on a route that is full: %q, %v, want busy", got, err)
				}
				q.refusals(t, 1)
				if _, err := holds.finish(""); err != nil {
					t.Error(err)
				}
				within(t, patience, "there is a place", func() bool { return len(q.log.with("tunnel closed")) == 4 })
				third.stillWaits()
				return
			}
			answer := make(chan error, 1)
			go func() { answer <- second.echo("hello") }()
			q.waiting(t, 1)
			if got, err := third.open().finish("hello"); tunnel.Reason(err) != tunnel.ReasonBusy || got != "" {
				t.Errorf("where as many wait as may: %q, %v, want busy", got, err)
			}
			q.refusals(t, 1)
			if _, err := holds.finish(""); err != nil {
				t.Error(err)
			}
			if err := <-answer; err != nil || second.fresh != 1 {
				t.Errorf("who has waited for a place: %v, over %d connections", err, second.fresh)
			}
			first.stillWaits()
		})
	}
}

// Another config ends what waits at once, and what ends afterwards does not wait again; tunnels go on.
func TestAnotherConfigEndsWaitingAgain(t *testing.T) {
	s := newScene(t, nil)
	waits, used := s.lane(tunnelPath), s.lane(tunnelPath)
	waits.wait()
	used.wait()
	open := used.open()
	if err := isEcho(open); err != nil {
		t.Fatal(err)
	}
	next := *s.config
	if err := s.server.Apply(t.Context(), &next); err != nil {
		t.Fatal(err)
	}
	waits.hearsClose(1001)
	if err := isEcho(open); err != nil {
		t.Errorf("a tunnel that was open: %v", err)
	}
	if got, err := open.finish("bye"); err != nil || got != "bye" {
		t.Errorf("a tunnel that was open: %q, %v", got, err)
	}
	if used.kept != nil {
		used.hearsClose(1001)
	}
	waits.wait()
	waits.stillWaits()
	s.metric(`raimon_tunnels_open{route="/tunnel",site="a.test"}`, 0)
}

// The end of the edge, and another process in its place, end what waits.
func TestEndOfEdgeEndsWaitingAgain(t *testing.T) {
	for name, end := range map[string]func(*running){"stop": func(e *running) { go e.stop() }, "retire": func(e *running) { e.Retire() }} {
		t.Run(name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			e := run(t, &Config{
				Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}}, Timeout: 300 * time.Millisecond, Drain: time.Minute,
				Sites: []*Site{{Routes: []*Route{{Path: "/tunnel", Target: tunneltest.Echo(t)}}}},
			})
			client := func() *lane {
				return newLane(t, "127.0.0.1", e.address, nil, tunnel.WebSocket{Host: "edge.test", Path: "/tunnel"})
			}
			waits, used := client(), client()
			waits.wait()
			used.wait()
			open := used.open()
			if err := isEcho(open); err != nil {
				t.Fatal(err)
			}
			end(e)
			waits.hearsClose(1001)
			if got, err := open.finish("bye"); err != nil || got != "bye" {
				t.Errorf("a tunnel that was open: %q, %v", got, err)
			}
			if used.kept != nil {
				used.hearsClose(1001)
			}
			ended := make(chan struct{})
			go func() { e.stop(); close(ended) }()
			select {
			case <-ended:
			case <-time.After(patience):
				t.Fatal("the edge does not end")
			}
		})
	}
}

// A target that has yet to take what the last tunnel has left does not hold up the next one.
func TestNextTunnelDoesNotWaitForTheTargetOfTheLast(t *testing.T) {
	var count atomic.Int32
	free := make(chan struct{})
	received := make(chan int64, 2)
	target := tunneltest.Serve(t, func(c *net.TCPConn) {
		if count.Add(1) == 1 {
			c.CloseWrite()
			<-free // it is busy
		} else {
			io.WriteString(c, "welcome")
			c.CloseWrite()
		}
		n, err := io.Copy(io.Discard, c)
		if err != nil {
			t.Error(err)
		}
		received <- n
	})
	s := newScene(t, func(s *scene) {
		s.config.Sites[0].Routes = append(s.config.Sites[0].Routes, &Route{Path: "/slow", Target: target})
	})
	l := s.lane("/slow")
	const size = 600_000 // more than its system takes, less than that of the edge keeps
	if got, err := l.open().finish(strings.Repeat("x", size)); err != nil || got != "" {
		t.Fatalf("%q, %v", got, err)
	}
	begin := time.Now()
	got, err := l.open().finish("")
	if took := time.Since(begin); err != nil || got != "welcome" || took > 2*time.Second {
		t.Errorf("the next: %q, %v after %v", got, err, took)
	}
	close(free)
	if n := <-received + <-received; n != size {
		t.Errorf("the targets have received %d bytes", n)
	}
}

// Whatever happens to connections that wait, and whenever, no place is lost: run looks.
func TestNoPlaceIsLostByWaitingAgain(t *testing.T) {
	tunneltest.NoLeaks(t)
	ca := tunneltest.NewCA(t)
	site := testSite(t, ca, "edge.test")
	site.Routes = []*Route{{Path: "/tunnel", Target: tunneltest.Echo(t), Targets: rules(t, "127.0.0.1:*"), Limit: 4, Queue: true}}
	c := &Config{Listeners: []Listener{{Address: "127.0.0.1:0"}}, Sites: []*Site{site},
		Limits: Limits{Connections: 12, PerAddress: 6}, Timeout: time.Second}
	e := run(t, c)
	nobody := closedPort(t)
	enough := make(chan struct{})
	var reloads, lanes sync.WaitGroup
	reloads.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-enough:
				return
			case <-time.After(20 * time.Millisecond):
			}
			other := *c
			other.Limits.Connections = 8 + n%3*4
			if n%2 == 0 {
				other.Limits.PerAddress = 0
			}
			if err := e.Apply(t.Context(), &other); err != nil {
				t.Error(err)
			}
		}
	})
	var well atomic.Int64
	for n := range 10 {
		lanes.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(n)))
			l := newLane(t, fmt.Sprintf("127.0.1.%d", 1+n%2), e.address, ca, tunnel.WebSocket{Host: "edge.test", Path: "/tunnel"})
			for range 30 {
				switch random.IntN(8) {
				case 0:
					l.close()
				case 1:
					if l.kept != nil {
						tunnel.ResetOnClose(l.bare)
						l.bare.Close()
					}
				case 2: // goes while the edge dials, or queues
					if l.kept != nil {
						tunnel.Take(l.kept, "")
						l.bare.Close()
						l.kept = nil
					}
				case 3:
					l.take = func(c tunnel.Conn) error { return tunnel.Take(c, nobody) }
				default:
					l.take = nil
				}
				text := strings.Repeat("x", random.IntN(100_000))
				if got, err := l.open().finish(text); err == nil && got != text {
					t.Errorf("%d bytes of %d come back", len(got), len(text))
				} else if err == nil {
					well.Add(1)
				}
			}
			l.close()
		})
	}
	lanes.Wait()
	close(enough)
	reloads.Wait()
	t.Logf("%d of 300 tunnels went well", well.Load())
	if well.Load() < 30 {
		t.Errorf("only %d of 300 tunnels went well", well.Load())
	}
	within(t, patience, "all have left", func() bool { return e.room.count() == 0 })
	e.stop()
}
