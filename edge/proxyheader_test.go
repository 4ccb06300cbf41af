package edge

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

const v2 = "\r\n\r\n\x00\r\nQUIT\n"

// proxyHeaders are what may come in place of a header. Local keeps the address that the connection has.
var proxyHeaders = []struct {
	name, header string
	client       string // "local", or the address that it tells; empty: an error
}{
	{"v1 TCP4", "PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\r\n", "192.0.2.1:1234"},
	{"v1 TCP6", "PROXY TCP6 2001:db8::1 2001:db8::2 1234 443\r\n", "[2001:db8::1]:1234"},
	{"v1 mapped", "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1234 443\r\n", "192.0.2.1:1234"},
	{"v1 UNKNOWN", "PROXY UNKNOWN\r\n", "local"},
	{"v1 UNKNOWN and more", "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", "local"},
	{"v1 too long", "PROXY UNKNOWN " + strings.Repeat("x", 100) + "\r\n", ""},
	{"v1 without CR", "PROXY TCP4 192.0.2.1 192.0.2.2 1234 443\n", ""},
	{"v1 family and address differ", "PROXY TCP4 2001:db8::1 2001:db8::2 1234 443\r\n", ""},
	{"v1 port", "PROXY TCP4 192.0.2.1 192.0.2.2 65536 443\r\n", ""},
	{"v1 zone", "PROXY TCP6 fe80::1%lo fe80::2 1234 443\r\n", ""},
	{"v1 empty", "PROXY\r\n", ""},
	{"v2 TCP4", v2 + "\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x01\xbb", "192.0.2.1:1234"},
	{"v2 TCP4 with TLV", v2 + "\x21\x11\x00\x13\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x01\xbb\x02\x00\x04host", "192.0.2.1:1234"},
	{"v2 TCP6", v2 + "\x21\x21\x00\x24\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x02\x04\xd2\x01\xbb", "[2001:db8::1]:1234"},
	{"v2 mapped", v2 + "\x21\x21\x00\x24" + strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x01" + strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x02\x04\xd2\x01\xbb", "192.0.2.1:1234"},
	{"v2 unix", v2 + "\x21\x31\x00\xd8" + "/run/app" + strings.Repeat("\x00", 100) + "/run/edge" + strings.Repeat("\x00", 99), "/run/app"},
	{"v2 LOCAL", v2 + "\x20\x00\x00\x00", "local"},
	{"v2 LOCAL with addresses", v2 + "\x20\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x01\xbb", "local"},
	{"v2 LOCAL with something", v2 + "\x20\x11\x00\x03abc", "local"},
	{"v2 for somebody", v2 + "\x21\x00\x00\x00", "local"},
	{"v2 4 KiB", v2 + "\x20\x00\x10\x00" + strings.Repeat("\x04\x00\x01x", 1024), "local"},
	{"v2 too long", v2 + "\x20\x00\x10\x01" + strings.Repeat("\x00", 4097), ""},
	{"v2 too short for its family", v2 + "\x21\x11\x00\x0b\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x01", ""},
	{"v2 datagrams", v2 + "\x21\x12\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x01\xbb", ""},
	{"v2 unix datagrams", v2 + "\x21\x32\x00\xd8" + strings.Repeat("\x00", 216), ""},
	{"v2 family", v2 + "\x21\x13\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x01\xbb", ""},
	{"v2 command", v2 + "\x22\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x01\xbb", ""},
	{"version 3", v2 + "\x31\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x01\xbb", ""},
	{"TLS", "\x16\x03\x01\x02\x00\x01\x00", ""},
	{"HTTP", "POST / HTTP/1.1\r\n\r\n", ""},
	{"ssh", "SSH-2.0-x\r\n", ""},
}

// heeded is what a visit from 127.0.0.1 makes of a header.
func heeded(r io.Reader) (client string, ahead []byte, err error) {
	v := &visit{info: &tunnel.Info{Client: &net.UnixAddr{Name: "local"}}}
	header, ahead, err := takeProxyHeader(r)
	if err == nil {
		err = v.heed(header)
	}
	return v.info.Client.String(), ahead, err
}

func TestTakeProxyHeader(t *testing.T) {
	const tail = "\x16\x03\x01 what follows\n"
	for _, test := range proxyHeaders {
		t.Run(test.name, func(t *testing.T) {
			for way, r := range map[string]io.Reader{
				"at once":      strings.NewReader(test.header + tail),
				"byte by byte": iotest.OneByteReader(strings.NewReader(test.header + tail)),
				"in halves":    iotest.HalfReader(strings.NewReader(test.header + tail)),
			} {
				client, ahead, err := heeded(r)
				if test.client == "" {
					var misfit *ProxyHeaderError
					if !errors.As(err, &misfit) || misfit.Hint() == "" {
						t.Errorf("%s: %v; want a ProxyHeaderError", way, err)
					}
					continue
				}
				rest, readErr := io.ReadAll(r)
				if err != nil || readErr != nil || client != test.client || string(ahead)+string(rest) != tail {
					t.Errorf("%s: client %s, then %q and %q, %v; want %s, then %q", way, client, ahead, rest, err, test.client, tail)
				}
			}
			for n := range len(test.header) {
				_, _, err := heeded(strings.NewReader(test.header[:n]))
				var misfit *ProxyHeaderError
				if err == nil || errors.As(err, &misfit) != (n > 0) {
					t.Errorf("%d bytes, then an end: %v", n, err)
				}
			}
		})
	}
}

func FuzzTakeProxyHeader(f *testing.F) {
	for _, test := range proxyHeaders {
		f.Add([]byte(test.header + "what follows"))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		whole := bytes.NewReader(data)
		client, ahead, err := heeded(whole)
		pieces := iotest.OneByteReader(bytes.NewReader(data))
		other, otherAhead, otherErr := heeded(pieces)
		if client != other || (err == nil) != (otherErr == nil) {
			t.Fatalf("at once %s, %v; byte by byte %s, %v", client, err, other, otherErr)
		}
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(whole)
		otherRest, _ := io.ReadAll(pieces)
		if !bytes.HasSuffix(data, append(ahead, rest...)) || !bytes.Equal(append(ahead, rest...), append(otherAhead, otherRest...)) {
			t.Fatalf("at once %q follows, byte by byte %q", append(ahead, rest...), append(otherAhead, otherRest...))
		}
		if len(data)-len(ahead)-len(rest) > proxyPrefix+maxProxyPart {
			t.Fatal("a header of more than 4 KiB was taken")
		}
	})
}

// headed is a target that wants a PROXY header, tells of it, and then answers with the SHA-256 of all that follows.
func headed(t testing.TB) (address string, headers chan *proxyproto.Header) {
	headers = make(chan *proxyproto.Header, 1)
	return tunneltest.Serve(t, func(c *net.TCPConn) {
		header, ahead, err := takeProxyHeader(c)
		if err != nil {
			t.Errorf("the target got no header: %v", err)
			return
		}
		headers <- header
		sum := sha256.New()
		if _, err := io.Copy(sum, tunnel.ReadAhead(c, ahead)); err != nil {
			t.Errorf("the target: %v", err)
		}
		c.Write(sum.Sum(nil))
		c.CloseWrite()
	}), headers
}

// upload sends a megabyte through c, for a target as headed makes them.
func upload(t testing.TB, c tunnel.Conn) {
	t.Helper()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<14) // two buffers full
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if want := sha256.Sum256(data); err != nil || !bytes.Equal(got, want[:]) {
		t.Fatalf("the target has received something else than was sent (%x, %v)", got, err)
	}
}

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// Headers come in and go out, for each kind of site.
func TestProxyHeaders(t *testing.T) {
	tunneltest.NoLeaks(t)
	ca := tunneltest.NewCA(t)
	target, headers := headed(t)
	for _, version := range []int{1, 2} {
		raw, ws := testSite(t, ca, "raw.test"), testSite(t, ca, "ws.test")
		raw.Raw = &Route{Target: target, Proxy: version}
		ws.Routes = []*Route{{Path: "/tunnel", Target: target, Proxy: version}}
		edge := run(t, &Config{
			Listeners: []Listener{{Address: "127.0.0.1:0", ProxyFrom: loopback}},
			Sites:     []*Site{raw, ws},
		})
		plain := run(t, &Config{
			Listeners: []Listener{{Address: "127.0.0.1:0", ProxyFrom: loopback, Plain: true}},
			Sites:     []*Site{{Raw: &Route{Target: target, Proxy: version}}},
		})
		ways := []struct {
			name      string
			edge      *running
			transport tunnel.Transport
			authority string
			alpn      string
		}{
			{"raw", plain, nil, "", ""},
			{"tls", edge, tunnel.Transport{clientTLS(ca, "raw.test")}, "raw.test", ""},
			{"wss", edge, tunnel.Transport{clientTLS(ca, "ws.test"), &tunnel.WebSocket{Host: "ws.test", Path: "/tunnel"}}, "ws.test", "http/1.1"},
		}
		ways[2].transport[0].(*tunnel.TLS).ClientConfig.NextProtos = []string{"http/1.1"}
		for _, way := range ways {
			for _, in := range proxyHeaders {
				if in.client == "" {
					continue
				}
				t.Run(way.name+" "+in.name, func(t *testing.T) {
					c := dialFrom(t, "127.0.0.1", way.edge.address)
					stream, err := way.transport.Client(t.Context(), &headFirst{Conn: c, head: in.header})
					if err != nil {
						t.Fatal(err)
					}
					upload(t, stream)
					got := <-headers
					want := in.client
					switch want {
					case "local":
						want = c.LocalAddr().String()
					case "/run/app":
						if got.Command != proxyproto.LOCAL || got.TransportProtocol != proxyproto.UNSPEC {
							t.Errorf("of a client on a Unix socket: %+v", got)
						}
						return
					}
					if int(got.Version) != version || got.SourceAddr.String() != want {
						t.Errorf("version %d, client %v; want %d, %s", got.Version, got.SourceAddr, version, want)
					}
					if in.client == "local" && got.DestinationAddr.String() != way.edge.address {
						t.Errorf("connected to %v, want the edge, %s", got.DestinationAddr, way.edge.address)
					}
					if in.client == "192.0.2.1:1234" && got.DestinationAddr.String() != "192.0.2.2:443" {
						t.Errorf("connected to %v, want what the proxy told", got.DestinationAddr)
					}
					if version == 2 {
						wantDetails(t, got, way.authority, way.alpn)
					}
				})
			}
		}
	}
}

// headFirst sends head together with the first that is written.
type headFirst struct {
	tunnel.Conn
	head string
}

func (h *headFirst) Write(p []byte) (int, error) {
	n, err := h.Conn.Write(append([]byte(h.head), p...))
	n = max(0, n-len(h.head))
	h.head = ""
	return n, err
}

func wantDetails(t *testing.T, header *proxyproto.Header, authority, alpn string) {
	t.Helper()
	tlvs, err := header.TLVs()
	if err != nil {
		t.Fatal(err)
	}
	got := map[proxyproto.PP2Type]string{}
	for _, tlv := range tlvs {
		got[tlv.Type] = string(tlv.Value)
	}
	if got[proxyproto.PP2_TYPE_AUTHORITY] != authority || got[proxyproto.PP2_TYPE_ALPN] != alpn {
		t.Errorf("authority %q, ALPN %q; want %q, %q", got[proxyproto.PP2_TYPE_AUTHORITY], got[proxyproto.PP2_TYPE_ALPN], authority, alpn)
	}
	ssl, found := tlvparse.FindSSL(tlvs)
	if found != (authority != "") {
		t.Fatalf("details of TLS: %v", found)
	}
	if !found {
		return
	}
	version, _ := ssl.SSLVersion()
	cipher, _ := ssl.SSLCipher()
	if !ssl.ClientSSL() || ssl.ClientCertConn() || ssl.Verified() || version != "TLSv1.3" || !strings.HasPrefix(cipher, "TLS_") {
		t.Errorf("details of TLS: %+v, %s, %s", ssl, version, cipher)
	}
}

func TestTLSDetails(t *testing.T) {
	const conn, sess = tlvparse.PP2_BITFIELD_CLIENT_CERT_CONN, tlvparse.PP2_BITFIELD_CLIENT_CERT_SESS
	ca := tunneltest.NewCA(t)
	known := []*x509.Certificate{ca.Issue(t, "client.test").Leaf}
	chains := [][]*x509.Certificate{known}
	long := []*x509.Certificate{ca.Issue(t, strings.Repeat("x", 300)).Leaf}
	for _, test := range []struct {
		name     string
		state    tls.ConnectionState
		client   uint8
		verified bool
		version  string
		cipher   string
		cn       string
	}{
		{"1.2", tls.ConnectionState{Version: tls.VersionTLS12, CipherSuite: tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256},
			0, false, "TLSv1.2", "ECDHE-RSA-AES128-GCM-SHA256", ""},
		{"chacha", tls.ConnectionState{Version: tls.VersionTLS12, CipherSuite: tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256},
			0, false, "TLSv1.2", "ECDHE-ECDSA-CHACHA20-POLY1305", ""},
		{"cbc", tls.ConnectionState{Version: tls.VersionTLS12, CipherSuite: tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA},
			0, false, "TLSv1.2", "ECDHE-RSA-AES256-SHA", ""},
		{"rsa", tls.ConnectionState{Version: tls.VersionTLS12, CipherSuite: tls.TLS_RSA_WITH_AES_128_CBC_SHA256},
			0, false, "TLSv1.2", "AES128-SHA256", ""},
		{"3des", tls.ConnectionState{Version: tls.VersionTLS12, CipherSuite: tls.TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA},
			0, false, "TLSv1.2", "ECDHE-RSA-DES-CBC3-SHA", ""},
		{"certificate", tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, PeerCertificates: known, VerifiedChains: chains},
			conn | sess, true, "TLSv1.3", "TLS_AES_128_GCM_SHA256", "client.test"},
		{"resumed", tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_256_GCM_SHA384, PeerCertificates: known, VerifiedChains: chains, DidResume: true},
			sess, true, "TLSv1.3", "TLS_AES_256_GCM_SHA384", "client.test"},
		{"not verified", tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, PeerCertificates: known},
			conn | sess, false, "TLSv1.3", "TLS_AES_128_GCM_SHA256", "client.test"},
		{"long name", tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, PeerCertificates: long},
			conn | sess, false, "TLSv1.3", "TLS_AES_128_GCM_SHA256", ""},
	} {
		tlv, err := tlsDetails(&test.state).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		ssl, err := tlvparse.SSL(tlv)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		version, _ := ssl.SSLVersion()
		cipher, _ := ssl.SSLCipher()
		cn, _ := ssl.ClientCN()
		if ssl.Client != tlvparse.PP2_BITFIELD_CLIENT_SSL|test.client || ssl.Verified() != test.verified ||
			version != test.version || cipher != test.cipher || cn != test.cn {
			t.Errorf("%s: %+v: %s, %s, %q", test.name, ssl, version, cipher, cn)
		}
	}
}

// A site that is passed on gets the header before the ClientHello, and everything behind it untouched.
func TestProxyHeaderOfPassedSite(t *testing.T) {
	tunneltest.NoLeaks(t)
	ca := tunneltest.NewCA(t)
	ended := testSite(t, ca, "pass.test")
	target, headers := headed(t)
	ended.Raw = &Route{Target: target, Proxy: 1}
	inner := run(t, &Config{Listeners: []Listener{{Address: "127.0.0.1:0", ProxyFrom: loopback}}, Sites: []*Site{ended}})
	for _, version := range []int{1, 2} {
		outer := run(t, &Config{
			Listeners: []Listener{{Address: "127.0.0.1:0", ProxyFrom: loopback}},
			Sites:     []*Site{{Names: []string{"pass.test"}, Pass: inner.address, Proxy: version}},
		})
		for _, in := range proxyHeaders {
			if in.client == "" || in.client == "/run/app" {
				continue
			}
			t.Run(in.name, func(t *testing.T) {
				c := dialFrom(t, "127.0.0.1", outer.address)
				stream, err := clientTLS(ca, "pass.test").Client(t.Context(), &headFirst{Conn: c, head: in.header})
				if err != nil {
					t.Fatal(err)
				}
				upload(t, stream)
				want := in.client
				if want == "local" {
					want = c.LocalAddr().String()
				}
				if got := <-headers; got.SourceAddr.String() != want {
					t.Errorf("client %v, want %s", got.SourceAddr, want)
				}
			})
		}
	}
}

// The header may come in crumbs, as may the ClientHello behind it.
func TestProxyHeaderInCrumbs(t *testing.T) {
	ca := tunneltest.NewCA(t)
	target, headers := headed(t)
	site := testSite(t, ca, "raw.test")
	site.Raw = &Route{Target: target, Proxy: 1}
	passed := &Site{Names: []string{"pass.test"}, Pass: "127.0.0.1:1"} // so that every ClientHello is looked at
	edge := run(t, &Config{Listeners: []Listener{{Address: "127.0.0.1:0", ProxyFrom: loopback}}, Sites: []*Site{site, passed}})
	for _, in := range proxyHeaders[:2] {
		c := dialFrom(t, "127.0.0.1", edge.address)
		stream, err := clientTLS(ca, "raw.test").Client(t.Context(), &headFirst{Conn: &crumbs{c}, head: in.header})
		if err != nil {
			t.Fatal(err)
		}
		upload(t, stream)
		if got := <-headers; got.SourceAddr.String() != in.client {
			t.Errorf("client %v, want %s", got.SourceAddr, in.client)
		}
	}
}

// crumbs writes what is short byte by byte, as segments of their own.
type crumbs struct{ *net.TCPConn }

func (c *crumbs) Write(p []byte) (n int, err error) {
	if len(p) > 2000 {
		return c.TCPConn.Write(p)
	}
	for i := range p {
		if _, err := c.TCPConn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

func TestClientOnUnixSocket(t *testing.T) {
	target, headers := headed(t)
	path := filepath.Join(t.TempDir(), "edge")
	for _, version := range []int{1, 2} {
		c := &Config{
			Listeners: []Listener{{Address: "unix:" + path, Plain: true}},
			Sites:     []*Site{{Raw: &Route{Target: target, Proxy: version}}},
		}
		edge := run(t, c)
		client, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		upload(t, client.(*net.UnixConn))
		client.Close()
		if got := <-headers; int(got.Version) != version || got.Command != proxyproto.LOCAL || got.SourceAddr != nil {
			t.Errorf("version %d: %+v", version, got)
		}
		edge.stop()
	}
}

// Whoever says nothing sensible in place of the header is told of in the log, once, and with a hint.
func TestProxyHeaderIsMissing(t *testing.T) {
	ca := tunneltest.NewCA(t)
	site := testSite(t, ca, "raw.test")
	site.Raw = &Route{Target: tunneltest.Echo(t)}
	edge := run(t, &Config{Listeners: []Listener{{Address: "127.0.0.1:0", ProxyFrom: loopback}}, Sites: []*Site{site}, Timeout: 300 * time.Millisecond})

	c := dialFrom(t, "127.0.0.1", edge.address) // a check that only connects
	c.Close()
	within(t, patience, "the check is over", func() bool { return len(edge.log.with("no tunnel")) == 1 })
	if complaints := edge.log.with("level=WARN"); len(complaints) > 0 {
		t.Errorf("of a connection without a byte the log says %q", complaints)
	}

	for range 3 {
		c := dialFrom(t, "127.0.0.1", edge.address)
		if _, err := clientTLS(ca, "raw.test").Client(t.Context(), c); err == nil {
			t.Fatal("a connection without a header was taken")
		}
	}
	if lines := edge.log.with("level=WARN"); len(lines) != 1 || !strings.Contains(lines[0], "send-proxy") || !strings.Contains(lines[0], "client=127.0.0.1:") {
		t.Errorf("the log says %q", lines)
	}

	for _, begin := range []string{"", "PROXY TCP4 192.", v2 + "\x21"} {
		c := dialFrom(t, "127.0.0.1", edge.address)
		if _, err := io.WriteString(c, begin); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after %q: %d bytes, %v; want the end by the time limit", begin, n, err)
		}
	}
}

// From elsewhere a header is no header, and none is wanted.
func TestProxyHeaderFromElsewhere(t *testing.T) {
	ca := tunneltest.NewCA(t)
	site := testSite(t, ca, "raw.test")
	site.Raw = &Route{Target: tunneltest.Echo(t), Access: Access{From: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}}
	edge := run(t, &Config{
		Listeners: []Listener{{Address: "127.0.0.1:0", ProxyFrom: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}}},
		Sites:     []*Site{site},
	})
	for _, test := range []struct {
		from, head string
		ok         bool
	}{
		{"127.0.0.1", "", true},
		{"127.0.0.1", "PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n", false},
		{"127.0.0.3", "PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n", false},
		{"127.0.0.2", "", false},
		{"127.0.0.2", "PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\n", true},
		{"127.0.0.2", "PROXY TCP4 127.0.0.3 127.0.0.1 1 1\r\n", false},
		{"127.0.0.2", "PROXY UNKNOWN\r\n", false}, // nobody knows that it comes from 127.0.0.1
		{"127.0.0.2", v2 + "\x21\x31\x00\xd8" + strings.Repeat("\x00", 216), false},
	} {
		c := dialFrom(t, test.from, edge.address)
		stream, err := clientTLS(ca, "raw.test").Client(t.Context(), &headFirst{Conn: c, head: test.head})
		if err == nil {
			err = isEcho(stream)
		}
		if (err == nil) != test.ok {
			t.Errorf("from %s with %q: %v", test.from, test.head, err)
		}
	}
}

// A target that is gone, or takes nothing, costs no place.
func TestProxyHeaderToNobody(t *testing.T) {
	connected := make(chan struct{})
	edge := run(t, &Config{
		Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}},
		Sites:     []*Site{{Raw: &Route{Target: "nobody", Proxy: 2}}},
		Dial: func(ctx context.Context, _ string) (tunnel.Conn, error) {
			dialed, accepted := tunneltest.Pair(t)
			accepted.Close()
			dialed.CloseWrite() // so that the header is refused
			select {
			case <-connected: // else the reset may come before connect(2) has returned
			case <-ctx.Done():
			}
			return dialed, nil
		},
	})
	c := dialFrom(t, "127.0.0.1", edge.address)
	close(connected)
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("there is a tunnel")
	}
	within(t, patience, "the log tells why", func() bool { return len(edge.log.with("tunnel failed", "proxy header")) == 1 })
}
