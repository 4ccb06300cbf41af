package edge

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// again is the transport of clients that use a connection for one tunnel after the other.
func again(ca *tunneltest.CA, name, path, token string) tunnel.Transport {
	w := &tunnel.WebSocket{Host: name, Path: path, Reuse: true, Wait: true}
	if token != "" {
		w.Token = func(context.Context) (string, error) { return token, nil }
	}
	return tunnel.Transport{clientTLS(ca, name), w}
}

// goesOn carries one tunnel over c, which says word, and tells that the edge waits for the next one.
func goesOn(t testing.TB, c tunnel.Conn, begin func(tunnel.Conn) error) (next tunnel.Conn) {
	t.Helper()
	if err := begin(c); err != nil {
		t.Fatal(err)
	}
	if err := tunnel.AwaitOpen(c); err != nil {
		t.Fatal(err)
	}
	l := tunneltest.Listen(t)
	program, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	local, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client := &tunnel.Forwarder{
		Open: func(context.Context, tunnel.Conn, *tunnel.Info) (bare, _ tunnel.Conn, err error) { return c, c, nil },
		Keep: func(_ *tunnel.Session, _, c tunnel.Conn) bool { next = c; return true },
	}
	ended := make(chan error, 1)
	go func() { ended <- client.Handle(t.Context(), local.(*net.TCPConn)) }()
	io.WriteString(program, "hello")
	program.(*net.TCPConn).CloseWrite()
	io.Copy(io.Discard, program)
	if err := <-ended; err != nil || next == nil {
		t.Fatalf("the connection does not go on: %v", err)
	}
	return next
}

func takeOwn(c tunnel.Conn) error { return tunnel.Take(c, "") }

// clientOf is a connection to the edge on which that waits.
func clientOf(t testing.TB, tr tunnel.Transport, address string) tunnel.Conn {
	t.Helper()
	bare := dialFrom(t, "127.0.0.1", address)
	c, err := tr.Client(t.Context(), bare)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bare.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// A target hears the same of the client in each tunnel of a connection.
func TestProxyHeaderOfNextTunnel(t *testing.T) {
	tunneltest.NoLeaks(t)
	ca := tunneltest.NewCA(t)
	target, headers := headed(t)
	site := testSite(t, ca, "edge.test")
	site.Routes = []*Route{{Path: "/tunnel", Target: target, Proxy: 2}}
	edge := run(t, &Config{Sites: []*Site{site}})
	tr := again(ca, "edge.test", "/tunnel", "")
	for _, first := range []func(tunnel.Conn) error{takeOwn, tunnel.Echo} {
		c := goesOn(t, clientOf(t, tr, edge.address), first)
		if len(headers) > 0 {
			wantDetails(t, <-headers, "edge.test", "")
		}
		c = goesOn(t, c, takeOwn)
		wantDetails(t, <-headers, "edge.test", "")
		c.Close()
	}
}

// The log says once whose tunnel it was, also of a site without a name.
func TestLogOfNextTunnel(t *testing.T) {
	tunneltest.NoLeaks(t)
	tokens, _ := newTokens(t, "bob "+HashToken("bob's-token"))
	if err := tokens.Load(); err != nil {
		t.Fatal(err)
	}
	ca := tunneltest.NewCA(t)
	route := &Route{Path: "/tunnel", Target: tunneltest.Echo(t), Access: Access{Tokens: tokens}}
	edge := run(t, &Config{Listeners: []Listener{{Address: "127.0.0.1:0", Plain: true}}, Sites: []*Site{{Routes: []*Route{route}}}})
	c := clientOf(t, again(ca, "edge.test", "/tunnel", "bob's-token")[1:], edge.address)
	for range 3 {
		c = goesOn(t, c, takeOwn)
	}
	c.Close()
	within(t, patience, "three tunnels are in the log", func() bool { return len(edge.log.with("tunnel closed")) == 3 })
	for _, line := range edge.log.with("tunnel closed") {
		if strings.Count(line, "user=bob") != 1 {
			t.Errorf("logged %q", line)
		}
	}
}

// Who is not let in any more gets no further tunnel on a connection that is there, in the pool or after a tunnel.
func TestNextTunnelAfterRevocation(t *testing.T) {
	tunneltest.NoLeaks(t)
	ca := tunneltest.NewCA(t)
	one := newAuthority(t, "one")
	certificate := one.client(t, "alice")
	for way, revoke := range map[string]func(*Tokens, *Clients){
		"token": func(tokens *Tokens, _ *Clients) {
			write(t, tokens.File, []byte("carol "+HashToken("carol's-token")))
			if err := tokens.Load(); err != nil {
				t.Fatal(err)
			}
		},
		"certificate": func(_ *Tokens, clients *Clients) {
			write(t, clients.CRL, listPEM(one.list(t, []*x509.Certificate{certificate.Leaf})))
			clients.load(t)
		},
	} {
		t.Run(way, func(t *testing.T) {
			tokens, _ := newTokens(t, "bob "+HashToken("bob's-token"))
			if err := tokens.Load(); err != nil {
				t.Fatal(err)
			}
			clients, _ := newClients(t, listPEM(one.list(t, nil)), one)
			clients.load(t)
			site := testSite(t, ca, "edge.test")
			site.Clients = clients
			site.Routes = []*Route{{Path: "/tunnel", Target: tunneltest.Echo(t), Access: Access{Tokens: tokens}}}
			edge := run(t, &Config{Sites: []*Site{site}})
			tr := again(ca, "edge.test", "/tunnel", "bob's-token")
			tr[0].(*tunnel.TLS).ClientConfig.Certificates = []tls.Certificate{certificate}
			fresh, used := clientOf(t, tr, edge.address), goesOn(t, clientOf(t, tr, edge.address), takeOwn)
			used = goesOn(t, used, takeOwn)
			revoke(tokens, clients)
			for _, c := range []tunnel.Conn{fresh, used} {
				if err := takeOwn(c); err != nil {
					t.Fatal(err)
				}
				err := tunnel.AwaitOpen(c)
				var closed *tunnel.CloseError
				if !errors.As(err, &closed) || closed.Code != 1001 {
					t.Errorf("after that: %v, want Close 1001", err)
				}
			}
			edge.stop()
			if lines := edge.log.with("level=WARN"); len(lines) > 0 {
				t.Errorf("logged %q", lines)
			}
		})
	}
}

// Connections that wait for their next tunnel keep nobody out, however many there may be.
func TestNextTunnelKeepsNobodyOut(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		t.Run(fmt.Sprint("refuse=", refuse), func(t *testing.T) {
			tunneltest.NoLeaks(t)
			ca := tunneltest.NewCA(t)
			site := testSite(t, ca, "edge.test")
			site.Routes = []*Route{{Path: "/tunnel", Target: tunneltest.Echo(t)}}
			edge := run(t, &Config{Sites: []*Site{site}, Limits: Limits{Connections: 3, Refuse: refuse}})
			tr := again(ca, "edge.test", "/tunnel", "")
			var idle []tunnel.Conn
			for range 2 {
				idle = append(idle, goesOn(t, clientOf(t, tr, edge.address), takeOwn))
			}
			for range 3 {
				c := clientOf(t, tr, edge.address)
				if err := takeOwn(c); err != nil {
					t.Fatal(err)
				}
				if err := tunnel.AwaitOpen(c); err != nil {
					t.Fatal(err)
				}
			}
			for n, c := range idle {
				err := tunnel.AwaitOpen(c)
				var closed *tunnel.CloseError
				if !errors.As(err, &closed) || closed.Code != 1001 {
					t.Errorf("idle connection %d: %v, want Close 1001", n, err)
				}
			}
		})
	}
}
