package options

import (
	"reflect"
	"strings"
	"testing"
)

func TestRemote(t *testing.T) {
	for _, test := range []struct {
		remote, options string
		address, string string
	}{
		{"edge.example.com:443", "tls;sni=a", "edge.example.com:443", "tls;sni=a"},
		{"unix:/a", "", "unix:/a", ""},
		{"wss://edge.example.com/ssh", "", "edge.example.com:443", "ws;host=edge.example.com;path=/ssh;tls;sni=edge.example.com"},
		{"wss://edge.example.com:8443", "", "edge.example.com:8443", "ws;host=edge.example.com:8443;path=/;tls;sni=edge.example.com"},
		{"ws://edge.example.com/a%2fb?c=d", "", "edge.example.com:80", "ws;host=edge.example.com;path=/a%2fb?c=d"},
		{"tls://edge.example.com", "", "edge.example.com:443", "tls;sni=edge.example.com"},
		{"tls://[2001:db8::1]:8443", "", "[2001:db8::1]:8443", "tls;sni=2001:db8::1"},
		{"tcp://edge.example.com:22", "", "edge.example.com:22", ""},
		{"wss://192.0.2.1/ssh", "sni=a.example;host=b.example;pool=2", "192.0.2.1:443", "sni=a.example;host=b.example;pool=2;ws;path=/ssh;tls"},
	} {
		settings, err := Split(test.options)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Split(strings.ReplaceAll(test.string, "?c=", `?c\=`))
		if err != nil {
			t.Fatal(err)
		}

		address, got, err := Remote(test.remote, settings)

		if err != nil || address != test.address || len(got)+len(want) > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q, %q, %v; want %q, %q", test.remote, address, got, err, test.address, want)
		}
		if _, err := ParseSettings(Client, got); err != nil {
			t.Errorf("%s: %v", test.remote, err)
		}
	}
}

func TestRemoteWrong(t *testing.T) {
	for remote, want := range map[string]string{
		"https://edge.example.com/ssh":    "hint: write wss://edge.example.com/ssh",
		"http://edge.example.com/ssh":     "hint: write ws://edge.example.com/ssh",
		"ftp://edge.example.com":          "none of wss, ws, tls and tcp",
		"wss://me:secret@edge.example":    "it has a user in it",
		"wss:///ssh":                      "the host is missing",
		"wss://edge.example.com/#a":       `it has a "#" in it`,
		"wss://edge.example.com/#":        `it has a "#" in it`,
		"tcp://edge.example.com":          "the port is missing",
		"tls://edge.example.com/ssh":      "has no path",
		"tls://edge.example.com?a":        "has no path",
		"wss://edge.example.com:seven/ws": `it is no URL: invalid port ":seven"`,
		"wss://[::1/ssh":                  "it is no URL: missing ']'",
		"wss://me:se/cret@edge.example":   "it is no URL hint: write",
		"https://me:secret@edge.example":  "it has a user in it",
		"wss:/edge.example.com/ssh":       "hint: write wss://edge.example.com/ssh",
		"wss//edge.example.com/ssh":       "hint: write wss://edge.example.com/ssh",
		"tls:/edge.example.com":           "hint: write tls://edge.example.com",
		"edge.example.com/ssh":            "it is neither a URL nor host:port hint: write wss://edge.example.com/ssh",
		"wssedge.example.com:443/ssh":     "hint: write wss://wssedge.example.com:443/ssh",
		"me:secret@edge.example.com/ssh":  "it has a user in it",
		"wss://edge/ssh;token=secret":     `it has a ";" in it hint: options are a word of their own`,
		"edge:443;token=secret":           `it has a ";" in it`,
		"wss://%zz/":                      "it is no URL",
	} {
		_, _, err := Remote(remote, nil)
		e, ok := err.(*Error)
		if !ok {
			t.Errorf("%s: got %v", remote, err)
			continue
		}
		if text := e.Problem + " hint: " + e.Hint; !strings.Contains(text, want) || strings.Contains(text, "secret") {
			t.Errorf("%s: got %q, want %q", remote, text, want)
		}
	}
}

func TestListen(t *testing.T) {
	address, settings, err := Listen("socks://127.0.0.1:1080", []Setting{{"ws", ""}})
	if err != nil || address != "127.0.0.1:1080" || !reflect.DeepEqual(settings, []Setting{{"ws", ""}, {"socks", ""}}) {
		t.Errorf("got %q, %q, %v", address, settings, err)
	}
	address, settings, err = Listen(":22", nil)
	if err != nil || address != ":22" || settings != nil {
		t.Errorf("got %q, %q, %v", address, settings, err)
	}
}

func TestListenWrong(t *testing.T) {
	for listen, want := range map[string]string{
		"socks://me:secret@127.0.0.1:1080": "it has a user in it hint: leave the user away and add socks-auth=",
		"socks5://127.0.0.1:1080/":         "its scheme is not socks hint: write socks://127.0.0.1:1080",
		"http://127.0.0.1:1080":            "hint: write socks://127.0.0.1:1080",
		"wss://edge.example.com/ssh":       "it is the URL of an edge hint: the edge comes second",
		"2222":                             "it is a port without an address hint: write 127.0.0.1:2222",
		"127.0.0.1:1080;token=secret":      `it has a ";" in it`,
	} {
		_, _, err := Listen(listen, nil)
		e, ok := err.(*Error)
		if !ok {
			t.Errorf("%s: got %v", listen, err)
			continue
		}
		if text := e.Problem + " hint: " + e.Hint; !strings.Contains(text, want) || strings.Contains(text, "secret") {
			t.Errorf("%s: got %q, want %q", listen, text, want)
		}
	}
}

func TestShort(t *testing.T) {
	listen, remote, err := Short(" 127.0.0.1:2222->wss://edge.example.com/ssh ")
	if err != nil || listen != "127.0.0.1:2222" || remote != "wss://edge.example.com/ssh" {
		t.Errorf("got %q, %q, %v", listen, remote, err)
	}
	for _, text := range []string{"", "->", "a ->", "-> b", "a b", "a -> b c"} {
		if listen, remote, err := Short(text); err == nil {
			t.Errorf("%q: got %q, %q", text, listen, remote)
		}
	}
}
