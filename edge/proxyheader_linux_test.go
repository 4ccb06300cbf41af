//go:build !portable

package edge

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"raimon/internal/tunneltest"
)

// Behind a header bytes stay in the kernel, on plain listeners and of sites that are passed on.
func TestSpliceBehindProxyHeader(t *testing.T) {
	sink := tunneltest.Serve(t, func(c *net.TCPConn) { io.Copy(io.Discard, c) })
	edge := run(t, &Config{
		Listeners: []Listener{{Address: "127.0.0.1:0", ProxyFrom: loopback}, {Address: "127.0.0.2:0", ProxyFrom: loopback, Plain: true}},
		Sites:     []*Site{{Names: []string{"pass.test"}, Pass: sink, Proxy: 2}, {Raw: &Route{Target: sink, Proxy: 1}}},
	})
	plain := edge.Listeners()["127.0.0.2:0"].Addr().String()
	for name, c := range map[string]net.Conn{
		"plain":  dialFrom(t, "127.0.0.1", plain),
		"passed": dialFrom(t, "127.0.0.1", edge.address),
	} {
		if _, err := io.WriteString(c, proxyHeaders[0].header); err != nil {
			t.Fatal(err)
		}
		if name == "passed" { // a ClientHello, and then what would be nonsense to anybody but the sink
			tls.Client(&helloOnly{Conn: c}, &tls.Config{ServerName: "pass.test"}).Handshake()
		}
		within(t, patience, "no pipe is left of other tests", func() bool { return pipes(t) == 0 })
		piece := make([]byte, 1<<20)
		within(t, patience, name+": bytes go through a pipe", func() bool {
			if _, err := c.Write(piece); err != nil {
				t.Fatal(err)
			}
			return pipes(t) > 0
		})
		c.Close()
		within(t, patience, name+": the pipe is closed", func() bool { return pipes(t) == 0 })
	}
}

// pipes counts the pipes of this process that are larger than those of programs are.
func pipes(t testing.TB) (n int) {
	t.Helper()
	const usual = 64 << 10
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		fd, err := strconv.Atoi(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0); err == nil && size > usual {
			n++
		}
	}
	return n
}

// helloOnly lets a handshake say its first word.
type helloOnly struct{ net.Conn }

func (helloOnly) Read([]byte) (int, error) { return 0, io.EOF }
