//go:build interop

package interop

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"raimon/edge"
	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// startEdge runs an edge in this process until the test ends, and returns where it listens, in the order of c.
func startEdge(t testing.TB, c *edge.Config) (addresses []string) {
	t.Helper()
	log := &logTail{}
	server := &edge.Server{Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	c.Drain = -1
	if err := server.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	for _, l := range c.Listeners {
		addresses = append(addresses, server.Listeners()[l.Address].Addr().String())
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("edge: %v", err)
		}
		if t.Failed() {
			t.Logf("edge:\n%s", log.short())
		}
	})
	return addresses
}

// edgeSites are a raw tunnel (on a plain listener), raw.test, ws.test, and pass.test, which lead to a backend with a header.
func edgeSites(t testing.TB, ca *tunneltest.CA, version int, backend, passed string) *edge.Config {
	cert := ca.Issue(t, "raw.test", "ws.test")
	certificate := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }
	from := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	to := &edge.Route{Path: "/tunnel", Target: backend, Proxy: version}
	return &edge.Config{
		Listeners: []edge.Listener{{Address: "127.0.0.1:0", Plain: true, ProxyFrom: from}, {Address: "127.0.0.2:0", ProxyFrom: from}, {Address: "127.0.0.3:0"}},
		Sites: []*edge.Site{
			{Raw: to, Certificate: certificate},
			{Names: []string{"raw.test"}, Raw: to, Certificate: certificate},
			{Names: []string{"ws.test"}, Routes: []*edge.Route{to}, Certificate: certificate},
			{Names: []string{"pass.test"}, Pass: passed, Proxy: version},
		},
	}
}

const haproxyBackConf = `
global
	maxconn 500
defaults
	timeout connect 5s
	timeout client 30s
	timeout server 30s
frontend streams
	mode tcp
	bind %[1]s accept-proxy
	default_backend streams
backend streams
	mode tcp
	server target %[2]s
frontend plain
	mode http
	bind %[3]s accept-proxy
	http-request return status 200 content-type text/plain lf-string "%%[src]:%%[src_port] %%[dst]:%%[dst_port] %%[fc_pp_authority]"
frontend secure
	mode http
	bind %[4]s accept-proxy ssl crt %[5]s
	http-request return status 200 content-type text/plain lf-string "%%[src]:%%[src_port] %%[dst]:%%[dst_port] %%[fc_pp_authority]"
`

// backs are the frontends of a haproxy that wants headers.
type backs struct{ streams, plain, secure string }

func startHaproxyBehind(t testing.TB, target string, s secrets) (b backs) {
	t.Helper()
	b = backs{freePort(), freePort(), freePort()}
	conf := writeFile(t, "back.cfg", fmt.Sprintf(haproxyBackConf, b.streams, target, b.plain, b.secure, s.both))
	start(t, "haproxy", nil, "-db", "-f", conf).awaitPort(t, b.secure)
	return b
}

const haproxyFrontConf = `
global
	maxconn 500
defaults
	mode tcp
	timeout connect 5s
	timeout client 30s
	timeout server 30s
listen v1
	bind %[1]s
	server edge %[2]s send-proxy
listen v2
	bind %[3]s
	server edge %[2]s send-proxy-v2
listen v2ssl
	bind %[4]s ssl crt %[5]s
	server edge %[2]s send-proxy-v2-ssl-cn
`

// Haproxy in front of the edge and behind it: streams are whole, and the client's address arrives.
func TestHaproxyHeaders(t *testing.T) {
	g := newTarget(t)
	s := newSecrets(t)
	ca := tunneltest.NewCA(t)
	back := startHaproxyBehind(t, g.address, s)
	for _, version := range []int{1, 2} {
		streams := startEdge(t, edgeSites(t, ca, version, back.streams, back.secure))
		asks := startEdge(t, edgeSites(t, ca, version, back.plain, back.secure))
		front := func(edge string) (v1, v2, v2ssl string) {
			v1, v2, v2ssl = freePort(), freePort(), freePort()
			conf := writeFile(t, "front.cfg", fmt.Sprintf(haproxyFrontConf, v1, edge, v2, v2ssl, s.both))
			start(t, "haproxy", nil, "-db", "-f", conf).awaitPort(t, v2ssl)
			return v1, v2, v2ssl
		}
		streamsV1, streamsV2, _ := front(streams[0])
		asksV1, asksV2, asksSSL := front(asks[0])
		secureV1, secureV2, _ := front(asks[1])
		trust := &tls.Config{RootCAs: ca.Pool}
		outer := &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"}
		for _, way := range []struct {
			name, address string
			layers        tunnel.Transport
			authority     string
		}{
			{"v1 in", asksV1, nil, ""},
			{"v2 in", asksV2, nil, ""},
			{"v2 with ssl in", asksSSL, tunnel.Transport{&tunnel.TLS{ClientConfig: outer}}, ""},
			{"v1 in, tls", secureV1, tunnel.Transport{withName(trust, "raw.test")}, "raw.test"},
			{"v2 in, wss", secureV2, tunnel.Transport{withName(trust, "ws.test"), &tunnel.WebSocket{Host: "ws.test", Path: "/tunnel"}}, "ws.test"},
			{"none in, wss", asks[2], tunnel.Transport{withName(trust, "ws.test"), &tunnel.WebSocket{Host: "ws.test", Path: "/tunnel"}}, "ws.test"},
			{"v1 in, passed", secureV1, tunnel.Transport{&tunnel.TLS{ClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "pass.test"}}}, "pass.test"},
			{"none in, passed", asks[2], tunnel.Transport{&tunnel.TLS{ClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "pass.test"}}}, "pass.test"},
		} {
			t.Run(fmt.Sprintf("v%d out, %s", version, way.name), func(t *testing.T) {
				authority := way.authority
				if version == 1 {
					authority = "" // has no room for it
				}
				c := connect(t, way.address)
				want := strings.TrimSpace(fmt.Sprintf("%s %s %s", c.LocalAddr(), way.address, authority))
				if got := ask(t, c, way.layers); got != want {
					t.Errorf("haproxy was told %q, want %q", got, want)
				}
			})
		}
		for name, address := range map[string]string{"v1": streamsV1, "v2": streamsV2} {
			t.Run(fmt.Sprintf("%s in, v%d out, streams", name, version), func(t *testing.T) { all(t, g.streams(address)) })
		}
	}
}

func withName(c *tls.Config, name string) *tunnel.TLS {
	c = c.Clone()
	c.ServerName = name
	return &tunnel.TLS{ClientConfig: c}
}

func connect(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// ask sends a request through layers on c and returns the body of the answer.
func ask(t testing.TB, c tunnel.Conn, layers tunnel.Transport) string {
	t.Helper()
	stream, err := layers.Client(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(get(t, stream, "/")))
}

func get(t testing.TB, c io.ReadWriter, path string) []byte {
	t.Helper()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", path, answer.Status, err)
	}
	return body
}

const nginxBackConf = nginxHead + `	server {
		listen %[2]s proxy_protocol;
		listen %[3]s proxy_protocol ssl;
		ssl_certificate %[4]s;
		ssl_certificate_key %[5]s;
		default_type text/plain;
		location = / {
			return 200 "$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr:$proxy_protocol_server_port";
		}
		location /data { root %[1]s; }
	}
}
`

// Nginx behind the edge learns the client's address, and what it serves is whole.
func TestNginxHeaders(t *testing.T) {
	s := newSecrets(t)
	ca := tunneltest.NewCA(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 8*megabyte)
	io.ReadFull(stream(len(data)), data)
	if err := os.WriteFile(filepath.Join(dir, "data"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	plain, secure := freePort(), freePort()
	conf := writeFile(t, "nginx.conf", fmt.Sprintf(nginxBackConf, dir, plain, secure, s.Cert, s.Key))
	start(t, "nginx", nil, "-p", dir, "-e", "stderr", "-c", conf).awaitPort(t, secure)
	trust := &tls.Config{RootCAs: ca.Pool}
	for _, version := range []int{1, 2} {
		edges := startEdge(t, edgeSites(t, ca, version, plain, secure))
		for _, way := range []struct {
			name   string
			layers tunnel.Transport
		}{
			{"tls", tunnel.Transport{withName(trust, "raw.test")}},
			{"wss", tunnel.Transport{withName(trust, "ws.test"), &tunnel.WebSocket{Host: "ws.test", Path: "/tunnel"}}},
			{"passed", tunnel.Transport{&tunnel.TLS{ClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "pass.test"}}}},
		} {
			t.Run(fmt.Sprintf("v%d, %s", version, way.name), func(t *testing.T) {
				c := connect(t, edges[2])
				want := fmt.Sprintf("%s %s", c.LocalAddr(), edges[2])
				if got := ask(t, c, way.layers); got != want {
					t.Errorf("nginx was told %q, want %q", got, want)
				}
				stream, err := way.layers.Client(t.Context(), connect(t, edges[2]))
				if err != nil {
					t.Fatal(err)
				}
				if got := sha256.Sum256(get(t, stream, "/data")); got != sha256.Sum256(data) {
					t.Error("other bytes came than nginx has")
				}
			})
		}
	}
}
