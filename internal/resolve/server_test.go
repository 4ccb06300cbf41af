package resolve

import (
	"strings"
	"testing"
)

var parseTests = []struct {
	text string
	want Server // without text
	err  string // a part of it
}{
	{"9.9.9.9", Server{kind: overUDP, address: "9.9.9.9:53"}, ""},
	{"9.9.9.9:5353", Server{kind: overUDP, address: "9.9.9.9:5353"}, ""},
	{"2620:fe::fe", Server{kind: overUDP, address: "[2620:fe::fe]:53"}, ""},
	{"[2620:fe::fe]", Server{kind: overUDP, address: "[2620:fe::fe]:53"}, ""},
	{"[2620:fe::fe]:54", Server{kind: overUDP, address: "[2620:fe::fe]:54"}, ""},
	{"udp://9.9.9.9", Server{kind: overUDP, address: "9.9.9.9:53"}, ""},
	{"tcp://9.9.9.9", Server{kind: overTCP, address: "9.9.9.9:53"}, ""},
	{"tcp://[2620:fe::fe]:54", Server{kind: overTCP, address: "[2620:fe::fe]:54"}, ""},
	{"tls://9.9.9.9", Server{kind: overTLS, address: "9.9.9.9:853", name: "9.9.9.9"}, ""},
	{"tls://[2620:fe::fe]", Server{kind: overTLS, address: "[2620:fe::fe]:853", name: "2620:fe::fe"}, ""},
	{"tls://dns.quad9.net:54", Server{kind: overTLS, address: "dns.quad9.net:54", name: "dns.quad9.net"}, ""},
	{"tls://dns.quad9.net@9.9.9.9", Server{kind: overTLS, address: "9.9.9.9:853", name: "dns.quad9.net"}, ""},
	{"https://9.9.9.9", Server{kind: overHTTPS, address: "9.9.9.9:443", name: "9.9.9.9", url: "https://9.9.9.9:443/dns-query"}, ""},
	{"https://[2620:fe::fe]/q", Server{kind: overHTTPS, address: "[2620:fe::fe]:443", name: "2620:fe::fe", url: "https://[2620:fe::fe]:443/q"}, ""},
	{"https://dns.quad9.net:5053/dns-query?a=b", Server{kind: overHTTPS, address: "dns.quad9.net:5053", name: "dns.quad9.net", url: "https://dns.quad9.net:5053/dns-query?a=b"}, ""},
	{"https://dns.quad9.net@[2620:fe::fe]:44", Server{kind: overHTTPS, address: "[2620:fe::fe]:44", name: "dns.quad9.net", url: "https://dns.quad9.net:44/dns-query"}, ""},

	{"", Server{}, "neither"},
	{"dns.google", Server{}, "not an IP address"},
	{"8.8.8.8:0", Server{}, "port"},
	{"8.8.8.8:99999", Server{}, "port"},
	{"2620:fe::fe::", Server{}, "neither"},
	{"8.8.8.8/x", Server{}, "follows"},
	{"tls://:853", Server{}, "its name"},
	{"8.8.8", Server{}, "not an IP address"},
	{"tcp://dns.google", Server{}, "not an IP address"},
	{"tcp://a@8.8.8.8", Server{}, "certificate"},
	{"tcp://8.8.8.8/x", Server{}, "follows"},
	{"tls://8.8.8.8/dns-query", Server{}, "follows"},
	{"tls://8.8.8.8:0", Server{}, "port"},
	{"tls://", Server{}, "URL"},
	{"tls://a@b", Server{}, "an IP address"},
	{"tls://a:b@9.9.9.9", Server{}, "one name"},
	{"tls://@9.9.9.9", Server{}, "one name"},
	{"tls://a%20b@9.9.9.9", Server{}, "its name"},
	{"https://a/b#c", Server{}, "URL"},
	{"https://a b", Server{}, "URL"},
	{"https://%zz", Server{}, "URL"},
	{"quic://9.9.9.9", Server{}, "no such way"},
	{"HTTP://9.9.9.9", Server{}, "no such way"},
}

func TestParse(t *testing.T) {
	for _, test := range parseTests {
		s, err := Parse(test.text)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%q: %v, %v, want an error with %q", test.text, s, err, test.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", test.text, err)
			continue
		}
		test.want.text = test.text
		if *s != test.want {
			t.Errorf("%q:\ngot  %+v\nwant %+v", test.text, *s, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, test := range parseTests {
		f.Add(test.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			if s != nil {
				t.Errorf("%q: both %v and %v", text, s, err)
			}
			return
		}
		if s.address == "" || (s.kind == overTLS || s.kind == overHTTPS) != (s.name != "") || (s.kind == overHTTPS) != (s.url != "") {
			t.Errorf("%q: %+v", text, *s)
		}
	})
}
