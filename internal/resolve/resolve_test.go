package resolve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

var kinds = []kind{overUDP, overTCP, overTLS, overHTTPS}

func same(a, b []netip.Addr) bool {
	slices.SortFunc(a, netip.Addr.Compare)
	slices.SortFunc(b, netip.Addr.Compare)
	return slices.Equal(a, b)
}

func notFound(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound
}

func TestLookup(t *testing.T) {
	for _, way := range kinds {
		t.Run(string(way), func(t *testing.T) {
			tunneltest.NoLeaks(t)
			s := startNameServer(t)
			r := s.over(t, way, &tunnel.Dialer{})
			lookUp(t, r, "edge.test", "192.0.2.1", "192.0.2.2", "2001:db8::1")
			lookUp(t, r, "v4.test.", "192.0.2.4")
			lookUp(t, r, "none.test")
			for host, want := range map[string]string{
				"none.test":    "lookup none.test on " + r.server.text + ": no such host",
				"broken.test":  "lookup broken.test on " + r.server.text + ": server misbehaving",
				"refused.test": "lookup refused.test on " + r.server.text + ": server misbehaving",
			} {
				if _, err := r.LookupNetIP(t.Context(), "ip4", host); err == nil || err.Error() != want {
					t.Errorf("%s: got %v, want %s", host, err, want)
				}
			}
			if _, err := r.LookupNetIP(t.Context(), "ip4", "broken.test"); notFound(err) {
				t.Errorf("a server that fails: %v is no statement about the name", err)
			}
		})
	}
}

// Answers that do not fit in a datagram come over TCP (RFC 7766, section 5).
func TestTruncated(t *testing.T) {
	tunneltest.NoLeaks(t)
	s := startNameServer(t)
	s.misbehave(func(kind kind, query []byte) []byte {
		answer := answerTo(t, query)
		if kind == overUDP {
			return truncated(answer[:len(query)-11]) // without the EDNS record, whose length that is
		}
		return answer
	}, nil)
	r := s.over(t, overUDP, &tunnel.Dialer{})
	lookUp(t, r, "edge.test", "192.0.2.1", "192.0.2.2", "2001:db8::1")
	if s.tcp.Load() == 0 {
		t.Error("no connection over TCP")
	}
}

// One connection serves many questions, and one that the server has closed costs no answer.
func TestConnectionsAreKept(t *testing.T) {
	tunneltest.NoLeaks(t)
	s := startNameServer(t)
	tcp, tls := s.over(t, overTCP, &tunnel.Dialer{}), s.over(t, overTLS, &tunnel.Dialer{})
	for range 5 {
		lookUp(t, tcp, "v4.test", "192.0.2.4")
		lookUp(t, tls, "v4.test", "192.0.2.4")
	}
	if s.tcp.Load() != 1 || s.tls.Load() != 1 {
		t.Errorf("%d connections over TCP and %d over TLS, want one each", s.tcp.Load(), s.tls.Load())
	}
	s.hangUp()
	lookUp(t, tcp, "v4.test", "192.0.2.4")
	lookUp(t, tls, "v4.test", "192.0.2.4")

	tcp.Forget()
	if len(tcp.asker.(*stream).kept) != 0 {
		t.Error("connections are kept over Forget")
	}
	lookUp(t, tcp, "v4.test", "192.0.2.4")
}

func TestHTTPSIsReused(t *testing.T) {
	tunneltest.NoLeaks(t)
	s := startNameServer(t)
	dials := 0
	r := s.over(t, overHTTPS, &tunnel.Dialer{})
	web := r.asker.(*web)
	dial := web.current.DialContext
	web.current.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		dials++ // one question after another
		return dial(ctx, network, address)
	}
	for range 5 {
		lookUp(t, r, "edge.test", "192.0.2.1", "192.0.2.2", "2001:db8::1")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if dials != 1 || len(s.versions) != 1 || !s.versions["HTTP/2.0"] {
		t.Errorf("%d connections with %v, want one with HTTP/2", dials, s.versions)
	}
}

// A kept connection to a network that this machine has left stays silent: a new one takes its place.
func TestKeptConnectionIsSilent(t *testing.T) {
	for _, way := range []kind{overTCP, overTLS, overHTTPS} {
		t.Run(string(way), func(t *testing.T) {
			t.Parallel()
			s := startNameServer(t)
			r := s.over(t, way, &tunnel.Dialer{})
			lookUp(t, r, "v4.test", "192.0.2.4")
			var asked atomic.Int32
			s.misbehave(func(_ kind, query []byte) []byte {
				if asked.Add(1) == 1 {
					return nil
				}
				return answerTo(t, query)
			}, nil)
			before := transportOf(r)
			begin := time.Now()
			got, err := r.LookupNetIP(t.Context(), "ip4", "v4.test")
			if way == overHTTPS && transportOf(r) == before {
				t.Error("the connection that was silent is still in use")
			}
			if took := time.Since(begin); err != nil || len(got) != 1 || took < keptTime || took > 2*keptTime {
				t.Errorf("got %v, %v after %v, want an answer after %v", got, err, took, keptTime)
			}
		})
	}
}

func transportOf(r *Resolver) *http.Transport {
	w, ok := r.asker.(*web)
	if !ok {
		return nil
	}
	return w.transport()
}

// Whatever comes back, there is an error, or an answer to this question, in time.
func TestHostileAnswers(t *testing.T) {
	answers := map[string]func(query []byte) []byte{
		"empty":        func([]byte) []byte { return []byte{} },
		"short":        func(query []byte) []byte { return query[:5] },
		"header alone": func(query []byte) []byte { return query[:12] },
		"the question": bytes.Clone,
		"other id":     func(query []byte) []byte { a := answerTo(t, query); a[0] ^= 1; return a },
		"other name":   func(query []byte) []byte { a := answerTo(t, query); a[14] ^= 1; return a },
		"cut":          func(query []byte) []byte { a := answerTo(t, query); return a[:len(a)-3] },
		"loop": func(query []byte) []byte { // a name that points at itself (RFC 1035, section 4.1.4)
			a := append(bytes.Clone(query[:12]), 0xc0, 12, 0, 1, 0, 1)
			a[2] |= 0x80
			return a
		},
		"noise": func(query []byte) []byte { return append(bytes.Clone(query[:2]), bytes.Repeat([]byte{0xff}, 60000)...) },
	}
	for _, way := range []kind{overTCP, overTLS, overHTTPS} {
		s := startNameServer(t)
		r := s.over(t, way, &tunnel.Dialer{})
		for name, answer := range answers {
			s.misbehave(func(_ kind, query []byte) []byte { return answer(query) }, nil)
			begin := time.Now()
			got, err := r.LookupNetIP(t.Context(), "ip4", "v4.test")
			if err == nil || time.Since(begin) > time.Second {
				t.Errorf("%s, %s: got %v, %v after %v, want an error", way, name, got, err, time.Since(begin))
			}
			if err != nil && (len(err.Error()) > 200 || strings.Contains(err.Error(), "\n")) {
				t.Errorf("%s, %s: the error is %q", way, name, err)
			}
		}
		s.misbehave(func(_ kind, query []byte) []byte { return answerTo(t, query) }, nil)
		lookUp(t, r, "v4.test", "192.0.2.4")
	}
}

func TestHostilePages(t *testing.T) {
	s := startNameServer(t)
	r := s.over(t, overHTTPS, &tunnel.Dialer{})
	for want, page := range map[string]http.HandlerFunc{
		"answered 403 Forbidden": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "\x1b[2J", http.StatusForbidden) },
		"answered 302 Found": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://"+r.Host+"/dns-query", http.StatusFound)
		},
		"something else than application/dns-message": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"no answer to the question": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", messageType)
			for range 100 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
	} {
		s.misbehave(nil, page)
		begin := time.Now()
		_, err := r.LookupNetIP(t.Context(), "ip4", "v4.test")
		if err == nil || !strings.Contains(err.Error(), want) || time.Since(begin) > time.Second {
			t.Errorf("got %v after %v, want an error with %q", err, time.Since(begin), want)
		}
	}
}

// The name server has to show a certificate.
func TestForeignCertificate(t *testing.T) {
	s := startNameServer(t)
	for way, text := range map[kind]string{overTLS: "tls://" + s.tlsAddr, overHTTPS: s.http.URL} {
		server, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := server.Resolver(&tunnel.Dialer{}).LookupNetIP(t.Context(), "ip4", "v4.test"); err == nil || !strings.Contains(err.Error(), "unknown authority") {
			t.Errorf("%s, not trusted: got %v, %v", way, got, err)
		}
		server.name = "other.test"
		server.url = strings.Replace(server.url, "127.0.0.1", "other.test", 1)
		if got, err := server.resolver(&tunnel.Dialer{}, s.roots).LookupNetIP(t.Context(), "ip4", "v4.test"); err == nil || !strings.Contains(err.Error(), "not other.test") {
			t.Errorf("%s, another name: got %v, %v", way, got, err)
		}
	}
}

// A server that stays silent: the end of ctx ends the lookup with all that belongs to it.
func TestCancelled(t *testing.T) {
	for _, way := range kinds {
		t.Run(string(way), func(t *testing.T) {
			tunneltest.NoLeaks(t)
			s := startNameServer(t)
			asked := make(chan struct{}, 10)
			s.misbehave(func(kind, []byte) []byte { asked <- struct{}{}; return nil }, nil)
			r := s.over(t, way, &tunnel.Dialer{})
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() {
				_, err := r.LookupNetIP(ctx, "ip4", "v4.test")
				ended <- err
			}()
			<-asked
			begin := time.Now()
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) || time.Since(begin) > time.Second {
				t.Errorf("got %v after %v, want it cancelled at once", err, time.Since(begin))
			}
			if way == overUDP && !endsSoon("dnsPacketRoundTrip") {
				t.Error("package net still waits for the answer")
			}
		})
	}
}

// endsSoon waits for the end of each goroutine that has function in its stack.
func endsSoon(function string) bool {
	stacks := make([]byte, 1<<20)
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if !bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte(function)) {
			return true
		}
	}
	return false
}

func TestTimeout(t *testing.T) {
	for _, way := range kinds {
		s := startNameServer(t)
		s.misbehave(func(kind, []byte) []byte { return nil }, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		_, err := s.over(t, way, &tunnel.Dialer{}).LookupNetIP(ctx, "ip4", "v4.test")
		cancel()
		var dns *net.DNSError
		if !errors.As(err, &dns) || !dns.IsTimeout || dns.Server == "" && dns.Name != "v4.test" {
			t.Errorf("%s: got %v, want a timeout", way, err)
		}
	}
}

// The resolver and the race in one.
func TestDial(t *testing.T) {
	tunneltest.NoLeaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	s := startNameServer(t)
	for _, way := range kinds {
		d := &tunnel.Dialer{Resolver: s.over(t, way, &tunnel.Dialer{})}
		c, err := d.Dial(t.Context(), "here.test:"+port)
		if err != nil {
			t.Errorf("%s: %v", way, err)
			continue
		}
		c.Close()
		d.Forget()
	}
}
