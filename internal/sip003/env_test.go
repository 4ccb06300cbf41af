package sip003

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestFromEnvironment(t *testing.T) {
	type env = map[string]string
	vars := func(remoteHost, remotePort, localHost, localPort string) env {
		return env{
			"SS_REMOTE_HOST": remoteHost, "SS_REMOTE_PORT": remotePort,
			"SS_LOCAL_HOST": localHost, "SS_LOCAL_PORT": localPort,
		}
	}
	with := func(e env, key, value string) env { e[key] = value; return e }

	for name, test := range map[string]struct {
		env    env
		server bool
		want   *Env
		err    string // a part of it
	}{
		"nothing":          {env: env{}},
		"options alone":    {env: env{"SS_PLUGIN_OPTIONS": "ws"}},
		"all four empty":   {env: vars("", "", "", "")},
		"client":           {env: vars("example.com", "8388", "127.0.0.1", "1984"), want: &Env{Listen: []string{"127.0.0.1:1984"}, Dial: "example.com:8388"}},
		"server":           {env: vars("0.0.0.0", "8388", "127.0.0.1", "1984"), server: true, want: &Env{Listen: []string{"0.0.0.0:8388"}, Dial: "127.0.0.1:1984"}},
		"server, two":      {env: vars("::|0.0.0.0", "8388", "::1", "1984"), server: true, want: &Env{Listen: []string{"[::]:8388", "0.0.0.0:8388"}, Dial: "[::1]:1984"}},
		"server, blanks":   {env: vars(" [::] | 0.0.0.0 ", "8388", "localhost", "1984"), server: true, want: &Env{Listen: []string{"[::]:8388", "0.0.0.0:8388"}, Dial: "localhost:1984"}},
		"IPv6":             {env: vars("2001:db8::1", "8388", "::1", "1984"), want: &Env{Listen: []string{"[::1]:1984"}, Dial: "[2001:db8::1]:8388"}},
		"IPv6 in brackets": {env: vars("[2001:db8::1]", "8388", "[::1]", "1984"), want: &Env{Listen: []string{"[::1]:1984"}, Dial: "[2001:db8::1]:8388"}},
		"IPv6 with a zone": {env: vars("fe80::1%eth0", "8388", "::1", "1984"), want: &Env{Listen: []string{"[::1]:1984"}, Dial: "[fe80::1%eth0]:8388"}},
		"options": {
			env:  with(vars("a", "65535", "b", "1"), "SS_PLUGIN_OPTIONS", `ws;host=a\;b`),
			want: &Env{Listen: []string{"b:1"}, Dial: "a:65535", Options: `ws;host=a\;b`},
		},

		"one":                  {env: env{"SS_LOCAL_HOST": "a"}, err: "missing SS_REMOTE_HOST, SS_REMOTE_PORT and SS_LOCAL_PORT next to SS_LOCAL_HOST"},
		"three":                {env: vars("a", "1", "b", ""), err: "missing SS_LOCAL_PORT"},
		"port 0":               {env: vars("a", "0", "b", "1"), err: `SS_REMOTE_PORT: "0" is not a port`},
		"port 65536":           {env: vars("a", "1", "b", "65536"), err: `SS_LOCAL_PORT: "65536" is not a port`},
		"port by name":         {env: vars("a", "https", "b", "1"), err: `SS_REMOTE_PORT: "https" is not a port`},
		"negative port":        {env: vars("a", "-1", "b", "1"), err: "SS_REMOTE_PORT"},
		"port in the host":     {env: vars("a:443", "443", "b", "1"), err: `SS_REMOTE_HOST: "a:443" is not a host`},
		"no host":              {env: vars(" ", "443", "b", "1"), err: "SS_REMOTE_HOST"},
		"empty host in a list": {env: vars("::|", "443", "b", "1"), server: true, err: "SS_REMOTE_HOST"},
		"list to dial":         {env: vars("::|0.0.0.0", "443", "b", "1"), err: "SS_REMOTE_HOST"},
		"list of locals":       {env: vars("a", "443", "::|0.0.0.0", "1"), server: true, err: "SS_LOCAL_HOST"},
		"open bracket":         {env: vars("[::1", "443", "b", "1"), err: "SS_REMOTE_HOST"},
		"name in brackets":     {env: vars("[a]", "443", "b", "1"), err: "SS_REMOTE_HOST"},
		"newline in the host":  {env: vars("a\nb", "443", "b", "1"), err: "SS_REMOTE_HOST"},
	} {
		t.Run(name, func(t *testing.T) {
			lookup := func(name string) (string, bool) { v, ok := test.env[name]; return v, ok }
			got, err := FromEnvironment(lookup, test.server)
			if test.err != "" {
				var hint interface{ Hint() string }
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got error %v, want %q", err, test.err)
				} else if !errors.As(err, &hint) || hint.Hint() == "" {
					t.Errorf("no hint in %v", err)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, test.want)
			}
		})
	}
}
