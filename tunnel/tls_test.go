package tunnel_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// handshake shakes hands over a new loopback connection, sends a byte each way, so that tickets
// arrive, and returns what the edge knows of the connection.
func handshake(t testing.TB, client, server *tunnel.TLS) (*tunnel.Info, error) {
	t.Helper()
	dialed, accepted := tunneltest.Pair(t)
	info := &tunnel.Info{}
	served := make(chan error, 1)
	go func() {
		c, err := server.Server(context.Background(), accepted, info)
		if err == nil {
			_, err = io.CopyN(c, c, 1)
		} else {
			accepted.Close()
		}
		served <- err
	}()
	c, err := client.Client(context.Background(), dialed)
	if err == nil {
		if _, err = c.Write([]byte("x")); err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
	}
	dialed.Close()
	if serr := <-served; err == nil && serr != nil {
		t.Errorf("edge: %v", serr)
	}
	return info, err
}

func TestSecondConnectionResumes(t *testing.T) {
	ca := tunneltest.NewCA(t)
	server := &tunnel.TLS{ServerConfig: &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "localhost")}}}
	client := &tunnel.TLS{ClientConfig: &tls.Config{RootCAs: ca.Pool, ServerName: "localhost", ClientSessionCache: &tunnel.Tickets{}}}
	for i, want := range []bool{false, true, true} {
		info, err := handshake(t, client, server)
		if err != nil {
			t.Fatal(err)
		}
		if info.TLS.DidResume != want {
			t.Errorf("connection %d: resumed %v, want %v", i, info.TLS.DidResume, want)
		}
		if info.ServerName != "localhost" {
			t.Errorf("connection %d: server name %q", i, info.ServerName)
		}
	}
}

// A pin is checked on a resumed connection too: a session from before must not get around it.
func TestPin(t *testing.T) {
	ca := tunneltest.NewCA(t)
	cert := ca.Issue(t, "localhost")
	server := &tunnel.TLS{ServerConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	right := sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo)
	wrong := sha256.Sum256([]byte("another key"))
	tickets := &tunnel.Tickets{}
	client := func(pin [32]byte) *tunnel.TLS {
		return &tunnel.TLS{ClientConfig: &tls.Config{
			ServerName: "localhost", InsecureSkipVerify: true, ClientSessionCache: tickets,
			VerifyConnection: tunnel.VerifyPins([][]byte{pin[:]}),
		}}
	}
	if _, err := handshake(t, client(right), server); err != nil {
		t.Fatal(err)
	}
	var pinError *tunnel.PinError
	if _, err := handshake(t, client(wrong), server); !errors.As(err, &pinError) {
		t.Errorf("with a session at hand: got %v, want a PinError", err)
	}
	if _, err := handshake(t, client(wrong), server); !errors.As(err, &pinError) {
		t.Errorf("without a session: got %v, want a PinError", err)
	}
}

// A CA that probes is answered and then left alone, whatever else the edge demands of clients.
func TestChallengeProbe(t *testing.T) {
	ca := tunneltest.NewCA(t)
	config := &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "localhost")}, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAnyClientCert}
	tunnel.ServeChallenges(config)
	server := &tunnel.TLS{ServerConfig: config}

	dialed, accepted := tunneltest.Pair(t)
	served := make(chan error, 1)
	go func() {
		c, err := server.Server(context.Background(), accepted, &tunnel.Info{})
		if c != nil {
			t.Error("a probe becomes a tunnel")
		}
		served <- err
	}()
	probe := tls.Client(dialed, &tls.Config{RootCAs: ca.Pool, ServerName: "localhost", NextProtos: []string{"acme-tls/1"}})
	if err := probe.Handshake(); err != nil {
		t.Fatal(err)
	}
	if got := probe.ConnectionState().NegotiatedProtocol; got != "acme-tls/1" {
		t.Errorf("negotiated %q", got)
	}
	if n, err := probe.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the handshake: %d bytes, %v, want the end", n, err)
	}
	if err := <-served; err == nil {
		t.Error("the edge goes on after a probe")
	}

	// Who offers something else as well is no probe.
	client := &tunnel.TLS{ClientConfig: &tls.Config{RootCAs: ca.Pool, ServerName: "localhost", NextProtos: []string{"acme-tls/1", "h2"},
		Certificates: []tls.Certificate{ca.Issue(t, "client")}}}
	info, err := handshake(t, client, server)
	if err != nil || info.TLS.NegotiatedProtocol != "h2" {
		t.Errorf("offer of h2 and acme-tls/1: %v, %+v", err, info.TLS)
	}
}

// The edge tells those who do not speak TLS what is wrong.
func TestPlainTextOnTLSPort(t *testing.T) {
	ca := tunneltest.NewCA(t)
	server := &tunnel.TLS{ServerConfig: &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "localhost")}}}
	for _, test := range []struct{ sent, want string }{
		{"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 400 Bad Request"},
		{"SSH-2.0-OpenSSH\r\n", ""},
	} {
		dialed, accepted := tunneltest.Pair(t)
		go io.WriteString(dialed, test.sent)
		if _, err := server.Server(context.Background(), accepted, &tunnel.Info{}); err == nil {
			t.Errorf("%q: a TLS connection", test.sent)
		}
		accepted.Close()
		got := make([]byte, len(test.want))
		if _, err := io.ReadFull(dialed, got); test.want != "" && string(got) != test.want {
			t.Errorf("%q: got %q, %v, want %q", test.sent, got, err, test.want)
		}
		if test.want == "" {
			var op *net.OpError
			if _, err := dialed.Read(make([]byte, 1)); !errors.As(err, &op) {
				t.Errorf("%q: got %v, want a reset", test.sent, err)
			}
		}
	}
}

// An edge that is about to end finishes the handshakes that clients have begun, since these do not wait for its word. It does not
// wait for those who say nothing.
func TestHandshakeWhileDraining(t *testing.T) {
	ca := tunneltest.NewCA(t)
	synctest.Test(t, func(t *testing.T) {
		client, accepted := tunneltest.Pipe()
		silent, alsoAccepted := tunneltest.Pipe()
		target, dialed := tunneltest.Pipe()
		f := &tunnel.Forwarder{Accept: tunnel.Transport{&tunnel.TLS{ServerConfig: &tls.Config{Certificates: []tls.Certificate{ca.Issue(t, "localhost")}}}},
			Dial: func(context.Context, *tunnel.Info) (tunnel.Conn, error) { return dialed, nil }}
		draining, drain := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		for _, c := range []tunnel.Conn{accepted, alsoAccepted} {
			f.Start(t.Context(), draining, c, func(_ *tunnel.Session, err error) { ended <- err })
		}
		synctest.Wait()

		begin := time.Now()
		drain()

		c, err := (&tunnel.TLS{ClientConfig: &tls.Config{InsecureSkipVerify: true}}).Client(t.Context(), client)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "hello")
		c.CloseWrite()
		if got, err := io.ReadAll(target); err != nil || string(got) != "hello" {
			t.Errorf("the target got %q, %v", got, err)
		}
		if err := <-ended; !errors.Is(err, tunnel.ErrDrained) || time.Since(begin) > 2*time.Second {
			t.Errorf("who says nothing ends with %v after %v", err, time.Since(begin))
		}
		silent.Close()
		target.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		c.Close()
	})
}
