//go:build interop

package interop

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
)

// liar is a proxy that says yes and does something else.
type liar struct {
	scheme string
	lie    func(c *net.TCPConn)
}

// liars by what they do. Nobody has connected when they say so.
func liars() map[string]liar {
	const yes = "HTTP/1.1 200 Connection established\r\n\r\n"
	all := map[string]liar{"silent": {"http", func(c *net.TCPConn) { io.Copy(io.Discard, c) }}}
	for name, then := range map[string]func(c *net.TCPConn){
		"hangs-up": func(c *net.TCPConn) {},
		"resets":   func(c *net.TCPConn) { c.SetLinger(0) },
		"hangs":    func(c *net.TCPConn) { io.Copy(io.Discard, c) },
	} {
		all["http-"+name] = liar{"http", func(c *net.TCPConn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				io.WriteString(c, yes)
				then(c)
			}
		}}
		all["socks-"+name] = liar{"socks5", func(c *net.TCPConn) {
			if _, err := io.ReadFull(c, make([]byte, 3)); err != nil {
				return
			}
			c.Write([]byte{5, 0})
			head := make([]byte, 5) // with the length of a name
			if _, err := io.ReadFull(c, head); err != nil {
				return
			}
			io.ReadFull(c, make([]byte, int(head[4])+2))
			c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
			then(c)
		}}
	}
	return all
}

// A proxy that says yes before it has connected, and then hangs up or says nothing, costs a program no more than the wait
// that it was given, and the log names the proxy. Tunnels beside it do not suffer.
func TestLyingProxies(t *testing.T) {
	t.Parallel()
	const wait = 2 * time.Second
	g := newTarget(t)
	s := newSecrets(t)
	_, edge := startRaimons(t, g.address, wsOption+";"+s.server())
	remote := "wss://localhost:" + port(edge) + "/tunnel"
	var config strings.Builder
	proxies, doors := make(map[string]string), map[string]string{"fine": freePort()}
	fmt.Fprintf(&config, "fine = \"%s -> %s\"\n", doors["fine"], remote)
	for name, liar := range liars() {
		doors[name] = freePort()
		proxies[name] = tunneltest.Serve(t, liar.lie)
		fmt.Fprintf(&config, "[%s]\nlisten = %q\nremote = %q\nproxy = \"%s://%s\"\npool = 1\n", name, doors[name], remote, liar.scheme, proxies[name])
	}
	fmt.Fprintf(&config, "[defaults]\nwait = %q\ntimeout = \"1s\"\nca = %q\nproxy = \"off\"\n", wait, s.CA)
	p := start(t, "raimonc", noProxy, "-config", writeFile(t, "tunnels.toml", config.String()), "-log-format", "json", "-v")
	p.awaitPort(t, doors["fine"])
	for name, proxy := range proxies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			if err := tryIdle(t, doors[name], time.Millisecond); err == nil || !isReset(err) {
				t.Errorf("got %v, want a reset", err)
			}
			if took := time.Since(begin); took > wait+5*time.Second { // the machine may be busy
				t.Errorf("it took %v, with a wait of %v", took, wait)
			}
			m := p.await(t, `"msg":"the edge cannot be reached","tunnel":"`+name+`"[^\n]*"error":"([^"]*)"`)
			if !strings.Contains(m[1], "proxy "+proxy+": ") {
				t.Errorf("the log says %q, which does not name %s", m[1], proxy)
			}
		})
	}
	t.Run("fine", func(t *testing.T) {
		t.Parallel()
		if err := tryEcho(t, doors["fine"], megabyte); err != nil {
			t.Error(err)
		}
	})
}
