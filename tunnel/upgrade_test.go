package tunnel_test

import (
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// inPieces is a Conn of which the first Read brings one byte: such a head is left to net/http.
type inPieces struct {
	tunnel.Conn
	begun bool
}

func (c *inPieces) Read(b []byte) (int, error) {
	if !c.begun {
		c.begun, b = true, b[:min(1, len(b))]
	}
	return c.Conn.Read(b)
}

// hello is a frame behind the head, masked with the key 0.
const hello = "\x82\x85\x00\x00\x00\x00hello"

// chance is what differs from answer to answer: the date, and the WINDOW_UPDATE that net/http still
// sends, or does not, when HTTP/2 begins with nonsense.
var chance = regexp.MustCompile("Date: [^\r]*\r\n|\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x0f\x00\x01")

// outcome sends head and a frame to edgeLayer, and tells what came back and what became of the tunnel.
func outcome(t *testing.T, head string, wrap func(tunnel.Conn) tunnel.Conn) string {
	visitor, accepted := tunneltest.Pair(t)
	visitor.SetDeadline(time.Now().Add(20 * time.Second))
	result := make(chan string, 1)
	go func() {
		defer accepted.Close()
		c, err := edgeLayer.Server(context.Background(), wrap(accepted), &tunnel.Info{})
		if err != nil {
			result <- err.Error()
			return
		}
		data, err := io.ReadAll(c)
		result <- fmt.Sprintf("tunnel with %q, %v", data, err)
	}()
	if _, err := io.WriteString(visitor, head+hello); err != nil {
		t.Fatal(err)
	}
	visitor.CloseWrite()
	answer, err := io.ReadAll(visitor)
	return fmt.Sprintf("%q, %v; %s", chance.ReplaceAll(answer, nil), err, <-result)
}

// Whoever sends a head in one piece must not see that it was not net/http that read it.
func TestUpgradeInOnePieceIsAnsweredAsInTwo(t *testing.T) {
	const host, key = "Host: edge.example.com\r\n", "dGhlIHNhbXBsZSBub25jZQ=="
	for _, edit := range [][2]string{
		{"", ""}, {"GET", "get"}, {"GET", "POST"}, {"GET", "HEAD"}, {"GET", "CONNECT"}, {"GET", "G@T"}, {"GET", ""}, {"GET ", "\r\nGET "},
		{"GET ", "GET  "}, {"GET ", "\tGET "}, {"/ws?a=b", "http://edge.example.com/ws?a=b"}, {"/ws?a=b", "//ws?a=b"}, {"/ws", "/%77s"},
		{"/ws?a=b", "/ws?a=b#c"}, {"/ws?a=b", "*"}, {"/ws?a=b", ""}, {"/ws?a=b", "/ws?a=%"}, {"/ws?a=b", "/ws?a=b "},
		{"HTTP/1.1", "HTTP/1.0"}, {"HTTP/1.1", "HTTP/1.2"}, {"HTTP/1.1", "HTTP/2.0"}, {"HTTP/1.1", "http/1.1"}, {"HTTP/1.1", "HTTP/1.10"},
		{"HTTP/1.1", "HTTP/01.1"}, {" HTTP/1.1", ""}, {host, ""}, {host, host + host}, {host, host + "host: other\r\n"}, {host, "Host:\r\n"},
		{"Host: edge", "HOST:edge"}, {"Host: ", "Host:  \t"}, {"Host:", "Host :"}, {"Host:", " Host:"}, {host, "Host: edge.example.com:1:2\r\n"},
		{host, "Host: edge.example.com:\r\n"}, {host, "Host: edge.example.com.\r\n"}, {host, "Host: [::1]\r\n"}, {host, "Host: a@edge.example.com\r\n"},
		{host, "Host: edge.example.com/\r\n"}, {host, "Host: edge.exämple.com\r\n"}, {host, host + "Expect: 100-continue\r\n"},
		{host, host + "Expect: 200-ok\r\n"}, {host, host + "Expect:\r\n"}, {host, host + "Content-Length: 0\r\n"}, {host, host + "Content-Length: 5\r\n"},
		{host, host + "Content-Length: -1\r\n"}, {host, host + "Content-Length: +0\r\n"}, {host, host + "Content-Length: 0\r\nContent-Length: 0\r\n"},
		{host, host + "Content-Length: 0\r\nContent-Length: 1\r\n"}, {host, host + "Transfer-Encoding: chunked\r\n"},
		{host, host + "Transfer-Encoding: identity\r\n"}, {host, host + "Transfer-Encoding:\r\n"}, {host, host + "Trailer: X\r\n"},
		{host, host + "Trailer: Content-Length\r\n"}, {host, host + "X: a\x00b\r\n"}, {host, host + "X: a\tb\r\n"}, {host, host + "X: a\x7fb\r\n"},
		{host, host + "X: ü\r\n"}, {host, host + "X:\r\n"}, {host, host + ": x\r\n"}, {host, host + "X\r\n"}, {host, host + "X_Y: x\r\n"},
		{host, host + "X Y: x\r\n"}, {host, host + "Ü: x\r\n"}, {host, host + "X: a\r\n b\r\n"}, {host, host + "X: a\nY: b\r\n"}, {host, host + "X: a\rb\r\n"},
		{host, " x: y\r\n" + host}, {host, host + "Connection: close\r\n"}, {host, host + "Pragma: no-cache\r\n"}, {host, host + "Raimon: end\r\n"},
		{host, host + "Raimon: x, END\r\n"}, {host, host + "Origin: null\r\n"}, {host, host + strings.Repeat("X: y\r\n", 500)},
		{host, host + "X: " + strings.Repeat("y", 15<<10) + "\r\n"}, {host, host + "HTTP2-Settings: AAMAAABk\r\n"}, {"websocket", "h2c, websocket"},
		{"websocket", "websocket/13"}, {"Connection: Upgrade", "Connection: upgrade"}, {"Connection: Upgrade", "Connection: Upgrade,"},
		{"Version: 13", "Version: 13 "}, {"Version: 13", "Version: 8"}, {key, key[:8]}, {key, " " + key + " "}, {key, "dGhlIHNhbXBsZSBub25j\tZQ=="},
		{"GET /ws?a=b", "GET /other HTTP/1.1\r\n" + host + "\r\nGET /ws?a=b"}, {"\r\n\r\n", "\n\n"}, {"\r\n\r\n", "\r\n\n"}, {"\r\n\r\n", "\r\n"},
		{"\r\n\r\n", "\r\n\r\n\r\n"}, {"\r\n\r\n", "\r\n\r\nGET / HTTP/1.1\r\n\r\n"}, {"\r\n", "\n"}, {"\r\n", "\r\r\n"},
		{"GET /ws?a=b", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET /ws?a=b"}, {"GET /ws?a=b", "PRI * HTTP/2.0\r\n" + host + "\r\nGET /ws?a=b"},
	} {
		head := strings.Replace(upgradeHead, edit[0], edit[1], 1)
		t.Run(fmt.Sprintf("%.40q for %.20q", edit[1], edit[0]), func(t *testing.T) {
			t.Parallel()
			one := outcome(t, head, func(c tunnel.Conn) tunnel.Conn { return c })
			two := outcome(t, head, func(c tunnel.Conn) tunnel.Conn { return &inPieces{Conn: c} })
			if one != two {
				t.Errorf("in one piece:\n%s\nin two:\n%s", one, two)
			}
		})
	}
}
