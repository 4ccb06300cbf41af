package edge

import (
	"crypto/tls"
	"testing"

	"raimon/internal/tunneltest"
)

// An offer of nothing that is served is no reason to refuse a client, as crypto/tls by itself would.
func TestALPNOffersAreNeverRefused(t *testing.T) {
	ca := tunneltest.NewCA(t)
	r := run(t, &Config{Sites: []*Site{testSite(t, ca, "edge.test")}})
	for _, test := range []struct {
		offer []string
		want  string
	}{
		{nil, ""},
		{[]string{"h2"}, "h2"},
		{[]string{"http/1.1"}, "http/1.1"},
		{[]string{"http/1.1", "h2"}, "h2"},
		{[]string{"ssh"}, ""},
		{[]string{"ssh", "http/1.1"}, "http/1.1"},
		{[]string{"acme-tls/1", "h2"}, "h2"}, // a CA that probes offers nothing beside it
	} {
		c, err := tls.Dial("tcp", r.address, &tls.Config{RootCAs: ca.Pool, ServerName: "edge.test", NextProtos: test.offer})
		if err != nil {
			t.Errorf("offer %q: %v", test.offer, err)
			continue
		}
		if got := c.ConnectionState().NegotiatedProtocol; got != test.want {
			t.Errorf("offer %q: got %q, want %q", test.offer, got, test.want)
		}
		c.Close()
	}
}
