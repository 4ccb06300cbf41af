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
		"wss://edge.example.com:seven/ws": "it is no URL",
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
	if _, _, err = Listen("socks://a:b@127.0.0.1:1080", nil); err == nil || strings.Contains(err.Error(), "a:b") {
		t.Errorf("got %v", err)
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
