package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

func TestTargetRulesThatAreWrong(t *testing.T) {
	for _, text := range []string{
		"", ":", ":22", "db", "db:", "db:0", "db:65536", "db:022", "db:+22", "db:22-", "db:-22", "db:9-8", "db:1-2-3", "db:*-3", "db:ssh",
		"*.:22", "*.*.internal:22", "a*.internal:22", "*internal:22", "**:1", ".internal:22", "a..b:22", "-a:22", "a b:22", "b\u00fccher.example:80", "db.example.com..:22",
		strings.Repeat("a", 64) + ":22", strings.Repeat("a.", 127) + "a:22", "unix:/run/x", "http://db:80", "db/8:22", "*/8:22", "*.10.0.0.1:22",
		"10.0.0.1/8:22", "10.0.0.0/33:22", "10.0.0.0/-1:22", "10.0.0.0/08:22", "10.0.0.0/:22", "010.0.0.1:22", "10.1:22", "0x0a000001:22", "167772161:22", "0.0.0.0:22", "[::]:22",
		"2001:db8::1:22", "2001:db8::/32:22", "[2001:db8::/32]:22", "[2001:db8::1:22", "2001:db8::1]:22", "[10.0.0.1]:22", "[db]:22", "[fe80::1%eth0]:22", "[::ffff:10.0.0.0]/104:22", "[2001:db8::1]",
	} {
		rule, err := ParseTargetRule(text)
		var hinted *hintedError
		if !errors.As(err, &hinted) || hinted.Hint() == "" || rule != (TargetRule{}) {
			t.Errorf("%q: got %v, %v", text, rule, err)
		}
	}
}

// matches are what a rule allows of what clients may name; with an address behind it where that is a name.
var matches = []struct {
	rule, target, at string
	want             bool
}{
	{"10.0.0.0/8:22", "10.1.2.3:22", "", true},
	{"10.0.0.0/8:22", "[::ffff:10.1.2.3]:22", "", true},
	{"10.0.0.0/8:22", "11.0.0.1:22", "", false},
	{"10.0.0.0/8:22", "10.1.2.3:23", "", false},
	{"10.0.0.0/8:22", "010.1.2.3:22", "10.1.2.3", false},
	{"10.0.0.0/8:22", "167772161:22", "10.0.0.1", false},
	{"10.0.0.0/8:22", "0xa000001:22", "10.0.0.1", false},
	{"10.0.0.0/8:22", "10.1:22", "10.0.0.1", false},
	{"10.0.0.0/8:22", "ten.0x1:22", "10.0.0.1", false},
	{"10.0.0.0/8:22", "db.example.com:22", "10.1.2.3", true},
	{"10.0.0.0/8:22", "db.example.com:22", "::ffff:10.1.2.3", true},
	{"10.0.0.0/8:22", "db.example.com:22", "192.0.2.1", false},
	{"10.0.0.1:22", "10.0.0.1:22", "", true},
	{"10.0.0.1:22", "10.0.0.2:22", "", false},
	{"0.0.0.0/0:*", "192.0.2.1:1", "", true},
	{"0.0.0.0/0:*", "0.0.0.0:1", "", false},
	{"0.0.0.0/0:*", "127.0.0.1:1", "", false},
	{"0.0.0.0/0:*", "[::ffff:127.0.0.1]:1", "", false},
	{"0.0.0.0/0:*", "[::ffff:0.0.0.0]:1", "", false},
	{"0.0.0.0/0:*", "169.254.169.254:80", "", false},
	{"0.0.0.0/0:*", "evil.example.com:80", "169.254.169.254", false},
	{"0.0.0.0/0:*", "[2001:db8::1]:80", "", false},
	{"127.0.0.0/8:80", "127.0.0.1:80", "", true},
	{"127.0.0.0/8:80", "localhost:80", "127.0.0.1", true},
	{"127.0.0.0/8:80", "0177.0.0.1:80", "127.0.0.1", false},
	{"127.0.0.0/8:80", "2130706433:80", "127.0.0.1", false},
	{"127.0.0.0/8:80", "0x7f.1:80", "127.0.0.1", false},
	{"127.0.0.0/8:80", "0x:80", "127.0.0.1", false},
	{"169.254.0.0/16:80", "169.254.169.254:80", "", true},
	{"[2001:db8::]/32:*", "[2001:db8::1]:65535", "", true},
	{"[2001:db8::]/32:*", "[2001:DB8:0::1]:1", "", true},
	{"[2001:db8::]/32:*", "[2001:db9::1]:1", "", false},
	{"[2001:db8::]/32:*", "[2001:db8::1%eth0]:1", "", false},
	{"[::]/0:*", "[::]:1", "", false},
	{"[::]/0:*", "[::1]:1", "", false},
	{"[::]/0:*", "[fe80::1%eth0]:1", "", false},
	{"[::]/0:*", "host.example.com:1", "fe80::1%eth0", false},
	{"[::]/0:*", "10.0.0.1:1", "", false},
	{"[::]/0:*", "[::ffff:10.0.0.1]:1", "", false},
	{"[::1]:80", "[::1]:80", "", true},
	{"[::1]:80", "127.0.0.1:80", "", false},
	{"db.example.com:5432", "db.example.com:5432", "10.0.0.1", true},
	{"db.example.com:5432", "DB.Example.COM.:5432", "10.0.0.1", true},
	{"DB.example.com.:5432", "db.example.com:5432", "10.0.0.1", true},
	{"db.example.com:5432", "db.example.com..:5432", "10.0.0.1", false},
	{"db.example.com:5432", "a.db.example.com:5432", "10.0.0.1", false},
	{"db.example.com:5432", "example.com:5432", "10.0.0.1", false},
	{"db.example.com:5432", "db.example.com:5433", "10.0.0.1", false},
	{"db.example.com:5432", "db.example.com:05432", "10.0.0.1", false},
	{"db.example.com:5432", "10.0.0.1:5432", "", false},
	{"db.example.com:5432", "db.example.com:5432", "0.0.0.0", false},
	{"localhost:5432", "localhost:5432", "127.0.0.1", true},
	{"*.internal:443", "a.internal:443", "10.0.0.1", true},
	{"*.internal:443", "a.b.Internal.:443", "10.0.0.1", true},
	{"*.internal:443", "internal:443", "10.0.0.1", false},
	{"*.internal:443", ".internal:443", "10.0.0.1", false},
	{"*.internal:443", "xinternal:443", "10.0.0.1", false},
	{"*.internal:443", "a.internal.example.com:443", "10.0.0.1", false},
	{"*.internal:443", "a.internal:443", "127.0.0.1", false},
	{"*.internal:443", "a.internal:443", "::1", false},
	{"*.internal:443", "a.internal:443", "::ffff:169.254.169.254", false},
	{"*.internal:443", "*.internal:443", "10.0.0.1", false},
	{"*:443", "192.0.2.1:443", "", true},
	{"*:443", "www.example.com:443", "192.0.2.1", true},
	{"*:443", "127.0.0.1:443", "", false},
	{"*:443", "localhost:443", "127.0.0.1", false},
	{"*:443", "[::]:443", "", false},
	{"*:443", "www.example.com:80", "192.0.2.1", false},
	{"*:8000-8100", "a.example:8000", "192.0.2.1", true},
	{"*:8000-8100", "a.example:8100", "192.0.2.1", true},
	{"*:8000-8100", "a.example:8101", "192.0.2.1", false},
	{"*:8000-8100", "a.example:7999", "192.0.2.1", false},
}

// lets tells whether rule lets clients have target, which is at an address.
func lets(rule TargetRule, target, at string) bool {
	c, ok := parseChosenTarget(target)
	if !ok {
		return false
	}
	ip := c.ip
	if !ip.IsValid() {
		ip = netip.MustParseAddr(at)
	}
	return rule.mayBe(c) && rule.allows(c, ip)
}

func TestTargetRules(t *testing.T) {
	for _, m := range matches {
		rule, err := ParseTargetRule(m.rule)
		if err != nil {
			t.Errorf("%s: %v", m.rule, err)
			continue
		}
		if got := lets(rule, m.target, m.at); got != m.want {
			t.Errorf("%s lets clients have %s (%s): %v, want %v", m.rule, m.target, m.at, got, m.want)
		}
	}
}

// Whatever rule and target are: what is dialed is what was looked at, nobody's own machine is had by accident, and a rule of addresses
// allows none but its own.
func FuzzTargetRules(f *testing.F) {
	for _, m := range matches {
		f.Add(m.rule, m.target, m.at)
	}
	f.Fuzz(func(t *testing.T, text, target, at string) {
		c, ok := parseChosenTarget(target)
		if ok {
			again, ok := parseChosenTarget(c.address())
			if !ok || again != c {
				t.Fatalf("%q is dialed as %q, which is %v, %v", target, c.address(), again, ok)
			}
			if network, _, err := tunnel.ParseAddress(c.address()); err != nil || network != "tcp" {
				t.Fatalf("%q is dialed as %q: %s, %v", target, c.address(), network, err)
			}
			if ip := net.ParseIP(c.name); ip != nil {
				t.Fatalf("%q passes for a name", target)
			}
		}
		rule, err := ParseTargetRule(text)
		if err != nil || !ok {
			return
		}
		ip, err := netip.ParseAddr(at)
		if c.ip.IsValid() {
			ip, err = c.ip, nil
		}
		if err != nil || !rule.allows(c, ip) {
			return
		}
		if !rule.mayBe(c) {
			t.Errorf("%q lets clients have %q at %s, and is not asked", text, target, ip)
		}
		plain := ip.Unmap()
		if plain.IsUnspecified() || plain.Zone() != "" {
			t.Errorf("%q lets clients have %q at %s", text, target, ip)
		}
		if byName := !rule.prefix.IsValid() && !rule.below; isNear(plain) && !byName && !isNear(rule.prefix.Addr()) {
			t.Errorf("%q lets clients have %q at %s, which is near", text, target, ip)
		}
		if rule.prefix.IsValid() && !rule.prefix.Contains(plain) || c.port < rule.first || c.port > rule.last {
			t.Errorf("%q lets clients have %q at %s", text, target, ip)
		}
	})
}

// chosen dials route path of a.test of s with a target, with or without a wait before that.
func (s *scene) chosen(path, token, target string, wait bool) (tunnel.Conn, error) {
	s.t.Helper()
	w := &tunnel.WebSocket{Host: "a.test", Path: path, Wait: wait, Target: target}
	if token != "" {
		w.Token = func(context.Context) (string, error) { return token, nil }
	}
	c, err := s.through(w)
	if err != nil {
		return nil, err
	}
	return c, errors.Join(tunnel.Take(c, ""), tunnel.AwaitOpen(c))
}

func rules(t testing.TB, texts ...string) (all []TargetRule) {
	t.Helper()
	for _, text := range texts {
		rule, err := ParseTargetRule(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rule)
	}
	return all
}

func TestClientsChooseTheirTarget(t *testing.T) {
	named := tunneltest.Serve(t, func(c *net.TCPConn) { io.WriteString(c, "the chosen one") })
	_, port, _ := net.SplitHostPort(named)
	s := newScene(t, func(s *scene) {
		s.server.Hint = func(err error) string {
			if hinted, ok := errors.AsType[*hintedError](err); ok {
				return hinted.Hint()
			}
			return ""
		}
		own := s.config.Sites[0].Routes[0].Target
		s.config.Sites[0].Routes = append(s.config.Sites[0].Routes,
			&Route{Path: "/both", Target: own, Targets: rules(t, "127.0.0.0/8:"+port, "db.example.com:*")},
			&Route{Path: "/alone", Targets: rules(t, "localhost:"+port, "10.0.0.0/8:*", "*:*")},
		)
	})
	for _, wait := range []bool{true, false} {
		for _, test := range []struct{ path, target, reason, log string }{
			{"/both", named, "", `"target":"` + named + `"`},
			{"/both", "LocalHost.:" + port, "", ""},
			{"/both", "127.0.0.1:1", tunnel.ReasonForbidden, `add \"127.0.0.1:1\" to its targets`},
			{"/both", "[::1]:" + port, tunnel.ReasonForbidden, `no rule of the route allows it`},
			{"/both", "0177.1:" + port, tunnel.ReasonForbidden, `neither a name nor an address`},
			{"/both", "0.0.0.0:" + port, tunnel.ReasonForbidden, `"target":"0.0.0.0:`},
			{"/alone", "localhost:" + port, "", ""},
			{"/alone", named, tunnel.ReasonForbidden, ""},
			{"/alone", "localhost:1", tunnel.ReasonForbidden, `localhost:1 is there, and no rule of the route allows that address`},
			{"/tunnel?key=hush-hush", named, tunnel.ReasonForbidden, ""},
		} {
			c, err := s.chosen(test.path, "", test.target, wait)
			if tunnel.Reason(err) != test.reason {
				t.Errorf("wait %v: %s on %s: got %v, want %q", wait, test.target, test.path, err, test.reason)
				continue
			}
			if test.reason == "" {
				if got, err := io.ReadAll(c); string(got) != "the chosen one" || err != nil {
					t.Errorf("%s on %s: got %q, %v", test.target, test.path, got, err)
				}
				c.Close()
			}
			if !s.eventually(func() bool { return strings.Contains(s.log.String(), test.log) }) {
				t.Errorf("%s on %s: %q is not in the log\n%s", test.target, test.path, test.log, s.log)
			}
		}
	}
	s.echo(s.open("a.test", "/both"), 1000)
	if c, err := s.chosen("/alone", "", "", true); tunnel.Reason(err) != tunnel.ReasonForbidden {
		t.Errorf("without a target of its own: %v, %v", c, err)
	}
	s.metric(`raimon_target_failures_total{reason="forbidden",route="/alone",site="a.test"}`, 5)
}

// A target that is told the client's address is told it when a client has chosen it, too.
func TestChosenTargetLearnsTheClientsAddress(t *testing.T) {
	heads := make(chan string, 2)
	target := tunneltest.Serve(t, func(c *net.TCPConn) {
		b, _ := io.ReadAll(c)
		heads <- string(b)
	})
	s := newScene(t, func(s *scene) {
		s.config.Sites[0].Routes = append(s.config.Sites[0].Routes, &Route{Path: "/told", Proxy: 1, Targets: rules(t, "127.0.0.1:*")})
	})
	for _, wait := range []bool{true, false} {
		c, err := s.chosen("/told", "", target, wait)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "hello")
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\nhello", c.LocalAddr().(*net.TCPAddr).Port, c.RemoteAddr().(*net.TCPAddr).Port)
		if got := <-heads; got != want {
			t.Errorf("wait %v: got %q, want %q", wait, got, want)
		}
		c.Close()
	}
}

// Who has no token gets the answer that everybody gets, whatever it asks for.
func TestNobodyChoosesWithoutAccess(t *testing.T) {
	const token = "let-me-in-let-me-in-let-me-in-12"
	tokens, _ := newTokens(t, "alice "+HashToken(token))
	if err := tokens.Load(); err != nil {
		t.Fatal(err)
	}
	s := newScene(t, func(s *scene) {
		s.config.Sites[0].Routes = append(s.config.Sites[0].Routes, &Route{Path: "/locked", Targets: rules(t, "*:*"), Access: Access{Tokens: tokens}})
	})
	for _, wait := range []bool{true, false} {
		for _, wrong := range []string{"", "let-me-in-let-me-in-let-me-in-13"} {
			for _, target := range []string{"", "127.0.0.1:1", "192.0.2.1:80"} {
				_, err := s.chosen("/locked", wrong, target, wait)
				var refused *tunnel.UpgradeError
				if !errors.As(err, &refused) || refused.Status != 404 {
					t.Errorf("wait %v, token %q, target %q: %v", wait, wrong, target, err)
				}
			}
		}
		if _, err := s.chosen("/locked", token, "127.0.0.1:1", wait); tunnel.Reason(err) != tunnel.ReasonForbidden {
			t.Errorf("with the token: %v", err)
		}
	}
	if log := s.log.String(); strings.Contains(log, "192.0.2.1") {
		t.Errorf("the log tells of targets of nobody:\n%s", log)
	}
}

// A connection that waits is no tunnel yet: it counts when it is taken.
func TestWaitingConnectionsAndLimits(t *testing.T) {
	s := newScene(t, nil)
	first, second := s.waits("/narrow"), s.waits("/narrow")
	if err := taken(first); err != nil {
		t.Fatal(err)
	}
	if err := taken(second); tunnel.Reason(err) != tunnel.ReasonBusy {
		t.Errorf("got %v, want busy", err)
	}
	s.metric(`raimon_refusals_total{limit="route"}`, 1)
	s.metric(`raimon_target_failures_total{reason="busy",route="/narrow",site="a.test"}`, 1)
	s.finish(first)
	if !s.eventually(func() bool { return taken(s.waits("/narrow")) == nil }) {
		t.Error("its place is not given back")
	}
}

// What waits was let in by the config of then.
func TestAnotherConfigEndsWaiting(t *testing.T) {
	s := newScene(t, nil)
	waiting, open := s.waits("/narrow"), s.waits("/narrow")
	if err := taken(open); err != nil {
		t.Fatal(err)
	}
	next := *s.config
	if err := s.server.Apply(t.Context(), &next); err != nil {
		t.Fatal(err)
	}
	err := tunnel.AwaitOpen(waiting)
	var closed *tunnel.CloseError
	if !errors.As(err, &closed) || closed.Code != 1001 {
		t.Errorf("got %v, want a close 1001", err)
	}
	s.echo(open, 1000)
	s.finish(open)
	if !s.eventually(func() bool { return taken(s.waits("/narrow")) == nil }) {
		t.Error("nothing can be taken afterwards")
	}
	s.metric(`raimon_target_failures_total{reason="shutdown",route="/narrow",site="a.test"}`, 0)
}

// through shakes hands with a.test in TLS and then with w.
func (s *scene) through(w *tunnel.WebSocket) (tunnel.Conn, error) {
	s.t.Helper()
	bare, err := net.Dial("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { bare.Close() })
	layers := tunnel.Transport{&tunnel.TLS{ClientConfig: &tls.Config{RootCAs: s.ca.Pool, ServerName: "a.test"}}, w}
	c, err := layers.Client(s.t.Context(), bare.(tunnel.Conn))
	if err == nil {
		c.SetDeadline(time.Now().Add(scenePatience))
	}
	return c, err
}

// waits is a connection of which the edge waits.
func (s *scene) waits(path string) tunnel.Conn {
	s.t.Helper()
	c, err := s.through(&tunnel.WebSocket{Host: "a.test", Path: path, Wait: true})
	if err != nil {
		s.t.Fatal(err)
	}
	if !tunnel.Waiting(c) {
		s.t.Fatal("the edge does not wait")
	}
	return c
}

// taken takes one that waits.
func taken(c tunnel.Conn) error { return errors.Join(tunnel.Take(c, ""), tunnel.AwaitOpen(c)) }
