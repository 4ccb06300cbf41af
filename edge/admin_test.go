package edge

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
)

const testToken = "0123456789abcdef-token"

func TestCheckAdminAddress(t *testing.T) {
	for _, test := range []struct {
		address  string
		hasToken bool
		want     string // of the error; empty: none
	}{
		{"127.0.0.1:9180", false, ""},
		{"127.8.9.1:9180", false, ""},
		{"[::1]:9180", false, ""},
		{"localhost:9180", false, ""},
		{"unix:/run/admin.sock", false, ""},
		{"0.0.0.0:9180", true, ""},
		{"192.0.2.1:9180", true, ""},
		{":9180", false, "no token"},
		{"0.0.0.0:9180", false, "no token"},
		{"[::]:9180", false, "no token"},
		{"192.0.2.1:9180", false, "no token"},
		{"[::ffff:192.0.2.1]:9180", false, "no token"},
		{"localhost.example.com:9180", false, "no token"},
		{"127.0.0.1", true, "port is missing"},
		{"http://127.0.0.1:9180/", true, "not a URL"},
		{"", true, "port is missing"},
	} {
		err := CheckAdminAddress(test.address, test.hasToken)
		if test.want == "" {
			if err != nil {
				t.Errorf("%q, token %v: %v", test.address, test.hasToken, err)
			}
			continue
		}
		var hint interface{ Hint() string }
		if err == nil || !strings.Contains(err.Error(), test.want) || !errors.As(err, &hint) || hint.Hint() == "" {
			t.Errorf("%q, token %v: error %v, want %q and a hint", test.address, test.hasToken, err, test.want)
		}
	}
}

func TestAdminRefusesListeners(t *testing.T) {
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("0123456789\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ address, token, want string }{
		{"0.0.0.0:0", "", "no token"},
		{"127.0.0.1:0", filepath.Join(t.TempDir(), "missing"), "missing"},
		{"127.0.0.1:0", short, "shorter than 16"},
		{"127.0.0.1:0", t.TempDir(), "admin token"},
	} {
		l, err := net.Listen("tcp", test.address)
		if err != nil {
			t.Fatal(err)
		}
		a := &Admin{Server: new(Server), TokenFile: test.token}
		err = a.Serve(t.Context(), l)
		var hint interface{ Hint() string }
		if err == nil || !strings.Contains(err.Error(), test.want) || !errors.As(err, &hint) || hint.Hint() == "" {
			t.Errorf("%s, token %q: error %v, want %q and a hint", test.address, test.token, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "0123456789") {
			t.Errorf("the error tells the token: %v", err)
		}
		if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
			c.Close()
			t.Errorf("%s is still listened on", test.address)
		}
	}
}

// Without a token, browsers must not be led here by other sites.
func TestAdminGuard(t *testing.T) {
	s := newScene(t, nil)
	for _, test := range []struct {
		method, path, host, header string
		want                       int
	}{
		{"GET", "/", "", "", 200},
		{"HEAD", "/", "", "", 200},
		{"GET", "/", "localhost:1", "", 200},
		{"GET", "/", "[::1]:9180", "", 200},
		{"GET", "/", "10.0.0.1", "", 200},
		{"GET", "/", "evil.test", "", 403},
		{"GET", "/status.json", "evil.test:9180", "", 403},
		{"GET", "/metrics", "127.0.0.1.evil.test", "", 403},
		{"POST", "/", "", "", 405},
		{"DELETE", "/status.json", "", "", 405},
		{"OPTIONS", "/status.json", "", "", 405},
		{"GET", "/status.json", "", "Sec-Fetch-Site: same-origin", 200},
		{"GET", "/status.json", "", "Sec-Fetch-Site: cross-site", 403},
		{"GET", "/debug/pprof/profile", "", "Sec-Fetch-Site: same-site", 403},
		{"GET", "/", "", "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: navigate", 200},
		{"GET", "/debug/pprof/heap", "", "Sec-Fetch-Site: cross-site\nSec-Fetch-Mode: navigate", 403},
		{"GET", "/debug/pprof/goroutine", "", "", 200},
		{"GET", "/debug/pprof/cmdline", "", "", 404}, // it may have secrets in it
		{"GET", "/page/style.css", "", "", 200},
		{"GET", "/page/status.html", "", "", 404},
		{"GET", "/page/", "", "", 404},
		{"GET", "/page/../admin.go", "", "", 404},
		{"GET", "/elsewhere", "", "", 404},
		{"GET", "/status.json?tunnels=-1", "", "", 400},
		{"GET", "/status.json?tunnels=99999999", "", "", 400},
		{"GET", "/status.json?tunnels=0", "", "", 200},
	} {
		answer := s.ask(test.method, test.path, test.host, test.header)
		if answer.StatusCode != test.want {
			t.Errorf("%s %s, host %q, %q: status %d, want %d", test.method, test.path, test.host, test.header, answer.StatusCode, test.want)
		}
		for _, name := range []string{"Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy", "X-Frame-Options"} {
			if answer.Header.Get(name) == "" {
				t.Errorf("%s %s: no %s", test.method, test.path, name)
			}
		}
		if got := answer.Header.Get("Access-Control-Allow-Origin"); got != "" {
			t.Errorf("%s %s: another origin may read it: %q", test.method, test.path, got)
		}
	}
}

// ask sends one request, with header fields a line each.
func (s *scene) ask(method, path, host, header string) *http.Response {
	s.t.Helper()
	request, err := http.NewRequest(method, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Host = host
	for line := range strings.Lines(header) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		request.Header.Set(name, value)
	}
	answer, err := s.client.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	io.Copy(io.Discard, answer.Body)
	answer.Body.Close()
	return answer
}

func TestAdminToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(testToken + "\n")
	s := newScene(t, func(s *scene) { s.admin.TokenFile = file })
	const other = "another-token-of-good-length"
	try := func(host, authorization string, want int) *http.Response {
		t.Helper()
		header := ""
		if authorization != "" {
			header = "Authorization: " + authorization
		}
		answer := s.ask("GET", "/metrics", host, header)
		if answer.StatusCode != want {
			t.Errorf("authorization %q: status %d, want %d", authorization, answer.StatusCode, want)
		}
		return answer
	}
	if challenge := try("", "", 401).Header.Values("WWW-Authenticate"); len(challenge) != 2 {
		t.Errorf("challenges %q, want two", challenge)
	}
	try("", "Bearer "+testToken, 200)
	try("edge.example.com", "Bearer "+testToken, 200)
	try("", "Basic "+basic("anybody", testToken), 200)
	try("", "Bearer "+testToken+"x", 401)
	try("", "Bearer ", 401)
	try("", "Bearer", 401)
	try("", "Basic "+basic(testToken, "wrong"), 401)
	try("", "Bearer "+other, 401)
	for _, path := range []string{"/", "/status.json", "/healthz", "/readyz", "/page/style.css", "/debug/pprof/heap"} {
		if answer := s.ask("GET", path, "", ""); answer.StatusCode != 401 {
			t.Errorf("%s without a token: status %d", path, answer.StatusCode)
		}
	}
	// A new one counts at once, and none at all lets nobody in.
	write(other)
	try("", "Bearer "+other, 200)
	try("", "Bearer "+testToken, 401)
	write("")
	try("", "Bearer ", 503)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	try("", "Bearer "+other, 503)
	if log := s.log.String(); !strings.Contains(log, "admin token") || strings.Contains(log, other) {
		t.Errorf("the log says %s", log)
	}
}

func basic(user, password string) string {
	r := &http.Request{Header: make(http.Header)}
	r.SetBasicAuth(user, password)
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Basic ")
}

func TestAdminOnUnixSocket(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("paths of sockets are too short there")
	}
	s := newScene(t, nil)
	path := filepath.Join(t.TempDir(), "a.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- (&Admin{Server: s.server}).Serve(ctx, l) }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	client := &http.Client{Transport: transport}
	answer, err := client.Get("http://any-name/healthz")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	if string(text) != "ok\n" || err != nil {
		t.Errorf("got %q, %v", text, err)
	}
	answer.Body.Close()
	transport.CloseIdleConnections()
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The end of the context ends requests that would take long.
func TestAdminEnds(t *testing.T) {
	s := newScene(t, nil)
	a := &Admin{Server: s.server}
	l := tunneltest.Listen(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Serve(ctx, l) }()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /debug/pprof/trace?seconds=60 HTTP/1.1\r\nHost: %s\r\n\r\n", l.Addr())
	head := make([]byte, 12)
	c.SetReadDeadline(time.Now().Add(scenePatience))
	if _, err := io.ReadFull(c, head); err != nil || string(head) != "HTTP/1.1 200" {
		t.Fatalf("got %q, %v", head, err)
	}
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(scenePatience):
		t.Fatal("it goes on")
	}
}

func TestReady(t *testing.T) {
	expired := func(s *scene) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		c := s.ca.Issue(s.t, "old.test")
		c.Leaf.NotAfter = time.Now().Add(-time.Hour)
		return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c, nil }
	}
	for _, test := range []struct {
		name  string
		tweak func(*scene)
		want  []string // in the answer; none: it is ready
	}{
		{"all is well", nil, nil},
		{"no certificate yet", func(s *scene) {
			s.config.Sites[1].Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errNoCertificate }
		}, []string{"certificate of raw.test: " + errNoCertificate.Error()}},
		{"a name that is refused", func(s *scene) {
			s.config.Sites[1].Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }
		}, []string{"certificate of raw.test: no site has this name"}},
		{"an expired certificate", func(s *scene) { s.config.Sites[0].Certificate = expired(s) }, []string{"certificate of a.test: expired on "}},
		{"a wildcard", func(s *scene) {
			s.config.Sites[1].Names = []string{"*.raw.test"}
			s.config.Sites[1].Certificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				if !strings.HasSuffix(hello.ServerName, ".raw.test") || hello.Context() == nil {
					return nil, fmt.Errorf("asked for %q", hello.ServerName)
				}
				return s.certificate("x.raw.test")(nil)
			}
		}, nil},
		{"nothing for who names nothing", func(s *scene) {
			s.config.Sites = append(s.config.Sites, &Site{Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
		}, nil},
		{"a certificate that takes for ever", func(s *scene) {
			s.admin.checkTimeout = 200 * time.Millisecond
			s.config.Sites[0].Certificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
				<-hello.Context().Done()
				return nil, hello.Context().Err()
			}
		}, []string{"certificate of a.test: context deadline exceeded"}},
		{"all at once", func(s *scene) {
			s.admin.Storage = func(context.Context) error { return errors.New("read-only file system") }
			s.config.Sites[0].Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errNoCertificate }
		}, []string{"storage: read-only file system", "certificate of a.test"}},
		{"a passed site has its own", func(s *scene) {
			s.config.Sites[1] = &Site{Names: []string{"raw.test"}, Pass: "127.0.0.1:1"}
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newScene(t, test.tweak)
			status, body := s.get("/readyz")
			want := 200
			if len(test.want) > 0 {
				want = 503
			}
			if status != want {
				t.Errorf("status %d, want %d: %s", status, want, body)
			}
			for _, part := range test.want {
				if !strings.Contains(body, part) {
					t.Errorf("the answer is %q, want %q", body, part)
				}
			}
			if status, body := s.get("/healthz"); status != 200 || body != "ok\n" {
				t.Errorf("healthz: %d %q", status, body)
			}
		})
	}
}

// Load balancers learn of a shutdown while tunnels still drain.
func TestReadyEnds(t *testing.T) {
	s := newScene(t, func(s *scene) { s.config.Drain = time.Minute })
	c := s.open("a.test", tunnelPath)
	s.echo(c, 1)
	if status, body := s.get("/readyz"); status != 200 {
		t.Fatalf("status %d: %s", status, body)
	}
	s.end()
	var status int
	var body string
	if !s.eventually(func() bool { status, body = s.get("/readyz"); return status == 503 }) {
		t.Errorf("status %d: %s", status, body)
	}
	if !strings.Contains(body, "shutting down") {
		t.Errorf("the answer is %q", body)
	}
	s.echo(c, 1)
	s.finish(c)
}

// A storage that hangs is asked once, and others still get an answer.
func TestReadyWithStorageThatHangs(t *testing.T) {
	asked := make(chan struct{}, 100)
	release := make(chan struct{})
	s := newScene(t, func(s *scene) {
		s.admin.checkTimeout = 300 * time.Millisecond
		s.admin.Storage = func(ctx context.Context) error {
			asked <- struct{}{}
			<-release
			return nil
		}
	})
	defer close(release)
	for range 3 {
		request, err := http.NewRequest("GET", s.url+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if answer, err := s.client.Do(request.WithContext(ctx)); err == nil {
			answer.Body.Close()
			t.Errorf("status %d while nobody knows", answer.StatusCode)
		}
		cancel()
	}
	if len(asked) != 1 {
		t.Errorf("the storage was asked %d times, want once", len(asked))
	}
	status, body := s.get("/readyz")
	if status != 503 || !strings.Contains(body, "storage: no answer in time") {
		t.Errorf("status %d: %s", status, body)
	}
}

func TestStatusJSON(t *testing.T) {
	until := time.Now().Add(50 * 24 * time.Hour).UTC().Truncate(time.Second)
	s := newScene(t, func(s *scene) {
		s.admin.Certificates = func() []CertificateStatus {
			return []CertificateStatus{{Name: "a.test", NotAfter: until, LastError: "the CA is away"}}
		}
		s.config.Limits.Connections = 1000
		s.still = true
	})
	const size = 70_000
	c := s.open("a.test", tunnelPath)
	s.echo(c, size)
	s.carried(size)
	s.server.traffic.measure(time.Now())
	s.echo(c, size)
	s.carried(2 * size)
	s.server.traffic.measure(s.server.traffic.measured.Add(2 * time.Second))
	s.server.log().Warn("something is wrong", "where", "<script>alert(1)</script>")
	code, body := s.get("/status.json")
	var got status
	if err := json.Unmarshal([]byte(body), &got); code != 200 || err != nil {
		t.Fatalf("status %d, %v: %s", code, err, body)
	}
	if !got.Ready || got.Version != "v1.2.3-test" || got.Connections != 1 || got.ConnectionsLimit != 1000 {
		t.Errorf("ready %v %v, version %q, connections %d of %d", got.Ready, got.Problems, got.Version, got.Connections, got.ConnectionsLimit)
	}
	if len(got.Tunnels) != 1 {
		t.Fatalf("%d tunnels, want 1", len(got.Tunnels))
	}
	tunnel := got.Tunnels[0]
	if tunnel.Site != "a.test" || tunnel.Route != "/tunnel" || tunnel.Sent != 2*size || tunnel.Received != 2*size ||
		tunnel.SendRate != size/2 || tunnel.ReceiveRate != size/2 || !strings.HasPrefix(tunnel.Client, "127.0.0.1:") {
		t.Errorf("tunnel %+v", tunnel)
	}
	route := got.Sites[0].Routes[0]
	if route.Label != "/tunnel" || route.Open != 1 || route.Sent != 2*size || route.Target != s.config.Sites[0].Routes[0].Target {
		t.Errorf("route %+v", route)
	}
	if len(got.Certificates) != 1 || !got.Certificates[0].NotAfter.Equal(until) {
		t.Errorf("certificates %+v", got.Certificates)
	}
	if len(got.Log) != 1 || got.Log[0].Message != "something is wrong" || got.Log[0].Attrs[0].Key != "where" {
		t.Errorf("log %+v", got.Log)
	}
	if strings.Contains(body, "hush-hush") {
		t.Error("it tells the query of a path, which may be a secret")
	}

	code, page := s.get("/")
	if code != 200 {
		t.Fatalf("status %d: %s", code, page)
	}
	for _, want := range []string{"a.test", "raw.test", "140 kB", "35 kB/s", tunnel.Client, "49 days", "the CA is away", "something is wrong", "&lt;script&gt;"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if strings.Contains(page, "<script>alert") || strings.Contains(page, "hush-hush") {
		t.Error("the page has what it must not have")
	}
}

// Of many tunnels the busiest are shown.
func TestStatusOfManyTunnels(t *testing.T) {
	now := time.Now()
	var all []Tunnel
	for n := range 1000 {
		all = append(all, Tunnel{Site: fmt.Sprint(n), Begin: now.Add(time.Duration(n) * time.Second), SendRate: int64(n % 10), ReceiveRate: int64(n % 10)})
	}
	shown := busiest(all, 100)
	if len(shown) != 100 {
		t.Fatalf("%d are shown, want 100", len(shown))
	}
	for n, s := range shown {
		if s.SendRate != 9 || n > 0 && s.Begin.Before(shown[n-1].Begin) {
			t.Errorf("number %d is %+v", n, s)
		}
	}
}

// A config without sites' names, before anything runs.
func TestStatusBeforeRun(t *testing.T) {
	a := &Admin{Server: new(Server)}
	server := &http.Server{Handler: a.Handler()}
	l := tunneltest.Listen(t)
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	for path, want := range map[string]int{"/": 200, "/status.json": 200, "/metrics": 200, "/readyz": 503, "/healthz": 200} {
		answer, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != want {
			t.Errorf("%s: status %d, want %d", path, answer.StatusCode, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestHistory(t *testing.T) {
	s := newScene(t, nil)
	c := s.open("a.test", tunnelPath)
	var r recorder
	now := time.Now()
	r.record(s.server, now)
	s.echo(c, 20_000)
	s.carried(20_000)
	for n := range historySize + 10 {
		now = now.Add(2 * time.Second)
		r.record(s.server, now)
		if n == 0 {
			if got := r.recent().Samples; len(got) != 1 || got[0].SendRate != 10_000 || got[0].ReceiveRate != 10_000 || got[0].Tunnels != 1 {
				t.Fatalf("samples %+v", got)
			}
		}
	}
	h := r.recent()
	if len(h.Samples) != historySize || !h.Samples[historySize-1].Time.Equal(now) {
		t.Errorf("%d samples, the last of %v; want %d to %v", len(h.Samples), h.Samples[len(h.Samples)-1].Time, historySize, now)
	}
	if sent, received := h.latest(); sent != 0 || received != 0 {
		t.Errorf("at rest it is %d and %d bytes a second", sent, received)
	}
}

// Each tunnel leaves one line, which says all of it and nothing that is a secret.
func TestLogOfTunnels(t *testing.T) {
	s := newScene(t, nil)
	c := s.open("a.test", tunnelPath)
	s.echo(c, 1000)
	client := c.(interface{ LocalAddr() net.Addr }).LocalAddr().String()
	s.finish(c)
	get(s, "https://a.test/?token=hush-hush", 404)
	expectEnd(s, "a.test", "/nowhere")
	var lines []map[string]any
	complete := s.eventually(func() bool {
		lines = nil
		for line := range strings.Lines(s.log.String()) {
			var entry map[string]any
			if err := json.Unmarshal([]byte(line), &entry); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, entry)
		}
		return len(lines) >= 2
	})
	if !complete || len(lines) != 2 {
		t.Fatalf("the log is %s", s.log)
	}
	want := map[string]any{"msg": "tunnel closed", "client": client, "sni": "a.test", "site": "a.test", "route": "/tunnel", "sent": 1000.0, "received": 1000.0, "reason": "client_closed"}
	for key, value := range want {
		if lines[0][key] != value {
			t.Errorf("%s is %v, want %v", key, lines[0][key], value)
		}
	}
	if d, err := time.ParseDuration(fmt.Sprint(lines[0]["duration"])); err != nil || d <= 0 {
		t.Errorf("duration %v, %v", d, err)
	}
	if lines[1]["msg"] != "tunnel failed" || lines[1]["reason"] != "dial_refused" || lines[1]["site"] != "a.test" || lines[1]["route"] != "/nowhere" || !strings.Contains(fmt.Sprint(lines[1]["error"]), "refused") {
		t.Errorf("the line of the failed one is %v", lines[1])
	}
	for _, secret := range []string{"hush-hush", "do-not-tell"} {
		if strings.Contains(s.log.String(), secret) {
			t.Errorf("the log tells a secret: %s", s.log)
		}
	}
	if entries := s.admin.Recent.Entries(); len(entries) != 1 || entries[0].Message != "tunnel failed" {
		t.Errorf("remembered are %+v", entries)
	}
}
