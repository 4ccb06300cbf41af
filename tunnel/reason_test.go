package tunnel_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// linesTo hands on each line of a log.
type linesTo chan map[string]any

func (l linesTo) Write(p []byte) (int, error) {
	line := make(map[string]any)
	err := json.Unmarshal(p, &line)
	l <- line
	return len(p), err
}

// ends is a tunnel that is open, and how it may end.
type ends struct {
	client   tunnel.Conn // speaks the transport
	bare     *net.TCPConn
	target   *net.TCPConn
	shutDown context.CancelFunc
}

// The log tells who ended a tunnel, and how.
func TestReasonOfEnd(t *testing.T) {
	ca := tunneltest.NewCA(t)
	transports := make(map[string]tunneltest.Transport)
	for _, tr := range tunneltest.Transports(t, ca) {
		transports[tr.Name] = tr
	}
	reset := func(c *net.TCPConn) {
		c.SetLinger(0)
		c.Close()
	}
	for name, test := range map[string]struct {
		transport, message, reason string
		end                        func(*testing.T, *ends)
	}{
		"client ends": {"tls", "tunnel closed", "client_closed", func(t *testing.T, e *ends) {
			e.client.CloseWrite()
			wantEnd(t, e.target)
			e.target.Close()
		}},
		"target ends": {"ws-skip", "tunnel closed", "target_closed", func(t *testing.T, e *ends) {
			e.target.CloseWrite()
			wantEnd(t, e.client)
			e.client.CloseWrite()
		}},
		"client resets":     {"tcp", "tunnel reset", "client_reset", func(_ *testing.T, e *ends) { reset(e.bare) }},
		"client resets wss": {"wss-skip", "tunnel reset", "client_reset", func(_ *testing.T, e *ends) { reset(e.bare) }},
		"target resets":     {"tcp", "tunnel reset", "target_reset", func(_ *testing.T, e *ends) { reset(e.target) }},
		"target resets tls": {"tls", "tunnel reset", "target_reset", func(_ *testing.T, e *ends) { reset(e.target) }},
		"client is cut":     {"tls", "tunnel failed", "client_cut", func(_ *testing.T, e *ends) { e.bare.Close() }},
		"client closes with 1000": {"ws-skip", "tunnel failed", "client_close_code", func(t *testing.T, e *ends) {
			if _, err := io.WriteString(e.bare, "\x88\x82\x00\x00\x00\x00\x03\xe8"); err != nil { // masked with zeros
				t.Fatal(err)
			}
		}},
		"nobody says anything more": {"tcp", "tunnel failed", "silent", func(_ *testing.T, e *ends) { e.client.CloseWrite() }},
		"shutdown":                  {"ws-skip", "tunnel failed", "shutdown", func(_ *testing.T, e *ends) { e.shutDown() }},
	} {
		t.Run(name, func(t *testing.T) {
			tr, ok := transports[test.transport]
			if !ok {
				t.Fatalf("there is no transport %s", test.transport)
			}
			lines := make(linesTo, 1)
			accepted := make(chan *net.TCPConn, 1)
			over := make(chan struct{})
			target := tunneltest.Serve(t, func(c *net.TCPConn) { accepted <- c; <-over })
			defer close(over)
			l := tunneltest.Listen(t)
			ctx, shutDown := context.WithCancel(t.Context())
			f := &tunnel.Forwarder{Accept: tr.Server, Dial: dialTCP(target), Drain: -1, Linger: 300 * time.Millisecond, Log: slog.New(slog.NewJSONHandler(lines, nil))}
			served := make(chan error, 1)
			go func() { served <- f.Serve(ctx, l) }()
			defer func() { shutDown(); <-served }()
			bare, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer bare.Close()
			bare.SetDeadline(time.Now().Add(20 * time.Second))
			c, err := tr.Client.Client(t.Context(), bare.(tunnel.Conn))
			if err != nil {
				t.Fatal(err)
			}
			e := &ends{client: c, bare: bare.(*net.TCPConn), target: <-accepted, shutDown: shutDown}
			e.target.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.WriteString(c, "hello"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(e.target, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}

			test.end(t, e)

			select {
			case line := <-lines:
				if line["msg"] != test.message || line["reason"] != test.reason {
					t.Errorf("got %v, want %q because of %s", line, test.message, test.reason)
				}
			case <-time.After(20 * time.Second):
				t.Error("no line")
			}
		})
	}
}

func wantEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("got %d bytes, %v, want the end", n, err)
	}
}

// The log tells why there was no tunnel.
func TestReasonOfNoTunnel(t *testing.T) {
	refusing := tunneltest.Listen(t)
	dead := refusing.Addr().String()
	refusing.Close()
	ca := tunneltest.NewCA(t)
	cert := ca.Issue(t, "localhost")
	for name, test := range map[string]struct {
		f    *tunnel.Forwarder
		says string
		want string
	}{
		"nobody listens":   {&tunnel.Forwarder{Dial: dialTCP(dead)}, "hello", "dial_refused"},
		"nobody answers":   {&tunnel.Forwarder{Dial: dialNever, Timeout: 50 * time.Millisecond}, "hello", "dial_timeout"},
		"half a handshake": {&tunnel.Forwarder{Accept: tunnel.Transport{&tunnel.TLS{ServerConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}}, Timeout: 50 * time.Millisecond}, "\x16\x03", "timeout"},
		"a word of the caller's": {&tunnel.Forwarder{Accept: tunnel.Transport{&tunnel.WebSocket{}}, Timeout: 50 * time.Millisecond,
			Reason: func(_ *tunnel.Info, err error) string { return fmt.Sprintf("because_%t", tunnel.IsTimeout(err)) }}, "GET", "because_true"},
	} {
		t.Run(name, func(t *testing.T) {
			lines := make(linesTo, 1)
			f := test.f
			f.Log = slog.New(slog.NewJSONHandler(lines, &slog.HandlerOptions{Level: slog.LevelDebug}))
			c, accepted := tunneltest.Pair(t)
			if _, err := io.WriteString(c, test.says); err != nil {
				t.Fatal(err)
			}
			if err := f.Handle(t.Context(), accepted); err == nil {
				t.Error("there was a tunnel")
			}
			if line := <-lines; line["reason"] != test.want {
				t.Errorf("got %v, want %s", line, test.want)
			}
		})
	}
}

func dialNever(ctx context.Context, _ *tunnel.Info) (tunnel.Conn, error) {
	<-ctx.Done()
	return nil, context.Cause(ctx)
}
