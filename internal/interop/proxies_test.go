//go:build interop

package interop

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
)

// writeFile puts text into a new file of the test.
func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// secrets are PEM files for localhost; both is certificate and key in one, as haproxy wants it.
type secrets struct {
	tunneltest.Files
	both string
}

func newSecrets(t testing.TB) secrets {
	t.Helper()
	ca := tunneltest.NewCA(t)
	f := ca.Write(t, t.TempDir(), ca.Issue(t, "localhost", "127.0.0.1"))
	var both []byte
	for _, name := range []string{f.Cert, f.Key} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, data...)
	}
	return secrets{f, writeFile(t, "both.pem", string(both))}
}

func (s secrets) server() string { return "tls;cert=" + s.Cert + ";key=" + s.Key }
func (s secrets) client() string { return "tls;sni=localhost;ca=" + s.CA }

// nginxHead begins the config of an nginx that keeps to the folder %[1]s; a server and a brace have to follow.
const nginxHead = `
daemon off;
master_process off;
worker_processes 1;
pid %[1]s/pid;
error_log stderr warn;
events { worker_connections 512; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
`

const nginxConf = nginxHead + `	server {
		listen %[2]s;
		listen %[3]s ssl;
		ssl_certificate %[4]s;
		ssl_certificate_key %[5]s;
		location /tunnel {
			proxy_pass http://%[6]s;
			proxy_http_version 1.1;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection "upgrade";
			proxy_set_header Host $host;
			proxy_read_timeout 3s;
		}
	}
}
`

// startNginx puts nginx in front of edge, which is given up when it says nothing for 3 seconds.
func startNginx(t testing.TB, s secrets, edge string) (plain, secure string) {
	t.Helper()
	dir := t.TempDir()
	plain, secure = freePort(), freePort()
	conf := writeFile(t, "nginx.conf", fmt.Sprintf(nginxConf, dir, plain, secure, s.Cert, s.Key, edge))
	start(t, "nginx", nil, "-p", dir, "-e", "stderr", "-c", conf).awaitPort(t, secure)
	return plain, secure
}

func TestNginx(t *testing.T) {
	g := newTarget(t)
	s := newSecrets(t)
	_, edge := startRaimons(t, g.address, wsOption)
	plain, secure := startNginx(t, s, edge)
	for _, c := range []struct{ name, remote, option string }{
		{"ws", plain, wsOption},
		{"wss", secure, wsOption + ";" + s.client()},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, client := startRaimonc(t, c.remote, c.option+";ping=1s")
			attempts := g.streams(client)
			attempts["late reply"] = func(t testing.TB) error { return tryUpload(t, client, 1000, 0, 5*time.Second, megabyte) }
			attempts["idle"] = func(t testing.TB) error { return tryIdle(t, client, 5*time.Second) }
			attempts["reset by target"] = func(t testing.TB) error { return tryTargetReset(t, client) }
			attempts["reset by client"] = func(t testing.TB) error { return g.tryClientReset(t, client) }
			all(t, attempts)
		})
		t.Run(c.name+" without pings", func(t *testing.T) {
			t.Parallel()
			// The counterproof: it is the Pings that keep the idle tunnel open.
			_, client := startRaimonc(t, c.remote, c.option+";ping=off")
			if err := tryIdle(t, client, 5*time.Second); err == nil || !isReset(err) {
				t.Errorf("after the proxy's time limit: %v, want a reset", err)
			}
		})
	}
}

const haproxyConf = `
global
	maxconn 500
defaults
	timeout connect 5s
	timeout client 30s
	timeout server 30s
	timeout tunnel 30s
frontend http
	mode http
	bind %[1]s
	default_backend http
frontend https
	mode http
	bind %[2]s ssl crt %[4]s
	default_backend http
backend http
	mode http
	server edge %[5]s
frontend tcp
	mode tcp
	bind %[3]s
	default_backend tcp
backend tcp
	mode tcp
	server edge %[6]s
`

func TestHaproxy(t *testing.T) {
	g := newTarget(t)
	s := newSecrets(t)
	_, edge := startRaimons(t, g.address, wsOption)
	_, secureEdge := startRaimons(t, g.address, wsOption+";"+s.server())
	plain, secure, tcp := freePort(), freePort(), freePort()
	conf := writeFile(t, "haproxy.cfg", fmt.Sprintf(haproxyConf, plain, secure, tcp, s.both, edge, secureEdge))
	start(t, "haproxy", nil, "-db", "-f", conf).awaitPort(t, tcp)
	for _, c := range []struct{ name, remote, option string }{
		{"http ws", plain, wsOption},
		{"http wss", secure, wsOption + ";" + s.client()},
		{"tcp wss", tcp, wsOption + ";" + s.client()},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, client := startRaimonc(t, c.remote, c.option)
			attempts := g.streams(client)
			attempts["reset by target"] = func(t testing.TB) error { return tryTargetReset(t, client) }
			attempts["reset by client"] = func(t testing.TB) error { return g.tryClientReset(t, client) }
			all(t, attempts)
		})
	}
}

func TestStunnelServer(t *testing.T) {
	g := newTarget(t)
	s := newSecrets(t)
	edge := freePort()
	startStunnel(t, fmt.Sprintf("accept = %s\nconnect = %s\ncert = %s\nkey = %s\n", edge, g.address, s.Cert, s.Key), edge)
	_, client := startRaimonc(t, edge, s.client())
	all(t, g.streams(client))
}

func TestStunnelClient(t *testing.T) {
	g := newTarget(t)
	s := newSecrets(t)
	_, edge := startRaimons(t, g.address, s.server())
	client := freePort()
	startStunnel(t, fmt.Sprintf("client = yes\naccept = %s\nconnect = %s\nsni = localhost\nCAfile = %s\nverifyChain = yes\n", client, edge, s.CA), client)
	all(t, g.streams(client))
}

func startStunnel(t testing.TB, service, address string) {
	t.Helper()
	conf := writeFile(t, "stunnel.conf", "foreground = yes\npid =\ndebug = notice\nsyslog = no\n[raimon]\n"+service)
	start(t, "stunnel4", nil, conf).awaitPort(t, address)
}

// tryIdle says nothing for a while and then wants an echo.
func tryIdle(t testing.TB, address string, idle time.Duration) error {
	t.Helper()
	c := dial(t, address, "echo")
	defer c.Close()
	got := make([]byte, 1)
	for range 2 {
		if _, err := c.Write([]byte{'x'}); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		if _, err := io.ReadFull(c, got); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		c.SetReadDeadline(time.Now().Add(idle))
		if n, err := c.Read(got); n > 0 || !os.IsTimeout(err) {
			return fmt.Errorf("while idle: %d bytes, %w", n, err)
		}
		c.SetReadDeadline(time.Now().Add(patience))
	}
	return nil
}

// tryTargetReset wants a reset that the target makes in the middle of a transfer to arrive as an error.
func tryTargetReset(t testing.TB, address string) error {
	t.Helper()
	c := dial(t, address, "reset 100000")
	defer c.Close()
	n, err := io.Copy(io.Discard, c)
	if !isReset(err) {
		return fmt.Errorf("the target's reset arrived as %v after %d bytes", err, n)
	}
	return nil
}

// tryClientReset wants the same the other way.
func (g *target) tryClientReset(t testing.TB, address string) error {
	t.Helper()
	id := newID()
	c := dial(t, address, "finish 1 %s", id)
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return err
	}
	if _, err := io.CopyN(c, stream(100_000), 100_000); err != nil {
		return err
	}
	c.SetLinger(0)
	c.Close()
	select {
	case report := <-g.report(id):
		if !strings.Contains(report, "reset") {
			return fmt.Errorf("the client's reset arrived as %q", report)
		}
	case <-time.After(patience):
		return fmt.Errorf("the client's reset did not arrive")
	}
	return nil
}
