package edge

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

const tunnelPath = "/tunnel?key=hush-hush"

func TestMetricsOfTunnels(t *testing.T) {
	s := newScene(t, nil)
	const size = 300_000
	c := s.open("a.test", tunnelPath)
	s.echo(c, size)
	// While it is open:
	for series, want := range map[string]float64{
		`raimon_tunnels_open{route="/tunnel",site="a.test"}`:                            1,
		`raimon_tunnels_opened_total{route="/tunnel",site="a.test"}`:                    1,
		`raimon_tunnel_bytes_total{direction="sent",route="/tunnel",site="a.test"}`:     size,
		`raimon_tunnel_bytes_total{direction="received",route="/tunnel",site="a.test"}`: size,
		`raimon_connections_open`:                                    1,
		`raimon_connections_total{listener="127.0.0.1:0"}`:           1,
		`raimon_tls_handshake_duration_seconds_count{site="a.test"}`: 1,
		`raimon_tunnel_setup_duration_seconds_count{site="a.test"}`:  1,
	} {
		s.metric(series, want)
	}
	c.Close()
	raw := s.open("raw.test", "")
	if _, err := io.WriteString(raw, "hello"); err != nil {
		t.Fatal(err)
	}
	s.finish(raw)
	for series, want := range map[string]float64{
		`raimon_tunnels_open{route="/tunnel",site="a.test"}`:                            0,
		`raimon_tunnels_opened_total{route="/tunnel",site="a.test"}`:                    1,
		`raimon_tunnel_bytes_total{direction="received",route="/tunnel",site="a.test"}`: size,
		`raimon_tunnel_bytes_total{direction="sent",route="raw",site="raw.test"}`:       5,
		`raimon_tunnels_ended_total{reason="closed",route="raw",site="raw.test"}`:       1,
		`raimon_tunnels_open{route="raw",site="raw.test"}`:                              0,
		`raimon_connections_open`: 0,
		`raimon_build_info{go_version="` + goVersion(s) + `",version="v1.2.3-test"}`: 1,
		`raimon_connections_total{listener="127.0.0.1:0"}`:                           2,
		`raimon_tls_handshake_duration_seconds_bucket{site="raw.test",le="+Inf"}`:    1,
	} {
		s.metric(series, want)
	}
}

func goVersion(s *scene) string {
	for series := range s.metrics() {
		if rest, ok := strings.CutPrefix(series, `raimon_build_info{go_version="`); ok {
			version, _, _ := strings.Cut(rest, `"`)
			return version
		}
	}
	return ""
}

// What goes wrong is counted by a reason from a fixed set.
func TestMetricsOfFailures(t *testing.T) {
	for _, test := range []struct {
		name   string
		tweak  func(*scene)
		visit  func(*scene)
		series string
	}{
		{"a name that nobody has", nil, func(s *scene) { mustFail(s, "b.test", "") }, `raimon_handshake_failures_total{reason="unknown_name"}`},
		{"a client that knows another CA", nil, func(s *scene) {
			s.ca = tunneltest.NewCA(s.t)
			mustFail(s, "a.test", "")
		}, `raimon_handshake_failures_total{reason="alert_bad_certificate"}`},
		{"a certificate that is not there", func(s *scene) {
			s.config.Sites[0].Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errNoCertificate }
		}, func(s *scene) { mustFail(s, "a.test", "") }, `raimon_handshake_failures_total{reason="certificate"}`},
		{"HTTP without TLS", nil, func(s *scene) { say(s, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n") }, `raimon_handshake_failures_total{reason="not_tls"}`},
		{"a health check that says nothing", nil, func(s *scene) { say(s, "") }, `raimon_handshake_failures_total{reason="eof"}`},
		{"half a ClientHello", nil, func(s *scene) { say(s, "\x16\x03\x01\x01\x00\x01") }, `raimon_handshake_failures_total{reason="eof"}`},
		{"an old version of TLS", nil, func(s *scene) {
			c, err := tls.Dial("tcp", s.address, &tls.Config{ServerName: "a.test", RootCAs: s.ca.Pool, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
			if err == nil {
				c.Close()
				s.t.Error("a handshake with TLS 1.1 went well")
			}
		}, `raimon_handshake_failures_total{reason="tls_version"}`},
		{"somebody who is too slow", func(s *scene) { s.config.Timeout = 50 * time.Millisecond }, func(s *scene) {
			c, err := net.Dial("tcp", s.address)
			if err != nil {
				s.t.Fatal(err)
			}
			defer c.Close()
			io.Copy(io.Discard, c) // until the edge has had enough of it
		}, `raimon_handshake_failures_total{reason="timeout"}`},
		{"no PROXY header", func(s *scene) { s.config.Listeners[0].ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} },
			func(s *scene) { mustFail(s, "a.test", "") }, `raimon_handshake_failures_total{reason="proxy_header"}`},
		{"a client that may not", func(s *scene) {
			s.config.Sites[1].Raw.Access.From = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		}, func(s *scene) { expectEnd(s, "raw.test", "") }, `raimon_handshake_failures_total{reason="access"}`},
		{"a target where nobody listens", nil, func(s *scene) { expectEnd(s, "a.test", "/nowhere") },
			`raimon_target_failures_total{reason="refused",route="/nowhere",site="a.test"}`},
		{"a visitor", nil, func(s *scene) {
			get(s, "https://a.test/index.html", 404)
		}, `raimon_visits_total{site="a.test"}`},
		{"too many on a route", nil, func(s *scene) {
			s.open("a.test", "/narrow")
			mustFail(s, "a.test", "/narrow")
		}, `raimon_refusals_total{limit="route"}`},
		{"too many from one address", func(s *scene) { s.config.Limits.PerAddress = 1 }, func(s *scene) {
			s.open("a.test", tunnelPath)
			mustFail(s, "a.test", tunnelPath)
		}, `raimon_refusals_total{limit="per_address"}`},
		{"too fast from one address", func(s *scene) { s.config.Limits.Rate = 1 }, func(s *scene) {
			for range 2 {
				s.finish(s.open("a.test", tunnelPath))
			}
			mustFail(s, "a.test", tunnelPath)
		}, `raimon_refusals_total{limit="rate"}`},
		{"too many connections", func(s *scene) { s.config.Limits.Connections, s.config.Limits.Refuse = 1, true }, func(s *scene) {
			s.open("a.test", tunnelPath)
			mustFail(s, "a.test", tunnelPath)
		}, `raimon_refusals_total{limit="connections"}`},
		{"a tunnel that a shutdown cuts", nil, func(s *scene) {
			s.echo(s.open("a.test", tunnelPath), 1)
			s.end()
		}, `raimon_tunnels_ended_total{reason="shutdown",route="/tunnel",site="a.test"}`},
		{"a client that is cut off", nil, func(s *scene) {
			c := s.open("raw.test", "")
			s.echo(c, 1)
			c.(interface{ NetConn() net.Conn }).NetConn().Close()
		}, `raimon_tunnels_ended_total{reason="cut",route="raw",site="raw.test"}`},
		{"a good config", nil, func(s *scene) { s.server.Metrics.Reloaded(nil) }, `raimon_config_last_reload_successful`},
		{"a bad config", nil, func(s *scene) { s.server.Metrics.Reloaded(errNoCertificate) }, `raimon_config_reloads_total{result="error"}`},
		{"a storage that fails", nil, func(s *scene) { s.server.Metrics.StorageFailed("store") }, `raimon_storage_errors_total{operation="store"}`},
		{"an operation of no known name", nil, func(s *scene) { s.server.Metrics.StorageFailed("what a stranger said") }, `raimon_storage_errors_total{operation="other"}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScene(t, test.tweak)
			if before := s.metrics()[test.series]; before != 0 {
				t.Fatalf("%s is %v before anything happened", test.series, before)
			}
			test.visit(s)
			s.metric(test.series, 1)
		})
	}
}

// mustFail asks for a tunnel and gets none.
func mustFail(s *scene, name, path string) {
	s.t.Helper()
	if c, err := s.dial(name, path); err == nil {
		c.Close()
		s.t.Error("the tunnel came about")
	}
}

// expectEnd opens what looks like a tunnel from outside and ends at once.
func expectEnd(s *scene, name, path string) {
	s.t.Helper()
	c, err := s.dial(name, path)
	if err != nil {
		return
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(scenePatience))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		s.t.Errorf("read %d bytes, error %v, want an end", n, err)
	}
}

// say sends text and then nothing more.
func say(s *scene, text string) {
	s.t.Helper()
	c, err := net.Dial("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		s.t.Fatal(err)
	}
	c.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, c)
}

// get fetches a page from the edge, with another secret in its request than any config has.
func get(s *scene, url string, want int) {
	s.t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.ca.Pool}, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.address)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer do-not-tell")
	answer, err := (&http.Client{Transport: transport, Timeout: scenePatience}).Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != want {
		s.t.Errorf("%s: status %d, want %d", url, answer.StatusCode, want)
	}
}

func TestMetricsOfCertificates(t *testing.T) {
	until := time.Now().Add(5 * 24 * time.Hour).Truncate(time.Second)
	s := newScene(t, func(s *scene) {
		s.admin.Certificates = func() []CertificateStatus {
			all := []CertificateStatus{
				{Name: "a.test", NotAfter: until, NextRenewal: until.Add(-time.Hour), StapleUntil: until.Add(-2 * time.Hour)},
				{Name: "b.test", LastError: "the CA is away"},
			}
			for n := range maxCertificateSeries { // asked for by clients
				all = append(all, CertificateStatus{Name: fmt.Sprintf("%d.test", n), NotAfter: until.Add(time.Hour)})
			}
			return all
		}
	})
	all := s.metrics()
	for series, want := range map[string]float64{
		`raimon_certificates`: maxCertificateSeries + 2,
		`raimon_certificate_not_after_timestamp_seconds{name="a.test"}`:    float64(until.Unix()),
		`raimon_certificate_next_renewal_timestamp_seconds{name="a.test"}`: float64(until.Add(-time.Hour).Unix()),
		`raimon_certificate_staple_until_timestamp_seconds{name="a.test"}`: float64(until.Add(-2 * time.Hour).Unix()),
		`raimon_certificate_failing{name="a.test"}`:                        0,
		`raimon_certificate_failing{name="b.test"}`:                        1,
	} {
		if got, ok := all[series]; !ok || got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	if _, ok := all[`raimon_certificate_not_after_timestamp_seconds{name="b.test"}`]; ok {
		t.Error("a certificate that was never obtained has a date")
	}
	count := 0
	for series := range all {
		if strings.HasPrefix(series, "raimon_certificate_failing{") {
			count++
		}
	}
	if count != maxCertificateSeries {
		t.Errorf("%d certificates have metrics of their own, want %d", count, maxCertificateSeries)
	}
}

// Names, helps and types are as Prometheus wants them.
func TestMetricsLint(t *testing.T) {
	s := newScene(t, func(s *scene) {
		s.admin.Certificates = func() []CertificateStatus { return []CertificateStatus{{Name: "a.test", NotAfter: time.Now()}} }
	})
	s.finish(s.open("a.test", tunnelPath))
	expectEnd(s, "a.test", "/nowhere")
	s.metric(`raimon_target_failures_total{reason="refused",route="/nowhere",site="a.test"}`, 1)
	_, body := s.get("/metrics")
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	names := []string{"raimon_tunnel_bytes_total", "raimon_target_failures_total", "raimon_certificate_failing", "go_goroutines"}
	if runtime.GOOS == "linux" {
		names = append(names, "process_open_fds")
	}
	for _, name := range names {
		if !strings.Contains(body, "# HELP "+name+" ") {
			t.Errorf("%s is not there", name)
		}
	}
}

// Labels that are not UTF-8, or the same for two routes, must not keep the others from being seen.
func TestMetricsOfOddLabels(t *testing.T) {
	s := newScene(t, func(s *scene) {
		s.config.Sites[0].Routes = []*Route{
			{Path: "/a", Label: "same\xff", Target: tunneltest.Echo(s.t)},
			{Path: "/b", Label: "same\xfe", Target: tunneltest.Echo(s.t)},
		}
	})
	s.open("a.test", "/a")
	s.open("a.test", "/b")
	s.metric("raimon_tunnels_open{route=\"same\uFFFD\",site=\"a.test\"}", 2)
}

// Sums never fall, also while tunnels come and go and many ask for them.
func TestMetricsUnderLoad(t *testing.T) {
	s := newScene(t, nil)
	const workers, rounds, size = 4, 25, 10_000
	var work, watch sync.WaitGroup
	over := make(chan struct{})
	for n := range workers {
		work.Go(func() {
			for range rounds {
				c, err := s.dial([]string{"a.test", "raw.test"}[n%2], []string{tunnelPath, ""}[n%2])
				if err != nil {
					t.Error(err)
					return
				}
				s.echo(c, size)
				s.finish(c)
			}
		})
	}
	scrapes := 0
	watch.Go(func() {
		before := make(map[string]float64)
		for {
			for series, value := range s.metrics() {
				if strings.HasPrefix(series, "raimon_") && strings.Contains(series, "_total") && value < before[series] {
					t.Errorf("%s fell from %v to %v", series, before[series], value)
				}
				before[series] = value
			}
			s.server.traffic.measure(time.Now())
			if status, body := s.get("/status.json"); status != 200 {
				t.Errorf("status.json: %d %s", status, body)
			}
			scrapes++
			select {
			case <-over:
				return
			default:
			}
		}
	})
	work.Wait()
	close(over)
	watch.Wait()
	s.metric(`raimon_tunnel_bytes_total{direction="sent",route="/tunnel",site="a.test"}`, workers/2*rounds*size)
	s.metric(`raimon_tunnel_bytes_total{direction="received",route="raw",site="raw.test"}`, workers/2*rounds*size)
	s.metric(`raimon_tunnels_ended_total{reason="closed",route="raw",site="raw.test"}`, workers/2*rounds)
	s.metric(`raimon_connections_open`, 0)
	if scrapes < 2 {
		t.Errorf("%d scrapes only", scrapes)
	}
}

// The counters of nothing are nil.
func TestNoMetrics(t *testing.T) {
	s := newScene(t, func(s *scene) { s.server.Metrics, s.admin.Metrics = nil, nil })
	c := s.open("a.test", tunnelPath)
	s.metric(`raimon_tunnels_open{route="/tunnel",site="a.test"}`, 1)
	s.finish(c)
	mustFail(s, "b.test", "")
	var m *Metrics
	m.Reloaded(nil)
	m.StorageFailed("load")
	m.refused(ErrFull)
	s.metric(`raimon_tunnels_open{route="/tunnel",site="a.test"}`, 0)
}

// All that is counted of one connection with a tunnel. It has to stay below two microseconds.
func BenchmarkMetrics(b *testing.B) {
	m := NewMetrics()
	v := &visit{site: &Site{Names: []string{"a.test"}}, route: &Route{Path: "/tunnel"}, begin: time.Now()}
	var all traffic
	session := new(tunnel.Session)
	b.ReportAllocs()
	for b.Loop() {
		m.accepted("127.0.0.1:443")
		m.shookHands(v)
		all.opened(v, session)
		m.opened(v, time.Millisecond)
		all.ended(v)
		m.ended(v, session, tunnel.ErrNoTunnel)
	}
}
