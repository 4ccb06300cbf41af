package resolve

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"raimon/tunnel"
)

// nameServer is one, over UDP, TCP, TLS and HTTPS. What it does wrong is for a test to say.
type nameServer struct {
	tcp, tls atomic.Int32 // connections
	udp      atomic.Int32 // questions
	http     *httptest.Server
	udpAddr  string // of UDP and TCP
	tlsAddr  string
	roots    *x509.CertPool

	mu       sync.Mutex
	respond  func(kind kind, query []byte) (answer []byte) // nil: none
	page     http.HandlerFunc                              // nil: an answer
	versions map[string]bool                               // of HTTP, as seen
	open     []net.Conn
}

func startNameServer(t testing.TB) *nameServer {
	t.Helper()
	s := &nameServer{versions: make(map[string]bool), roots: x509.NewCertPool()}
	s.respond = func(_ kind, query []byte) []byte { return answerTo(t, query) }
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(s.serveHTTP))
	s.http.EnableHTTP2 = true
	s.http.StartTLS()
	t.Cleanup(s.http.Close)
	s.roots.AddCert(s.http.Certificate())

	plain, packets := listenBoth(t)
	s.udpAddr = plain.Addr().String()
	secure, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: s.http.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	s.tlsAddr = secure.Addr().String()
	var all sync.WaitGroup
	all.Go(func() { s.servePackets(packets) })
	all.Go(func() { s.serveStreams(&all, plain, overTCP, &s.tcp) })
	all.Go(func() { s.serveStreams(&all, secure, overTLS, &s.tls) })
	t.Cleanup(func() {
		packets.Close()
		plain.Close()
		secure.Close()
		s.hangUp()
		all.Wait()
	})
	return s
}

// listenBoth listens at one port over TCP and UDP.
func listenBoth(t testing.TB) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, c
		}
		l.Close()
	}
	t.Fatal("no port is free over both TCP and UDP")
	return nil, nil
}

// misbehave replaces what the server answers; page is for HTTPS alone.
func (s *nameServer) misbehave(respond func(kind, []byte) []byte, page http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if respond != nil {
		s.respond = respond
	}
	s.page = page
}

// hangUp closes the connections of TCP and TLS.
func (s *nameServer) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.open {
		c.Close()
	}
	s.open = nil
}

func (s *nameServer) answer(kind kind, query []byte) []byte {
	s.mu.Lock()
	respond := s.respond
	s.mu.Unlock()
	return respond(kind, query)
}

func (s *nameServer) servePackets(c net.PacketConn) {
	b := make([]byte, 4096)
	for {
		n, client, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		s.udp.Add(1)
		if answer := s.answer(overUDP, b[:n]); answer != nil {
			c.WriteTo(answer, client)
		}
	}
}

func (s *nameServer) serveStreams(all *sync.WaitGroup, l net.Listener, kind kind, count *atomic.Int32) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		count.Add(1)
		s.mu.Lock()
		s.open = append(s.open, c)
		s.mu.Unlock()
		all.Go(func() {
			defer c.Close()
			for {
				var length [2]byte
				if _, err := io.ReadFull(c, length[:]); err != nil {
					return
				}
				query := make([]byte, binary.BigEndian.Uint16(length[:]))
				if _, err := io.ReadFull(c, query); err != nil {
					return
				}
				if answer := s.answer(kind, query); answer != nil {
					c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
				}
			}
		})
	}
}

func (s *nameServer) serveHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.versions[r.Proto] = true
	page := s.page
	s.mu.Unlock()
	if page != nil {
		page(w, r)
		return
	}
	query, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/dns-query" ||
		r.Header.Get("Content-Type") != messageType || r.Header.Get("Accept") != messageType || r.UserAgent() != "" {
		http.Error(w, "what is that?", http.StatusBadRequest)
		return
	}
	answer := s.answer(overHTTPS, query)
	if answer == nil {
		<-r.Context().Done()
		return
	}
	w.Header().Set("Content-Type", messageType)
	w.Write(answer)
}

// over returns a resolver that asks s.
func (s *nameServer) over(t testing.TB, way kind, via *tunnel.Dialer) *Resolver {
	t.Helper()
	text := map[kind]string{
		overUDP: s.udpAddr, overTCP: "tcp://" + s.udpAddr, overTLS: "tls://" + s.tlsAddr,
		overHTTPS: "https://example.com@" + s.http.Listener.Addr().String(),
	}[way]
	server, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	r := server.resolver(via, s.roots)
	t.Cleanup(r.Forget)
	return r
}

var zone = map[string][]netip.Addr{
	"edge.test.": {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::1")},
	"here.test.": {netip.MustParseAddr("127.0.0.9"), netip.MustParseAddr("127.0.0.1")},
	"v4.test.":   {netip.MustParseAddr("192.0.2.4")},
}

// answerTo answers as a recursive server that knows zone, and "broken.test" as one that fails.
func answerTo(t testing.TB, query []byte) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		t.Errorf("the question is no DNS message: %v", err)
		return nil
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	q := m.Questions[0]
	addresses, known := zone[q.Name.String()]
	switch {
	case q.Name.String() == "broken.test.":
		m.RCode = dnsmessage.RCodeServerFailure
	case q.Name.String() == "refused.test.":
		m.RCode = dnsmessage.RCodeRefused
	case !known:
		m.RCode = dnsmessage.RCodeNameError
	}
	header := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}
	for _, a := range addresses {
		switch {
		case a.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	answer, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return answer
}

// truncated says that an answer did not fit.
func truncated(answer []byte) []byte {
	answer = bytes.Clone(answer)
	answer[2] |= 0x02
	return answer
}

// lookUp wants addresses for host, of both versions.
func lookUp(t testing.TB, r *Resolver, host string, want ...string) {
	t.Helper()
	for network, is4 := range map[string]bool{"ip4": true, "ip6": false} {
		got, err := r.LookupNetIP(context.Background(), network, host)
		var wanted []netip.Addr
		for _, a := range want {
			if a := netip.MustParseAddr(a); a.Is4() == is4 {
				wanted = append(wanted, a)
			}
		}
		if len(wanted) == 0 {
			if !notFound(err) {
				t.Errorf("%s %s: got %v, %v, want nothing", network, host, got, err)
			}
			continue
		}
		if err != nil || !same(got, wanted) {
			t.Errorf("%s %s: got %v, %v, want %v", network, host, got, err, wanted)
		}
	}
}
