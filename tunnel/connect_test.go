package tunnel

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

var schemeTests = []struct {
	fields []string
	want   string
}{
	{nil, ""},
	{[]string{""}, ""},
	{[]string{`Basic realm="proxy"`}, "Basic"},
	{[]string{"Negotiate", "NTLM"}, "Negotiate NTLM"},
	{[]string{`Negotiate, NTLM, Basic realm="a, Digest b"`}, "Negotiate NTLM Basic"},
	{[]string{`Basic realm="x", charset="UTF-8", Digest realm="x", nonce="y"`}, "Basic Digest"},
	{[]string{`Basic realm = "x"`, "basic"}, "Basic"},
	{[]string{"Negotiate YII+/=="}, "Negotiate"},
	{[]string{", ,Bearer,"}, "Bearer"},
	{[]string{"\x1b[31m", "a\x00b", strings.Repeat("x", 33)}, ""},
	{[]string{"a,b,c,d,e,f,g,h,i,j"}, "a b c d e f g h"},
}

func TestAuthSchemes(t *testing.T) {
	for _, test := range schemeTests {
		if got := strings.Join(authSchemes(test.fields), " "); got != test.want {
			t.Errorf("%q: got %q, want %q", test.fields, got, test.want)
		}
	}
}

func FuzzAuthSchemes(f *testing.F) {
	for _, test := range schemeTests {
		f.Add(strings.Join(test.fields, ","))
	}
	f.Fuzz(func(t *testing.T, field string) {
		schemes := authSchemes([]string{field, field})
		if len(schemes) > 8 || slices.ContainsFunc(schemes, func(s string) bool { return s == "" || len(s) > 32 || brief(s, 32) != s }) {
			t.Errorf("got %q", schemes)
		}
	})
}

func FuzzBrief(f *testing.F) {
	f.Add("  Access\tDenied \r\n \x1b[31mACME\u202e \xff")
	f.Fuzz(func(t *testing.T, text string) {
		got := brief(text, 10)
		if !utf8.ValidString(got) || utf8.RuneCountInString(got) > 11 || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q became %q", text, got)
		}
	})
}

// A refusal may come with a page, of which the title is worth telling, and which may never end.
func TestProxyRefusalTitle(t *testing.T) {
	leavesNothing(t)
	const head = "HTTP/1.1 403 Forbidden\r\n"
	for _, test := range []struct{ answer, want string }{
		{head + "Content-Type: text/html; charset=utf-8\r\n\r\n<html><TITLE lang=en>\n Access &amp; Denied\n</TITLE>", "Access & Denied"},
		{head + "Content-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n<title>No</title\r\n0\r\n\r\n", "No"},
		{head + "Content-Type: text/html\r\nContent-Length: 1000\r\n\r\n<title>Cut", "Cut"},
		{head + "Content-Type: text/html\r\n\r\n<title>\x1b[31mRed\x00</title>", "[31mRed"},
		{head + "Content-Type: text/html\r\n\r\n<title>" + strings.Repeat("x", 1000), strings.Repeat("x", 80) + "…"},
		{head + "Content-Type: text/html\r\n\r\n" + strings.Repeat("x", 2*maxProxyHead) + "<title>Far</title>", ""},
		{head + "Content-Type: text/plain\r\n\r\n<title>No</title>", ""},
		{head + "Content-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n<title>No</title>", ""},
		{head + "\r\n<title>No</title>", ""},
		{"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Type: text/html\r\n\r\n<title>No</title>", ""},
	} {
		_, err := through(t, cannedProxy(t, test.answer)).Dial(t.Context(), "example.com:443")
		refusal, ok := errors.AsType[*ProxyRefusal](err)
		if !ok || refusal.Title != test.want {
			t.Errorf("%.60q: got %v, want the title %q", test.answer, err, test.want)
		}
	}
}

func TestProxyRefusalDoesNotWaitForItsPage(t *testing.T) {
	leavesNothing(t)
	l := loopback(t)
	proxyServer(t, l, func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n<title>Slow</title>")
		io.Copy(io.Discard, c) // until the client hangs up
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := through(t, l.Addr().String()).Dial(ctx, "example.com:443")
	if refusal, ok := errors.AsType[*ProxyRefusal](err); !ok || refusal.Title != "Slow" || ctx.Err() != nil {
		t.Errorf("got %v", err)
	}
}

// An answer counts although the proxy has read nothing and hung up.
func TestProxyRefusesBeforeItReads(t *testing.T) {
	leavesNothing(t)
	l := loopback(t)
	proxyServer(t, l, func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 403 Forbidden\r\n\r\n")
		c.(Conn).CloseWrite()
		io.Copy(io.Discard, c)
	})
	_, err := through(t, l.Addr().String()).Dial(t.Context(), "example.com:443")
	if refusal, ok := errors.AsType[*ProxyRefusal](err); !ok || refusal.Status != http.StatusForbidden {
		t.Errorf("got %v", err)
	}
}

func TestProxyUserIsAskedForEachConnection(t *testing.T) {
	leavesNothing(t)
	target := echoTarget(t)
	web, socks := loopback(t), loopback(t)
	connectProxy(t, web, "jo:second")
	socksProxy(t, socks, "jo:second", nil)
	for _, option := range []string{"http://old:old@" + web.Addr().String(), "socks5://" + socks.Addr().String()} {
		d := through(t, option)
		password := "s3cr3t"
		d.ProxyUser = func(context.Context) (*url.Userinfo, error) { return url.UserPassword("jo", password), nil }
		_, err := d.Dial(t.Context(), target)
		failed, ok := errors.AsType[*ProxyError](err)
		if !ok || !failed.Credentials || failed.Connected || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s, with the wrong password: %v", option, err)
		}
		password = "second"
		c, err := d.Dial(t.Context(), target)
		if err != nil {
			t.Fatalf("%s: %v", option, err)
		}
		defer c.Close()
		converse(t, c, "")
	}
}

// Where the password cannot be had, the proxy is not bothered.
func TestProxyUserFails(t *testing.T) {
	gone := errors.New("locked")
	d := through(t, "127.0.0.1:1")
	d.ProxyUser = func(context.Context) (*url.Userinfo, error) { return nil, gone }
	if _, err := d.Dial(t.Context(), "example.com:443"); !errors.Is(err, gone) || err.Error() != "proxy 127.0.0.1:1: user and password: locked" {
		t.Errorf("got %v", err)
	}
}

func TestProxyUserAgent(t *testing.T) {
	leavesNothing(t)
	for _, agent := range []string{"", "Mozilla/5.0 (X11)"} {
		l, seen := loopback(t), make(chan http.Header, 1)
		proxyServer(t, l, func(c net.Conn) {
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err != nil {
				t.Error(err)
				return
			}
			seen <- r.Header
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		})
		d := through(t, l.Addr().String())
		d.UserAgent = agent
		c, err := d.Dial(t.Context(), "example.com:443")
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if got := (<-seen).Get("User-Agent"); got != agent {
			t.Errorf("the proxy has seen the User-Agent %q, want %q", got, agent)
		}
	}
}

func TestDialerVia(t *testing.T) {
	environment := func(name string) string {
		return map[string]string{"https_proxy": "http://jo:s3cr3t@a:1", "no_proxy": "b.test"}[name]
	}
	choose, err := ProxyFromOption("", environment)
	if err != nil {
		t.Fatal(err)
	}
	d := &Dialer{Proxy: choose}
	for address, want := range map[string]string{"c.test:443": "a:1", "b.test:443": "", "127.0.0.1:443": "", "unix:/tmp/x": "", "what": ""} {
		if got := d.Via(address); got != want {
			t.Errorf("%s: got %q, want %q", address, got, want)
		}
		failed, ok := errors.AsType[*ProxyError](d.Through(address, io.EOF))
		if ok != (want != "") || ok && (failed.Proxy != want || !failed.Connected || failed.Err != io.EOF) {
			t.Errorf("%s: an error becomes %v", address, d.Through(address, io.EOF))
		}
	}
	if got := (&Dialer{}).Via("c.test:443"); got != "" {
		t.Errorf("without a proxy: %q", got)
	}
}
