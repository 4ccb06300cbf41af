package tunnel

import (
	"net"
	"strings"
	"testing"
)

var addressTable = []struct {
	address       string
	network, name string
	hint          string // part of the error
}{
	{address: "example.com:443", network: "tcp", name: "example.com:443"},
	{address: "127.0.0.1:0", network: "tcp", name: "127.0.0.1:0"},
	{address: "[2001:db8::1]:8443", network: "tcp", name: "[2001:db8::1]:8443"},
	{address: "[fe80::1%eth0]:80", network: "tcp", name: "[fe80::1%eth0]:80"},
	{address: ":65535", network: "tcp", name: ":65535"},
	{address: "unix:/run/raimon.sock", network: "unix", name: "/run/raimon.sock"},
	{address: "unix:here.sock", network: "unix", name: "here.sock"},
	{address: "unix:@abstract", network: "unix", name: "@abstract"},

	{address: "", hint: "port is missing"},
	{address: "example.com", hint: "port is missing, as in example.com:443"},
	{address: "example.com:", hint: "port is missing"},
	{address: "[::1]", hint: "port is missing, as in [::1]:443"},
	{address: "::1", hint: "in brackets"},
	{address: "2001:db8::1:443", hint: "in brackets"},
	{address: "a:1:2", hint: "in brackets"},
	{address: "[::1:80", hint: "write host:port"},
	{address: "[::1]x:80", hint: "write host:port"},
	{address: "example.com:65536", hint: "0 to 65535"},
	{address: "example.com:-1", hint: "0 to 65535"},
	{address: "example.com:+80", hint: "0 to 65535"},
	{address: "example.com:https", hint: "0 to 65535"},
	{address: "https://example.com:443", hint: "not a URL"},
	{address: "/run/raimon.sock", hint: "unix:/path"},
	{address: "a b:80", hint: "blank or control"},
	{address: "a\r\nX: y:80", hint: "in brackets"},
	{address: "a\r\n:80", hint: "blank or control"},
	{address: "unix:", hint: "path is missing"},
	{address: "unix:/" + strings.Repeat("x", 200), hint: "at most"},
}

func TestParseAddress(t *testing.T) {
	for _, test := range addressTable {
		network, name, err := ParseAddress(test.address)
		if test.hint != "" {
			if err == nil || !strings.Contains(err.Error(), test.hint) {
				t.Errorf("ParseAddress(%q) = %q, %q, %v, want an error with %q", test.address, network, name, err, test.hint)
			}
			continue
		}
		if err != nil || network != test.network || name != test.name {
			t.Errorf("ParseAddress(%q) = %q, %q, %v, want %q, %q", test.address, network, name, err, test.network, test.name)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, test := range addressTable {
		f.Add(test.address)
	}
	f.Fuzz(func(t *testing.T, address string) {
		network, name, err := ParseAddress(address)
		if err != nil || network == "unix" {
			return
		}
		if strings.ContainsAny(name, "\r\n ") {
			t.Errorf("ParseAddress(%q) = %q: would end the line of a CONNECT request", address, name)
		}
		if _, _, err := net.SplitHostPort(name); err != nil {
			t.Errorf("ParseAddress(%q) = %q: %v", address, name, err)
		}
		if _, again, err := ParseAddress(name); err != nil || again != name {
			t.Errorf("ParseAddress(%q) = %q, %v: not stable", name, again, err)
		}
	})
}
