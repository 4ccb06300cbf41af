package edge

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestRedirect(t *testing.T) {
	for _, test := range []struct{ port, method, host, target, want string }{
		{"443", "GET", "a.test", "/x?y=1", "https://a.test/x?y=1"},
		{"", "GET", "a.test:80", "/", "https://a.test/"},
		{"8443", "POST", "a.test:8080", "/x", "https://a.test:8443/x"},
		{"443", "GET", "[::1]:80", "/", "https://[::1]/"},
		{"443", "GET", "a.test", "//b.test/", "https://a.test//b.test/"},
		{"443", "GET", "a.test", "http://b.test/x", "https://b.test/x"}, // what a proxy is asked (RFC 9112, section 3.2.2)
		{"443", "CONNECT", "a.test:443", "a.test:443", "https://a.test/"},
		{"443", "GET", "a.test@b.test", "/", ""},
		{"443", "GET", "", "/", ""},
	} {
		answer := ask(t, &Redirect{Port: test.port}, test.method+" "+test.target+" HTTP/1.1\r\nHost: "+test.host+"\r\n\r\n")
		status, location := 308, "\r\nLocation: "+test.want+"\r\n"
		if test.want == "" {
			status, location = 400, ""
		}
		if !strings.HasPrefix(answer, "HTTP/1.1 "+map[int]string{308: "308", 400: "400"}[status]) || !strings.Contains(answer, location) {
			t.Errorf("%s %s, Host: %s: got %q, want %d and %q", test.method, test.target, test.host, answer, status, location)
		}
	}
}

// ask sends a request over a real connection and returns all that is answered.
func ask(t *testing.T, r *Redirect, request string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx, l, http.Handler(r)) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	c.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}
