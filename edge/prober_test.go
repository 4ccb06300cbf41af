package edge_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"raimon/edge"
	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// The paths of the tests have the same length.
const (
	openPath   = "/ws/opened" // a tunnel for everybody
	lockedPath = "/ws/locked" // a tunnel for nobody who comes from here
	nobodyPath = "/ws/nobody"
)

// run starts an edge and returns its address. A listener with certificate speaks TLS.
func run(t testing.TB, certificate *tls.Certificate, sites ...*edge.Site) string {
	t.Helper()
	for _, s := range sites {
		s.Certificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	return runConfig(t, &edge.Config{
		Listeners: []edge.Listener{{Address: "127.0.0.1:0", Plain: certificate == nil}}, Sites: sites, Drain: -1,
	})
}

func runConfig(t testing.TB, c *edge.Config) string {
	t.Helper()
	server := &edge.Server{}
	if err := server.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the server does not end")
		}
	})
	return server.Listeners()["127.0.0.1:0"].Addr().String()
}

// routes are a tunnel for everybody and one for others.
func routes(t testing.TB) []*edge.Route {
	target := tunneltest.Echo(t)
	return []*edge.Route{
		{Path: openPath, Target: target},
		{Path: lockedPath, Target: target, Access: edge.Access{From: prefixes("192.0.2.0/24")}},
	}
}

// probingTime bounds each of the tests below.
const probingTime = 3 * time.Second

// probe is what a prober sends; %s stands for the path.
type probe struct {
	text  string
	split int  // bytes of it in a first write; zero: all in one
	end   bool // the client says that this is all
}

func (p probe) bytes(path string) []byte { return []byte(strings.ReplaceAll(p.text, "%s", path)) }

// opens tells whether what is sent opens the tunnel at path by right.
func (p probe) opens(path string) bool {
	r := bufio.NewReader(bytes.NewReader(p.bytes(path)))
	for {
		request, err := http.ReadRequest(r)
		if err != nil {
			return false
		}
		if request.RequestURI == path && tunnel.IsUpgrade(request) {
			return true
		}
		if _, err := io.Copy(io.Discard, request.Body); err != nil {
			return false
		}
	}
}

const upgradeText = "GET %s HTTP/1.1\r\nHost: edge.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// edits are what can be wrong with an upgrade, or at least strange.
func edits() [][2]string {
	const host = "Host: edge.test\r\n"
	all := [][2]string{{"\r\n\r\n", "\r\n\r\n\x82\x85\x00\x00\x00\x00hello"}, {"\r\n\r\n", "\r\n\r\nGET /%s HTTP/1.1\r\n\r\n"}, {"\r\n\r\n", "\r\n\r\n" + upgradeText}}
	replace := func(old string, replacements ...string) {
		for _, r := range replacements {
			all = append(all, [2]string{old, r})
		}
	}
	replace("GET ", "get ", "HEAD ", "POST ", "PUT ", "DELETE ", "OPTIONS ", "CONNECT ", "TRACE ", "G@T ", "", " GET ", "GET  ", "\r\nGET ", "\x16\x03\x01\x02", strings.Repeat("G", 3000)+" ")
	replace("%s", "http://edge.test%s", "https://edge.test%s", "//edge.test%s", "/%s", "%s/", "%s?", "%s?a=b", "%s#x", "/..%s", "/.%s", "/x/..%s", "%s%00", "%s%2f", "*", "edge.test:443",
		"%s\x00", "%s x", strings.Repeat("%s", 300), "%s?"+strings.Repeat("x", 9000), "\\%s", "%s%zz", "http://other.test%s", "ws://edge.test%s")
	replace(" HTTP/1.1", " HTTP/1.0", " HTTP/0.9", "", " HTTP/2.0", " HTTP/1.2", " http/1.1", " HTTP/1.11", "  HTTP/1.1", " HTTP/1.1 ", " XTTP/1.1", "\tHTTP/1.1")
	replace(host, "", host+host, host+"Host: other.test\r\n", "Host: other.test\r\n", "Host: unknown.test\r\n", "Host: EDGE.test:443\r\n", "Host: edge.test.\r\n", "Host:\r\n", "Host : edge.test\r\n", " "+host,
		"Host: edge.test \r\n", "Host: [::1]\r\n", "Host: a b\r\n", "Host: edge.test/\r\n", "Host: ed\xffge.test\r\n", "hOsT:edge.test\r\n", "Host: "+strings.Repeat("a", 300)+".test\r\n")
	for _, field := range []string{
		"Expect: 100-continue", "Expect: 200-ok", "Content-Length: 0", "Content-Length: 5", "Content-Length: -1", "Content-Length: 5, 5", "Content-Length: 99999999999999999999",
		"Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: identity", "Transfer-Encoding: xchunked", "Transfer-Encoding: chunked\r\nContent-Length: 3",
		"Connection: close", "Connection: keep-alive", "Connection: HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA", "Trailer: X", "Trailer: Host", "TE: trailers", "Range: bytes=0-",
		"If-None-Match: *", "If-Modified-Since: Tue, 15 Nov 1994 12:45:26 GMT", "Accept-Encoding: gzip, br", "Origin: null", "Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Extensions: permessage-deflate",
		"Authorization: Bearer x", "Cookie: a=b", "Raimon: end", "X", ": x", "X Y: z", "X\x00: y", "X: \x00", "X: \x7f", "X: a\r\n b", "X: a\rb", "X: a\nY: b", "X: \xfc", "\xfc: x", "X_Y: z", "X: " + strings.Repeat("x", 14<<10),
	} {
		replace(host, host+field+"\r\n")
	}
	replace(host, host+strings.Repeat("X: y\r\n", 400))
	for _, body := range []string{"hello", "3\r\nabc\r\n0\r\n\r\n", "3\r\nabcd", "zz\r\n", "0\r\nX: y\r\n\r\n", "ffffffffffffffff\r\n", "0;a=b\r\n\r\n"} {
		replace("\r\n\r\n", "\r\n\r\n"+body)
	}
	replace("Upgrade: websocket\r\n", "", "Upgrade: h2c\r\n", "Upgrade: websocket, h2c\r\n", "Upgrade: WebSocket\r\n", "Upgrade: TLS/1.0\r\n")
	replace("Connection: Upgrade\r\n", "", "Connection: close, Upgrade\r\n", "Connection: Upgrade, close\r\n", "Connection: keep-alive\r\n")
	replace("Version: 13", "Version: 8", "Version: 013", "Version:", "Version: 13, 8", "Version: 13\r\nSec-WebSocket-Version: 13")
	replace("dGhlIHNhbXBsZSBub25jZQ==", "", "x", "dGhl", "dGhlIHNhbXBsZSBub25jZQ", strings.Repeat("A", 400)+"==", "====")
	replace("\r\n", "\n", "\r", "\r\r\n", "\r\n\r\n", " \r\n")
	replace("GET %s", "GET /other HTTP/1.1\r\nHost: edge.test\r\n\r\nGET %s", "POST %s HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 3\r\n\r\nabcGET %s",
		"HEAD %s HTTP/1.1\r\nHost: edge.test\r\n\r\nGET %s", "GET %s HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\nGET %s", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET %s", "PRI * HTTP/2.0\r\n\r\nGET %s")
	return all
}

// generate makes a probe: an upgrade with up to four edits, at times cut short, or of mere noise.
func generate(r *rand.Rand, all [][2]string) probe {
	p := probe{text: upgradeText, end: r.IntN(2) == 0}
	for range r.IntN(5) {
		e := all[r.IntN(len(all))]
		if p.text = strings.Replace(p.text, e[0], e[1], 1); len(p.text) > 60<<10 {
			break
		}
	}
	switch r.IntN(12) {
	case 0:
		p.text = p.text[:r.IntN(len(p.text)+1)]
	case 1:
		noise := []byte(p.text)
		for range 1 + r.IntN(3) {
			if len(noise) > 0 {
				noise[r.IntN(len(noise))] = byte(r.IntN(256))
			}
		}
		p.text = string(noise)
	case 2:
		p.text += strings.Repeat("X-Filler: y\r\n", r.IntN(8000)) // behind the head, or within one that does not end
	}
	if len(p.text) > 1 && r.IntN(3) == 0 {
		p.split = 1 + r.IntN(len(p.text)-1)
	}
	return p
}

var date = regexp.MustCompile("Date: [^\r]*\r\n")

// visible is all that a prober sees: what is answered, and how it ends. Silence for as long as patience is an
// end too, for the connection is open then.
func visible(c net.Conn, p probe, path string, patience time.Duration) string {
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	text := p.bytes(path)
	for _, part := range [][]byte{text[:min(p.split, len(text))], text[min(p.split, len(text)):]} {
		if len(part) > 0 {
			if _, err := c.Write(part); err != nil {
				break // the answer tells
			}
		}
	}
	if p.end {
		c.(interface{ CloseWrite() error }).CloseWrite()
	}
	var answer []byte
	buffer := make([]byte, 8<<10)
	for {
		c.SetReadDeadline(time.Now().Add(patience))
		n, err := c.Read(buffer)
		answer = append(answer, buffer[:n]...)
		if err != nil {
			return fmt.Sprintf("%q; %s", date.ReplaceAll(answer, nil), ending(err))
		}
	}
}

func ending(err error) string {
	switch {
	case err == io.EOF:
		return "end"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "open"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	}
	return err.Error()
}

// suspect is a place to which a probe goes.
type suspect struct {
	name string
	path string
	dial func() (net.Conn, error)
}

// compare sends what see does to all suspects, each of which has to look like the first: if not at once, for some
// answers depend on who is faster, then as the first has looked at some time.
func compare(suspects []suspect, see func(c net.Conn, path string, patience time.Duration) string) error {
	var told error
	looks := make([]map[string]bool, len(suspects))
	for _, patience := range []time.Duration{30, 100, 100, 300, 300, 300, 1000, 1000, 1000, 1000} {
		seen := make([]string, len(suspects))
		var all sync.WaitGroup
		for _, n := range rand.Perm(len(suspects)) { // whoever is asked last is often answered first
			s := suspects[n]
			all.Go(func() {
				c, err := s.dial()
				if err != nil {
					seen[n] = err.Error()
					return
				}
				seen[n] = see(c, s.path, patience*time.Millisecond)
			})
		}
		all.Wait()
		told = nil
		for n, s := range suspects {
			if looks[n] == nil {
				looks[n] = make(map[string]bool)
			}
			looks[n][seen[n]] = true
			alike := slices.ContainsFunc(slices.Collect(maps.Keys(looks[n])), func(look string) bool { return looks[0][look] })
			if !alike && told == nil {
				told = fmt.Errorf("%s:\n%.600s\n%s:\n%.600s", suspects[0].name, seen[0], s.name, seen[n])
			}
		}
		if told == nil {
			return nil
		}
	}
	return told
}

// A prober cannot tell the path of a tunnel from any other, whatever it sends.
func TestProberSeesNoTunnel(t *testing.T) {
	ca := tunneltest.NewCA(t)
	certificate := ca.Issue(t, "edge.test", "other.test")
	folder, err := edge.Folder(website(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name        string
		behind      http.Handler
		certificate *tls.Certificate
		protocol    string // agreed on
		probes      int
	}{
		{"nothing behind, plain", nil, nil, "", 1000},
		{"folder behind, plain", folder, nil, "", 1000},
		{"nothing behind, tls", nil, &certificate, "http/1.1", 200},
		{"folder behind, tls", folder, &certificate, "http/1.1", 200},
		{"folder behind, tls with h2", folder, &certificate, "h2", 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			suspects := suspectsOf(t, test.behind, test.certificate, &tls.Config{RootCAs: ca.Pool, ServerName: "edge.test", NextProtos: []string{test.protocol}})
			all := edits()
			var probes []probe
			for _, e := range all {
				probes = append(probes, probe{text: strings.Replace(upgradeText, e[0], e[1], 1), end: len(probes)%2 == 0})
			}
			for seed := range test.probes {
				probes = append(probes, generate(rand.New(rand.NewPCG(uint64(seed), 7)), all))
			}
			if test.certificate != nil {
				probes = probes[len(all)*3/4:] // what differs between heads has been seen without
			}
			rand.New(rand.NewPCG(1, 9)).Shuffle(len(probes), func(a, b int) { probes[a], probes[b] = probes[b], probes[a] })
			each(t, probes, func(p probe) error {
				chosen := suspects
				if p.opens(openPath) {
					chosen = chosen[:len(chosen)-1]
				}
				err := compare(chosen, func(c net.Conn, path string, patience time.Duration) string { return visible(c, p, path, patience) })
				if err != nil {
					return fmt.Errorf("%.2000q, split %d, end %t:\n%w", p.text, p.split, p.end, err)
				}
				return nil
			})
		})
	}
}

// suspectsOf are another path, the same without a tunnel anywhere, the path of a locked tunnel, and at last that of an open one.
func suspectsOf(t *testing.T, behind http.Handler, certificate *tls.Certificate, config *tls.Config) []suspect {
	sites := func(routes []*edge.Route) []*edge.Site {
		return []*edge.Site{{Names: []string{"edge.test"}, Behind: behind, Routes: routes}, {Names: []string{"other.test"}, Behind: behind}}
	}
	with := run(t, certificate, sites(routes(t))...)
	without := run(t, certificate, sites(nil)...)
	dial := func(address string) func() (net.Conn, error) {
		return func() (net.Conn, error) {
			if certificate == nil {
				return net.Dial("tcp", address)
			}
			return tls.Dial("tcp", address, config)
		}
	}
	return []suspect{
		{"another path", nobodyPath, dial(with)},
		{"without tunnels", nobodyPath, dial(without)},
		{"a locked tunnel", lockedPath, dial(with)},
		{"an open tunnel", openPath, dial(with)},
	}
}

// each checks probes, some at a time, and tells of the first few that fail. A machine that is busy, where silence
// has to be waited for again and again, checks as many as it can in its time.
func each[P any](t *testing.T, probes []P, check func(P) error) {
	work := make(chan P)
	failures := make(chan error, len(probes))
	var workers sync.WaitGroup
	for range 12 {
		workers.Go(func() {
			for p := range work {
				if err := check(p); err != nil {
					failures <- err
				}
			}
		})
	}
	sent := 0
	for begin := time.Now(); sent < len(probes) && time.Since(begin) < probingTime; sent++ {
		work <- probes[sent]
	}
	close(work)
	workers.Wait()
	close(failures)
	count := 0
	for err := range failures {
		if count++; count <= 3 {
			t.Error(err)
		}
	}
	if count > 0 {
		t.Errorf("%d of %d probes tell a tunnel", count, sent)
	}
	t.Logf("%d of %d probes", sent, len(probes))
}
