package tunnel_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

const upgradeHead = "GET /ws?a=b HTTP/1.1\r\nHost: edge.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

var edgeLayer = &tunnel.WebSocket{Host: "edge.example.com", Path: "/ws?a=b"}

// visit runs layer on one end of a connection and returns the other.
func visit(t testing.TB, layer *tunnel.WebSocket) (visitor *net.TCPConn, result chan served) {
	t.Helper()
	dialed, accepted := tunneltest.Pair(t)
	dialed.SetDeadline(time.Now().Add(20 * time.Second))
	result = make(chan served, 1)
	go func() {
		c, err := layer.Server(context.Background(), accepted, &tunnel.Info{})
		if err != nil {
			accepted.Close()
		}
		result <- served{c, err}
	}()
	return dialed, result
}

type served struct {
	tunnel.Conn
	err error
}

func TestUpgradeIsOnlyForTheTunnel(t *testing.T) {
	for name, edit := range map[string][2]string{
		"other path":       {"/ws?a=b", "/"},
		"no query":         {"/ws?a=b", "/ws"},
		"other query":      {"/ws?a=b", "/ws?a=c"},
		"other host":       {"edge.example.com", "www.example.com"},
		"POST":             {"GET", "POST"},
		"HTTP/1.0":         {"HTTP/1.1", "HTTP/1.0"},
		"no upgrade":       {"Upgrade: websocket", "Upgrade: h2c"},
		"no connection":    {"Connection: Upgrade", "Connection: keep-alive"},
		"other version":    {"Version: 13", "Version: 8"},
		"short key":        {"dGhlIHNhbXBsZSBub25jZQ==", "dGhl"},
		"no key":           {"Sec-WebSocket-Key", "X-Key"},
		"two keys":         {"Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="},
		"a body to follow": {"Upgrade: websocket", "Upgrade: websocket\r\nContent-Length: 3"},
	} {
		t.Run(name, func(t *testing.T) {
			visitor, result := visit(t, edgeLayer)
			io.WriteString(visitor, strings.Replace(upgradeHead, edit[0], edit[1], 1))
			if strings.Contains(name, "body") {
				io.WriteString(visitor, "abc")
			}
			answer, err := http.ReadResponse(bufio.NewReader(visitor), nil)
			if err != nil || answer.StatusCode != http.StatusNotFound {
				t.Fatalf("got %v, %v, want 404", answer, err)
			}
			visitor.Close()
			if r := <-result; !errors.Is(r.err, tunnel.ErrNoTunnel) {
				t.Errorf("got %v, want ErrNoTunnel", r.err)
			}
		})
	}
}

func TestUpgradeIsTakenFrom(t *testing.T) {
	for name, edit := range map[string][2]string{
		"the plain request": {"", ""},
		"a host with port":  {"Host: edge.example.com", "Host: Edge.Example.com:8443"},
		"lower case":        {"Connection: Upgrade", "connection: keep-alive, upgrade"},
		"an odd spelling":   {"Upgrade: websocket", "Upgrade: WebSocket"},
	} {
		t.Run(name, func(t *testing.T) {
			visitor, result := visit(t, edgeLayer)
			io.WriteString(visitor, strings.Replace(upgradeHead, edit[0], edit[1], 1))
			answer, err := http.ReadResponse(bufio.NewReader(visitor), nil)
			if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("got %v, %v, want 101", answer, err)
			}
			if got := answer.Header.Get("Sec-WebSocket-Accept"); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" { // RFC 6455, section 1.3
				t.Errorf("Sec-WebSocket-Accept: %s", got)
			}
			if got := answer.Header.Get("Raimon"); got != "" {
				t.Errorf("Raimon: %q to a client that did not offer it", got)
			}
			if r := <-result; r.err != nil {
				t.Errorf("got %v", r.err)
			}
		})
	}
}

// A tunnel may be the tenth request of a connection, and bring its first frames along.
func TestUpgradeAfterOtherRequests(t *testing.T) {
	visitor, result := visit(t, edgeLayer)
	answers := bufio.NewReader(visitor)
	for range 9 {
		io.WriteString(visitor, "GET / HTTP/1.1\r\nHost: edge.example.com\r\n\r\n")
		answer, err := http.ReadResponse(answers, nil)
		if err != nil || answer.StatusCode != http.StatusNotFound {
			t.Fatalf("got %v, %v, want 404", answer, err)
		}
		io.Copy(io.Discard, answer.Body)
	}
	data := bytes.Repeat([]byte("came together with the head. "), 500)
	frame := ws.MustCompileFrame(ws.MaskFrame(ws.NewBinaryFrame(data)))
	go visitor.Write(append([]byte(upgradeHead), frame...))
	if answer, err := http.ReadResponse(answers, nil); err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %v, %v, want 101", answer, err)
	}
	r := <-result
	if r.err != nil {
		t.Fatal(r.err)
	}
	got := make([]byte, len(data))
	if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("got %d bytes, %v, and they differ", len(got), err)
	}
}

// A prober that speaks HTTP/2 meets an ordinary server too.
func TestSiteSpeaksHTTP2(t *testing.T) {
	visitor, result := visit(t, edgeLayer)
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols, DialContext: func(context.Context, string, string) (net.Conn, error) { return visitor, nil }}
	for _, path := range []string{"/", "/ws?a=b"} {
		answer, err := (&http.Client{Transport: transport}).Get("http://edge.example.com" + path)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusNotFound || answer.ProtoMajor != 2 {
			t.Errorf("%s: got %s %s, want HTTP/2 404", path, answer.Proto, answer.Status)
		}
	}
	visitor.Close()
	if r := <-result; !errors.Is(r.err, tunnel.ErrNoTunnel) {
		t.Errorf("got %v, want ErrNoTunnel", r.err)
	}
}

// writes counts the writes of a connection.
type writes struct {
	*net.TCPConn
	all [][]byte
}

func (w *writes) Write(p []byte) (int, error) {
	w.all = append(w.all, bytes.Clone(p))
	return w.TCPConn.Write(p)
}

// Kaminari throws away what follows a head in the same read, and nothing may precede the answer.
func TestHeadsAreOneWriteEach(t *testing.T) {
	dialed, accepted := tunneltest.Pair(t)
	client, server := &writes{TCPConn: dialed}, &writes{TCPConn: accepted}
	done := make(chan error, 1)
	go func() {
		_, err := edgeLayer.Server(context.Background(), server, &tunnel.Info{})
		done <- err
	}()
	if _, err := edgeLayer.Client(context.Background(), client); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for name, w := range map[string]*writes{"client": client, "edge": server} {
		if len(w.all) != 1 || !bytes.HasSuffix(w.all[0], []byte("\r\n\r\n")) {
			t.Errorf("%s: %d writes: %q", name, len(w.all), w.all)
		} else if !bytes.Contains(w.all[0], []byte("\r\nConnection: Upgrade\r\n")) {
			t.Errorf("%s: no \"Connection: Upgrade\" alone: %q", name, w.all[0])
		}
	}
	if !bytes.HasPrefix(client.all[0], []byte("GET /ws?a=b HTTP/1.1\r\nHost: edge.example.com\r\n")) {
		t.Errorf("client: %q", client.all[0])
	}
}

func TestClientSaysWhatAnsweredInstead(t *testing.T) {
	for name, test := range map[string]struct{ answer, want string }{
		"404":          {"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404 Not Found"},
		"nothing":      {"", "without an answer"},
		"another talk": {"SSH-2.0-OpenSSH_9\r\n\r\n", "does not answer in HTTP"},
		"endless head": {"HTTP/1.1 101 Switching Protocols\r\nX: " + strings.Repeat("x", 1<<20), "64 KiB"},
		"wrong key": {fmt.Sprintf("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
			strings.Repeat("A", 28)), "Sec-WebSocket-Accept"},
	} {
		t.Run(name, func(t *testing.T) {
			dialed, accepted := tunneltest.Pair(t)
			go func() {
				http.ReadRequest(bufio.NewReader(accepted))
				io.WriteString(accepted, test.answer)
				accepted.Close()
			}()
			_, err := edgeLayer.Client(context.Background(), dialed)
			if err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(test.want)) {
				t.Errorf("got %v, want %q in it", err, test.want)
			}
		})
	}
}

// A client hears at once that its upgrade is fine: the target is dialed meanwhile, without a word of the client, and may take its time.
func TestUpgradeDoesNotWaitForTheTarget(t *testing.T) {
	upgraded, dialing := make(chan struct{}), make(chan struct{})
	target := tunneltest.Echo(t)
	edge := serveForwarder(t, &tunnel.Forwarder{Accept: tunnel.Transport{edgeLayer}, Dial: func(ctx context.Context, info *tunnel.Info) (tunnel.Conn, error) {
		close(dialing)
		select {
		case <-upgraded:
			return dialTCP(target)(ctx, info)
		case <-time.After(20 * time.Second):
			return nil, errors.New("the client is still waiting for its upgrade")
		}
	}})
	bare, err := net.Dial("tcp", edge)
	if err != nil {
		t.Fatal(err)
	}
	defer bare.Close()
	bare.SetDeadline(time.Now().Add(30 * time.Second))
	c, err := (&tunnel.WebSocket{Host: edgeLayer.Host, Path: edgeLayer.Path}).Client(t.Context(), bare.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	<-dialing
	close(upgraded)
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
}
