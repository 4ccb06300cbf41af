package edge

import (
	"crypto/tls"
	"io"
	"net/netip"
	"testing"
	"time"

	"raimon/internal/tunneltest"
)

// The log says of each connection that became no tunnel why, in the words of the metrics.
func TestReasonOfNoTunnel(t *testing.T) {
	ca := tunneltest.NewCA(t)
	ws, raw, locked, full := testSite(t, ca, "ws.test"), testSite(t, ca, "raw.test"), testSite(t, ca, "locked.test"), testSite(t, ca, "full.test")
	target := tunneltest.Echo(t)
	raw.Raw = &Route{Target: closedPort(t)}
	locked.Raw = &Route{Target: target, Access: Access{From: []netip.Prefix{}}}
	full.Raw = &Route{Target: target, Limit: 1}
	edge := run(t, &Config{Sites: []*Site{ws, raw, locked, full}, Timeout: time.Second})
	say := func(name, text string) {
		t.Helper()
		c := dialFrom(t, "127.0.0.1", edge.address)
		if name != "" {
			s := tls.Client(c, clientTLS(ca, name).ClientConfig)
			if s.Handshake() == nil { // else there is nobody to say it to
				io.WriteString(s, text)
				io.Copy(io.Discard, s)
			}
		} else {
			io.WriteString(c, text)
			io.Copy(io.Discard, c)
		}
		c.Close()
	}
	first := tls.Client(dialFrom(t, "127.0.0.1", edge.address), clientTLS(ca, "full.test").ClientConfig)
	if err := isEcho(first); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, text, message, reason string }{
		{"ws.test", "GET / HTTP/1.1\r\nHost: ws.test\r\nConnection: close\r\n\r\n", "no tunnel", "visit"},
		{"locked.test", "x", "no tunnel", "access"},
		{"full.test", "x", "no tunnel", "route"},
		{"nobody.test", "", "no tunnel", "unknown_name"},
		{"raw.test", "x", "tunnel failed", "dial_refused"},
		{"", "\x16\x03\x01", "no tunnel", "timeout"},
		{"", "no TLS at all", "no tunnel", "not_tls"},
	} {
		say(test.name, test.text)
		within(t, patience, test.message+", reason="+test.reason, func() bool {
			return len(edge.log.with(`msg="`+test.message+`"`, "reason="+test.reason+"\n")) == 1
		})
	}
	first.Close()
}
