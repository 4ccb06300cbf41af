package doctor_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"raimon/internal/client"
	"raimon/internal/command"
	"raimon/internal/doctor"
	"raimon/internal/options"
	"raimon/internal/resolve"
	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// patient is a tunnel to remote, in tcp.
func patient(t *testing.T, remote string) *doctor.Doctor {
	t.Helper()
	o, err := options.Parse(options.Client, "")
	if err != nil {
		t.Fatal(err)
	}
	none := func(string) string { return "" }
	proxy, err := tunnel.ProxyFromOption("off", none)
	if err != nil {
		t.Fatal(err)
	}
	return &doctor.Doctor{
		Tunnel:  &client.Tunnel{Remote: remote, Timeout: 20 * time.Second, Dialer: &tunnel.Dialer{Proxy: proxy}},
		Direct:  new(tunnel.Dialer),
		Options: o, Getenv: none, Hint: command.Hint,
	}
}

// encrypted adds TLS to d, towards localhost.
func encrypted(d *doctor.Doctor, ca *tunneltest.CA) *tls.Config {
	config := &tls.Config{RootCAs: ca.Pool, ServerName: "localhost", ClientSessionCache: new(tunnel.Tickets)}
	d.Tunnel.Transport = append(d.Tunnel.Transport, &tunnel.TLS{ClientConfig: config})
	return config
}

// examine is what d prints, and whether nothing has failed.
func examine(t *testing.T, ctx context.Context, d *doctor.Doctor) (text string, healthy bool) {
	t.Helper()
	var b bytes.Buffer
	d.Report = func(s doctor.Step) {
		if (s.Advice == "") != (s.Verdict == doctor.OK) {
			t.Errorf("%s: %s, to do: %q", s.Name, s.Verdict, s.Advice)
		}
		if err := s.Print(&b); err != nil {
			t.Error(err)
		}
	}
	healthy = d.Run(ctx)
	if healthy == strings.Contains(b.String(), "failed ") {
		t.Errorf("healthy: %v, with\n%s", healthy, &b)
	}
	return b.String(), healthy
}

func wants(t *testing.T, text string, patterns ...string) {
	t.Helper()
	for _, pattern := range patterns {
		if !regexp.MustCompile(`(?m)` + pattern).MatchString(text) {
			t.Errorf("no %q in\n%s", pattern, text)
		}
	}
}

// encryptedEdge is the address of an edge in TLS whose target is handle.
func encryptedEdge(t *testing.T, cert tls.Certificate, handle func(net.Conn)) string {
	config := &tls.Config{Certificates: []tls.Certificate{cert}}
	return tunneltest.Serve(t, func(bare *net.TCPConn) {
		c := tls.Server(bare, config)
		defer c.Close()
		if c.Handshake() == nil {
			handle(c)
		}
	})
}

func untilEnd(c net.Conn) { io.Copy(io.Discard, c) }

// certificate is one of ca for localhost, from and until then, with a staple of a status and an age.
func certificate(t *testing.T, ca *tunneltest.CA, from, until time.Duration, status int, age, next time.Duration) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "localhost"},
		DNSNames:  []string{"localhost", "a.test", "b\x1b[31m.test", "c.test"},
		NotBefore: now.Add(from), NotAfter: now.Add(until),
	}, ca.Cert, key.Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der, ca.Cert.Raw}, PrivateKey: key}
	if age != 0 {
		if cert.OCSPStaple, err = ocsp.CreateResponse(ca.Cert, ca.Cert, ocsp.Response{
			Status: status, SerialNumber: big.NewInt(7), ThisUpdate: now.Add(-age), NextUpdate: now.Add(next), RevokedAt: now.Add(-age),
		}, ca.Key); err != nil {
			t.Fatal(err)
		}
	}
	return cert
}

func TestCertificates(t *testing.T) {
	const day = 24 * time.Hour
	ca := tunneltest.NewCA(t)
	broken := certificate(t, ca, -day, day, 0, 0, 0)
	broken.OCSPStaple = []byte("no staple")
	for name, test := range map[string]struct {
		cert    tls.Certificate
		want    []string
		healthy bool
	}{
		"good": {certificate(t, ca, -day, 60*day+time.Hour, ocsp.Good, 2*time.Hour, day), []string{
			`^ok       certificate localhost, a.test, b.\[31m.test and 1 more names, issued by "raimon test CA", 60 days left, trusted by the system's CAs$`,
			`^ok       staple      good, from 2h0m0s ago$`}, true},
		"not renewed": {certificate(t, ca, -9*day, day+time.Hour, 0, 0, 0), []string{
			`^warning  certificate .*, 1 day left, .*\n +-> it should have been renewed`, `^ok       staple      none$`}, true},
		"expired": {certificate(t, ca, -2*day, -day, 0, 0, 0), []string{
			`^failed   tls         .*certificate has expired or is not yet valid.*\n +-> the edge's certificate has expired, or this machine's clock is wrong`}, false},
		"revoked": {certificate(t, ca, -day, day, ocsp.Revoked, time.Hour, day), []string{
			`^failed   staple      since \S+Z the certificate is revoked: get a new one\n +-> the edge needs another`}, false},
		"unknown": {certificate(t, ca, -day, day, ocsp.Unknown, time.Hour, day), []string{
			`^warning  staple      of no use: the responder does not know the certificate\n +-> `}, true},
		"staple out of date": {certificate(t, ca, -day, day, ocsp.Good, 3*time.Hour, -time.Hour), []string{
			`^warning  staple      good, from 3h0m0s ago, but the OCSP response is not valid after \S+\n +-> the edge has not got another`}, true},
		"no staple": {broken, []string{`^warning  staple      of no use: asn1: `}, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := patient(t, encryptedEdge(t, test.cert, untilEnd))
			encrypted(d, ca)
			text, healthy := examine(t, t.Context(), d)
			wants(t, text, test.want...)
			if healthy != test.healthy {
				t.Errorf("healthy: %v", healthy)
			}
		})
	}
}

// A pin says nothing about dates.
func TestPinnedAndExpired(t *testing.T) {
	ca := tunneltest.NewCA(t)
	d := patient(t, encryptedEdge(t, certificate(t, ca, -2*time.Hour, -time.Hour, 0, 0, 0), untilEnd))
	encrypted(d, ca).InsecureSkipVerify = true
	d.Options.Pins = [][]byte{{}}
	text, _ := examine(t, t.Context(), d)
	wants(t, text, `^ok       certificate .*, expired, trusted by its pin$`, `^ok       target `)
}

// What a target says first is shown, but the terminal does not obey it.
func TestGreeting(t *testing.T) {
	for said, want := range map[string]string{
		"SSH-2.0-x\r\n":                  `^ok       target      it says: SSH-2.0-x$`,
		"220 \x1b]0;owned\x07\u202email": `^ok       target      it says: 220 .\]0;owned..mail$`,
		strings.Repeat("a", 5000):        `^ok       target      it says: a{79,80}…$`,
		"\x00\x00\r\n":                   `^ok       target      it says nothing by itself`,
		"":                               `^ok       target      it says nothing by itself`,
		"end":                            `^warning  target      it hangs up at once, without a word$`,
	} {
		text, _ := examine(t, t.Context(), patient(t, tunneltest.Serve(t, func(c *net.TCPConn) {
			switch said {
			case "end":
				c.CloseWrite()
			default:
				io.WriteString(c, said)
			}
			untilEnd(c)
		})))
		wants(t, text, want)
	}
}

// silent takes connections and says nothing.
func silent(t *testing.T) string { return tunneltest.Serve(t, func(c *net.TCPConn) { untilEnd(c) }) }

func TestNoAnswer(t *testing.T) {
	ca := tunneltest.NewCA(t)
	d := patient(t, silent(t))
	d.Tunnel.Timeout = 50 * time.Millisecond
	encrypted(d, ca)
	text, _ := examine(t, t.Context(), d)
	wants(t, text, `^failed   tls         .*took too long.*\n +-> no answer in time`)
	if strings.Contains(text, "certificate") || strings.Contains(text, "target") {
		t.Errorf("it goes on:\n%s", text)
	}

	d = patient(t, silent(t))
	d.Tunnel.Timeout = 50 * time.Millisecond
	d.Tunnel.Transport = tunnel.Transport{&tunnel.WebSocket{Host: "localhost", Path: "/"}}
	text, _ = examine(t, t.Context(), d)
	wants(t, text, `^failed   upgrade     .*took too long.*\n +-> no answer in time`)
}

func TestInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	d := patient(t, tunneltest.Serve(t, func(c *net.TCPConn) {
		if n, _ := c.Read(make([]byte, 1)); n > 0 {
			interrupt()
		}
		untilEnd(c)
	}))
	encrypted(d, tunneltest.NewCA(t))
	begin := time.Now()
	examine(t, ctx, d)
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it goes on for %v", took)
	}
}

// addresses is a resolver that knows one name.
type addresses []netip.Addr

func (a addresses) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	if len(a) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: "edge.test", IsNotFound: true}
	}
	return a, nil
}

func TestAddresses(t *testing.T) {
	address := silent(t)
	_, port, _ := net.SplitHostPort(address)
	here, other := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")
	for name, test := range map[string]struct {
		resolver addresses
		want     []string
	}{
		"one":       {addresses{here}, []string{`^ok       dns         edge.test is 127.0.0.1, says the system's resolver \(`, `^ok       tcp         127.0.0.1:\d+ \(`}},
		"one twice": {addresses{here, netip.MustParseAddr("::ffff:127.0.0.1")}, []string{`^ok       dns         edge.test is 127.0.0.1, `}},
		"one is dead": {addresses{other, here}, []string{`^ok       dns         edge.test is 127.0.0.1, 127.0.0.2, `,
			`^warning  tcp         127.0.0.1:\d+ in \S+, the fastest; 127.0.0.2:\d+: connection refused .*\n +-> programs lose time with 127.0.0.2: `, `^ok       target `}},
		"all are":   {addresses{other}, []string{`^failed   tcp         127.0.0.2:\d+: connection refused .*\n +-> nothing listens there`}},
		"none":      {nil, []string{`^failed   dns         .*no such host.*\n +-> the name does not resolve here`}},
		"very many": {many(40), []string{`^ok       dns         .*, 127.0.1.15, and 24 more, says`, `^failed   tcp `}},
	} {
		t.Run(name, func(t *testing.T) {
			d := patient(t, "edge.test:"+port)
			d.Tunnel.Dialer.Resolver = test.resolver
			text, _ := examine(t, t.Context(), d)
			wants(t, text, test.want...)
		})
	}
}

// half is a resolver whose server answers the question for one kind of addresses only.
type half string

func (h half) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	switch {
	case h == "hosts" && network == "ip6": // as package net has it from a file
		return nil, &net.AddrError{Err: "no suitable address found", Addr: host}
	case h == "hosts":
	case h == "nothing":
		return nil, nil
	case network != string(h):
		<-ctx.Done()
		return nil, &net.DNSError{Err: "i/o timeout", Name: host, IsTimeout: true}
	case network == "ip6":
		return []netip.Addr{netip.IPv6Loopback()}, nil
	}
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

func TestHalfResolver(t *testing.T) {
	address := silent(t)
	_, port, _ := net.SplitHostPort(address)
	for resolver, want := range map[half][]string{
		"ip4":     {`^warning  dns         edge.test is 127.0.0.1, says .*; but lookup edge.test: i/o timeout \(.*\n +-> programs get through with these`, `^ok       target `},
		"ip6":     {`^warning  dns         edge.test is ::1, says `},
		"hosts":   {`^ok       dns         edge.test is 127.0.0.1, says `},
		"nothing": {`^failed   dns         lookup edge.test: it has no address.*\n +-> the name does not resolve here`},
		"":        {`^failed   dns         lookup edge.test: i/o timeout .*\n +-> the name server does not answer`},
	} {
		d := patient(t, "edge.test:"+port)
		d.Tunnel.Dialer.Resolver, d.Tunnel.Timeout = resolver, 100*time.Millisecond
		text, _ := examine(t, t.Context(), d)
		wants(t, text, want...)
	}
	d := patient(t, "edge.test:"+port)
	d.Tunnel.Dialer.Resolver, d.Tunnel.Timeout = half(""), 100*time.Millisecond
	d.Options.Resolver = new(resolve.Server)
	text, _ := examine(t, t.Context(), d)
	wants(t, text, `^failed   dns .*\n +-> the name server is that of option dns: is it right`)
}

func many(n int) (all addresses) {
	for i := range n {
		all = append(all, netip.AddrFrom4([4]byte{127, 0, 1, byte(i)}))
	}
	return all
}

// The clock is that of the edge's web server, whatever its answer.
func TestClock(t *testing.T) {
	for name, test := range map[string]struct {
		skew time.Duration
		want string
	}{
		"right":  {0, `^ok       clock       agrees`},
		"behind": {10 * time.Minute, `^warning  clock       this machine's is (10m0s|9m59s) behind that of the edge\n +-> set it by`},
		"ahead":  {-26 * time.Hour, `^warning  clock       this machine's is 26h0m\ds ahead of that of the edge\n`},
	} {
		t.Run(name, func(t *testing.T) {
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Date", time.Now().Add(test.skew).UTC().Format(http.TimeFormat))
				w.Header().Set("Server", "web/1.0")
				http.NotFound(w, r)
			}))
			defer web.Close()
			d := patient(t, web.Listener.Addr().String())
			d.Tunnel.Transport = tunnel.Transport{&tunnel.WebSocket{Host: "localhost", Path: "/ws"}}
			text, _ := examine(t, t.Context(), d)
			wants(t, text, test.want, `^failed   upgrade     .*404 Not Found instead of an upgrade \(a web server that calls itself web/1.0\) .*\n +-> host= and path=`)
		})
	}
}

// acceptKey answers a Sec-WebSocket-Key (RFC 6455, section 4.2.2).
func acceptKey(key []byte) string {
	sum := sha1.Sum(append(bytes.Clone(key), "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// An edge of another kind is taken as it is: it has dialed its target already.
func TestEdgeThatDoesNotWait(t *testing.T) {
	accept := regexp.MustCompile(`Sec-WebSocket-Key: (\S+)`)
	for name, test := range map[string]struct {
		format string
		want   string
	}{
		"kaminari": {"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: %s\r\n\r\n", `the edge is kaminari, which does not wait`},
		"another":  {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", `the edge is another program`},
		"older":    {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\nRaimon: end\r\n\r\n", `the edge is an older raimon`},
	} {
		t.Run(name, func(t *testing.T) {
			d := patient(t, tunneltest.Serve(t, func(c *net.TCPConn) {
				head := make([]byte, 4096)
				n, _ := c.Read(head)
				key := accept.FindSubmatch(head[:n])
				if key == nil {
					return // asked for the time
				}
				fmt.Fprintf(c, test.format, acceptKey(key[1]))
				c.Write([]byte("\x82\x09SSH-2.0-x"))
				untilEnd(c)
			}))
			d.Tunnel.Transport = tunnel.Transport{&tunnel.WebSocket{Host: "localhost", Path: "/ws"}}
			text, healthy := examine(t, t.Context(), d)
			wants(t, text, test.want, `^ok       echo        left out: `, `^ok       target      it says: SSH-2.0-x$`, `^ok       programs    .*, and not at all for one from the pool \(`)
			if !healthy {
				t.Error("something has failed")
			}
			d.Options.Socks = true
			text, _ = examine(t, t.Context(), d)
			wants(t, text, `^failed   target      the edge does not know of chosen targets.*\n +-> socks needs a raimons that is no older`)
		})
	}
}

// What a network swallows in the middle costs no more time than it says.
func TestStalledEcho(t *testing.T) {
	edge := raimonsLike(t)
	d := patient(t, tunneltest.Serve(t, func(c *net.TCPConn) {
		to, err := net.Dial("tcp", edge)
		if err != nil {
			t.Error(err)
			return
		}
		defer to.Close()
		go func() {
			io.CopyN(to, c, 1<<20) // and nothing more
		}()
		io.Copy(c, to)
	}))
	d.Tunnel.Transport = tunnel.Transport{&tunnel.WebSocket{Host: "localhost", Path: "/ws"}}
	begin := time.Now()
	text, _ := examine(t, t.Context(), d)
	wants(t, text, `^ok       echo        64 bytes there and back: `, `^ok       throughput  \S+ .B/s both ways`, `^ok       target      the edge has reached it`)
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
}

// raimonsLike is the address of an edge that lets its clients wait; its target is an echo, too.
func raimonsLike(t *testing.T) string {
	target := tunneltest.Echo(t)
	edge := &tunnel.Forwarder{
		Accept: tunnel.Transport{&tunnel.WebSocket{Host: "localhost", Path: "/ws", Targets: true}},
		Dial: func(ctx context.Context, info *tunnel.Info) (tunnel.Conn, error) {
			if info.Target == tunnel.TargetEcho {
				return tunnel.NewEcho(), nil
			}
			return new(tunnel.Dialer).Dial(ctx, target)
		},
		Drain: -1,
	}
	l := tunneltest.Listen(t)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		edge.Serve(ctx, l)
	}()
	t.Cleanup(func() { stop(); <-ended })
	return l.Addr().String()
}

// Through a proxy all is as without, but that it is the proxy that is looked for. Its password is nobody's business.
func TestThroughProxy(t *testing.T) {
	tunneltest.NoLeaks(t)
	edge := raimonsLike(t)
	proxy := tunneltest.Serve(t, func(c *net.TCPConn) {
		r := bufio.NewReader(c)
		asked, err := http.ReadRequest(r)
		if err != nil {
			return // looked whether somebody is here
		}
		to, err := net.Dial("tcp", asked.Host)
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		tunnel.Relay(t.Context(), c, to.(*net.TCPConn), time.Minute)
		to.Close()
	})
	d := patient(t, edge)
	d.Tunnel.Transport = tunnel.Transport{&tunnel.WebSocket{Host: "localhost", Path: "/ws"}}
	d.Options.Proxy = "http://jo:s3cr3t@" + proxy
	var err error
	if d.Tunnel.Dialer.Proxy, err = tunnel.ProxyFromOption(d.Options.Proxy, d.Getenv); err != nil {
		t.Fatal(err)
	}
	text, healthy := examine(t, t.Context(), d)
	wants(t, text, `^ok       proxy       http://`+proxy+`, from option proxy$`, `^ok       tcp         `+proxy+` `,
		`^ok       connect     a connection to `+edge+` \(`, `^ok       clock `, `^ok       echo        64 bytes`, `^ok       target      the edge has reached it`)
	if !healthy || strings.Contains(text, "s3cr3t") {
		t.Errorf("healthy: %v\n%s", healthy, text)
	}

	// The way through it is told although what comes next fails.
	encrypted(d, tunneltest.NewCA(t))
	text, _ = examine(t, t.Context(), d)
	wants(t, text, `^ok       connect     a connection to `+edge+`$`, `^failed   tls `)
}
