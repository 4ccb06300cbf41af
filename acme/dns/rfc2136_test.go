package dns

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"github.com/miekg/dns"

	"raimon/internal/tunneltest"
)

// updater returns a Solver that updates the server, with the rest of its spec behind the address.
func updater(t testing.TB, at *nameServer, rest string) *Solver {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	write(t, path, keyFile("Raimon", secret), 0o600)
	return updaterWithKey(t, at.address+rest+"?key-file="+path)
}

func updaterWithKey(t testing.TB, rest string) *Solver {
	t.Helper()
	s := openSolver(t, "rfc2136://"+rest)
	p := s.provider.(*server)
	p.interval, p.resolvers = 5*time.Millisecond, nil
	_, p.port, _ = net.SplitHostPort(p.address)
	return s
}

const zoneName = "example.com."

func TestUpdate(t *testing.T) {
	tunneltest.NoLeaks(t)
	at := serveDNS(t, []string{"com.", zoneName}, "_acme-challenge.example.com. 60 IN TXT \"somebody else's\"")
	s := updater(t, at, "")
	domain, wildcard := challenge("example.com", "one"), challenge("example.com", "two")
	for _, c := range []acme.Challenge{domain, wildcard} {
		if err := errors.Join(s.Present(t.Context(), c), s.Wait(t.Context(), c)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CleanUp(t.Context(), domain); err != nil {
		t.Fatal(err)
	}
	got, want := at.texts("_acme-challenge.example.com."), []string{"somebody else's", wildcard.DNS01KeyAuthorization()}
	if !slices.Equal(got, want) {
		t.Errorf("up: %q, want %q", got, want)
	}
	if err := s.CleanUp(t.Context(), wildcard); err != nil {
		t.Fatal(err)
	}
	if got := at.texts("_acme-challenge.example.com."); !slices.Equal(got, want[:1]) {
		t.Errorf("left: %q, want %q", got, want[:1])
	}
	if at.signed < 5 {
		t.Errorf("%d messages were signed", at.signed)
	}
	if first := at.updates[0]; !strings.HasPrefix(first, "example.com.: _acme-challenge.example.com.\t60\tIN\tTXT") {
		t.Errorf("first update %q", first)
	}
}

// The record belongs where the CA finds it.
func TestUpdatePlace(t *testing.T) {
	const name = "_acme-challenge.www.example.com."
	far := serveDNS(t, []string{"example.org."}, name+" 60 IN CNAME www.acme.example.net.")
	far.set(func() { far.zones = append(far.zones, zoneName) }) // as a resolver would
	for _, test := range []struct {
		name    string
		zones   []string
		records []string
		zone    string // in the spec
		want    place
		problem string
	}{
		{name: "zone of the domain", zones: []string{zoneName}, want: place{zoneName, name}},
		{name: "longest zone", zones: []string{zoneName, "www.example.com."}, want: place{"www.example.com.", name}},
		{name: "name that is there", zones: []string{zoneName}, records: []string{name + " 60 IN TXT old"}, want: place{zoneName, name}},
		{name: "zone is the name itself", zones: []string{zoneName, name}, want: place{name, name}},
		{name: "zone in the spec", zones: []string{zoneName}, zone: "example.com", want: place{zoneName, name}},
		{name: "CNAME in the zone", zones: []string{zoneName}, records: []string{name + " 60 IN CNAME Challenge.example.com."}, want: place{zoneName, "challenge.example.com."}},
		{name: "CNAME into another zone", zones: []string{zoneName, "acme.example.net."},
			records: []string{name + " 60 IN CNAME a.example.com.", "a.example.com. 60 IN CNAME b.acme.example.net."}, want: place{"acme.example.net.", "b.acme.example.net."}},
		{name: "CNAME in a zone of others", zones: []string{"acme.example.net."}, want: place{"acme.example.net.", "www.acme.example.net."}},
		{name: "wildcard CNAME", zones: []string{zoneName}, records: []string{"*.example.com. 60 IN CNAME web.example.org."}, want: place{zoneName, name}},
		{name: "wildcard and own CNAME", zones: []string{zoneName},
			records: []string{"*.example.com. 60 IN CNAME web.example.org.", name + " 60 IN CNAME c.example.com."}, want: place{zoneName, "c.example.com."}},
		{name: "unknown zone", zones: []string{"example.edu."}, problem: "no zone for www.acme.example.net."},
		{name: "other zone in the spec", zones: []string{zoneName}, zone: "example.net.", problem: "not in the zone example.net."},
		{name: "CNAMEs in a circle", zones: []string{zoneName}, problem: "CNAMEs in a row",
			records: []string{name + " 60 IN CNAME a.example.com.", "a.example.com. 60 IN CNAME " + name}},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := serveDNS(t, test.zones, test.records...)
			s := updater(t, at, "/"+test.zone)
			s.provider.(*server).resolvers = []string{"127.0.0.1:1", far.address}
			got, err := s.provider.place(t.Context(), name)
			if test.problem != "" {
				if err == nil || !strings.Contains(err.Error(), test.problem) || hintOf(err) == "" {
					t.Errorf("%v, hint %q; want %q", err, hintOf(err), test.problem)
				}
				return
			}
			if err != nil || got != test.want {
				t.Errorf("%v, %v; want %v", got, err, test.want)
			}
		})
	}
}

// A server may take updates and answer no questions; then the zone has to be given and nothing is checked.
func TestUpdateWithoutQuestions(t *testing.T) {
	at := serveDNS(t, []string{zoneName})
	at.set(func() {
		at.deny = func(m *dns.Msg) int {
			if m.Opcode == dns.OpcodeQuery {
				return dns.RcodeRefused
			}
			return 0
		}
	})
	s, c := updater(t, at, "/example.com"), challenge("example.com", "one")
	if err := errors.Join(s.Present(t.Context(), c), s.Wait(t.Context(), c)); err != nil {
		t.Error(err)
	}
	if got := at.texts("_acme-challenge.example.com."); len(got) != 1 {
		t.Errorf("up: %q", got)
	}
}

func TestUpdateRefused(t *testing.T) {
	deny := func(rcode int) func(*nameServer) {
		return func(s *nameServer) {
			s.deny = func(m *dns.Msg) int {
				if m.Opcode == dns.OpcodeUpdate {
					return rcode
				}
				return 0
			}
		}
	}
	for _, test := range []struct {
		name, key     string // key empty: the right one
		set           func(*nameServer)
		problem, hint string
	}{
		{"policy", "", deny(dns.RcodeRefused), "REFUSED", "update-policy"},
		{"not primary", "", deny(dns.RcodeNotAuth), "NOTAUTH", "primary"},
		{"other zone", "", deny(dns.RcodeNotZone), "NOTZONE", "primary"},
		{"no updates", "", deny(dns.RcodeNotImplemented), "NOTIMP", "exec:"},
		{"folder", "", deny(dns.RcodeServerFailure), "SERVFAIL", "folder"},
		{"odd", "", deny(13), "RCODE 13", "log"},
		{"unknown key", "nobody:" + secret, nil, "NOTAUTH (BADKEY)", "name and algorithm"},
		{"wrong secret", "raimon:AAAA", nil, "NOTAUTH (BADSIG)", "another secret"},
		{"clocks", "", func(s *nameServer) {
			s.forge = func(m *dns.Msg) { m.Rcode, m.IsTsig().Error = dns.RcodeNotAuth, dns.RcodeBadTime }
		}, "NOTAUTH (BADTIME)", "clocks"},
		{"unsigned answer", "", func(s *nameServer) { s.unsigned = true }, "not signed", "TSIG"},
		{"forged answer", "", func(s *nameServer) { s.tampered = true }, "bad signature", ""},
		{"other question", "", func(s *nameServer) { s.forge = func(m *dns.Msg) { m.IsTsig().OrigId++ } }, "another question", ""},
		{"no answer flag", "", func(s *nameServer) { s.forge = func(m *dns.Msg) { m.Response = false } }, "another question", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			at := serveDNS(t, []string{zoneName})
			if test.set != nil {
				at.set(func() { test.set(at) })
			}
			s := updater(t, at, "")
			if test.key != "" {
				s = updaterWithKey(t, test.key+"@"+at.address)
			}
			err := s.Present(t.Context(), challenge("example.com", "one"))
			if err == nil || !strings.Contains(err.Error(), test.problem) || !strings.Contains(hintOf(err), test.hint) {
				t.Errorf("%v, hint %q\nwant %q, %q", err, hintOf(err), test.problem, test.hint)
			}
			if err != nil && (strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), at.address)) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestUpdateEndsWithContext(t *testing.T) {
	tunneltest.NoLeaks(t)
	at := serveDNS(t, []string{zoneName})
	at.set(func() { at.hang = true })
	s := updater(t, at, "")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Present(ctx, challenge("example.com", "one")) }()
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("present outlives its context")
	}
}

func TestUpdateServerIsAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	err = updaterWithKey(t, l.Addr().String()).Present(t.Context(), challenge("example.com", "one"))
	if err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Error(err)
	}
}

// A server that takes an update may still ignore it, silently where a CNAME is in the way (RFC 2136, section 3.4.2.2).
func TestWaitForServer(t *testing.T) {
	tunneltest.NoLeaks(t)
	at := serveDNS(t, []string{zoneName})
	s, c := updater(t, at, ""), challenge("example.com", "one")
	if err := s.Present(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	questions := 0
	at.set(func() {
		at.slowly = func(n int) int {
			if questions++; questions < 4 {
				return 0
			}
			return n
		}
	})
	if err := s.Wait(t.Context(), c); err != nil || questions != 4 {
		t.Errorf("after %d questions: %v", questions, err)
	}
	at.set(func() { at.slowly = func(int) int { return 0 } })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Wait(ctx, c); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(hintOf(err), "CNAME") {
		t.Errorf("%v, hint %q", err, hintOf(err))
	}
}

// The CA asks any of the name servers, so all that can be reached have to know.
func TestWaitForOthers(t *testing.T) {
	tunneltest.NoLeaks(t)
	const name = "_acme-challenge.example.com."
	probe, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skip("several name servers need several loopback addresses:", err)
	}
	probe.Close()
	at := serveDNS(t, []string{zoneName},
		"example.com. 60 IN NS ns.example.com.", "ns.example.com. 60 IN A 127.0.0.1",
		"example.com. 60 IN NS ns2.example.com.", "ns2.example.com. 60 IN A 127.0.0.2",
		"example.com. 60 IN NS ns3.example.com.", "ns3.example.com. 60 IN A 127.0.0.3", // refuses
		"example.com. 60 IN NS ns4.example.com.", "ns4.example.com. 60 IN A 127.0.0.4", // nobody
	)
	_, port, _ := net.SplitHostPort(at.address)
	second := serveDNSAt(t, "127.0.0.2:"+port, []string{zoneName})
	second.set(func() { second.truncates = true })
	serveDNSAt(t, "127.0.0.3:"+port, []string{"example.net."})
	s, c := updater(t, at, ""), challenge("example.com", "one")
	if err := s.Present(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	p := s.provider.(*server)
	if got, want := p.others(t.Context(), zoneName), []string{"127.0.0.2:" + port, "127.0.0.3:" + port, "127.0.0.4:" + port}; !slices.Equal(got, want) {
		t.Errorf("others: %v, want %v", got, want)
	}
	p.spread = 500 * time.Millisecond
	err = s.Wait(t.Context(), c)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "name servers 127.0.0.2:"+port+" of") || !strings.Contains(hintOf(err), "wait=") {
		t.Errorf("%v, hint %q", err, hintOf(err))
	}
	p.spread = 0
	if err := s.Wait(t.Context(), c); err != nil {
		t.Errorf("without looking at others: %v", err)
	}
	p.spread = time.Minute
	done := make(chan error, 1)
	asked := func() (n int) {
		second.set(func() { n = second.overUDP })
		return n
	}
	before := asked()
	go func() { done <- s.Wait(t.Context(), c) }()
	eventually(t, "the question", func() bool { return asked() > before+1 })
	second.add(t, name+" 60 IN TXT "+c.DNS01KeyAuthorization())
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestParseKeyFile(t *testing.T) {
	for _, test := range []struct {
		text string
		want *key
	}{
		{keyFile("Raimon.", secret), &key{"raimon.", dns.HmacSHA256, secret}},
		{"/* a */key raimon{secret " + secret + ";algorithm\nHMAC-SHA512;}", &key{"raimon.", dns.HmacSHA512, secret}},
		{"", nil},
		{"key", nil},
		{"key raimon {", nil},
		{"key raimon { algorithm hmac-sha256; };", nil},
		{"key raimon { secret " + secret + "; };", nil},
		{"key raimon { algorithm hmac-md5; secret " + secret + "; };", nil},
		{"key raimon { algorithm hmac-sha256; secret \"" + secret, nil},
		{"key raimon { algorithm hmac-sha256; secret; };", nil},
		{"key raimon { secret " + secret + "; secret " + secret + "; algorithm hmac-sha256; };", nil},
		{"/* key", nil},
		{keyFile("one", secret) + keyFile("two", secret), nil},
	} {
		got, err := parseKeyFile(test.text)
		switch {
		case test.want == nil:
			if err == nil || hintOf(err) == "" || strings.Contains(err.Error()+hintOf(err), secret) {
				t.Errorf("%q: %v, %v", test.text, got, err)
			}
		case err != nil || *got != *test.want:
			t.Errorf("%q: %v, %v; want %v", test.text, got, err, test.want)
		}
	}
}

func FuzzKeyFile(f *testing.F) {
	f.Add(keyFile("raimon", secret))
	f.Add("/* a */key raimon{secret AAAA;algorithm\nHMAC-SHA512;}")
	f.Fuzz(func(t *testing.T, text string) {
		if k, err := parseKeyFile(text); (k == nil) == (err == nil) {
			t.Fatalf("%v, %v", k, err)
		}
	})
}
