package main

import (
	"strings"
	"testing"
	"time"
	"unicode"

	"raimon/internal/client"
)

// reports are one client with tunnels in all states, and one with none.
func reports(now time.Time) []report {
	ago := func(seconds int) time.Time { return now.Add(-time.Duration(seconds) * time.Second) }
	return []report{
		{File: "/home/me/tunnels.toml", PID: 4711, Started: ago(3600), Tunnels: []client.Status{
			{Name: "ssh", Listen: []string{"127.0.0.1:2222", "[::1]:2222"}, Remote: "edge.example.com:443", Transport: "wss", Reached: ago(9), RoundTrip: 12_345_678,
				Open: 1, Total: 1234, Sent: 1_234_567, Received: 99, LastError: "hangs up", LastErrorAt: ago(180)},
			{Name: "db", Listen: []string{"127.0.0.1:5432"}, Remote: "edge.example.com:443", Transport: "wss", Since: ago(32), Error: "no route", Pool: 2, LastError: "no route", LastErrorAt: ago(1)},
			{Name: "web", Listen: []string{"127.0.0.1:1080"}, Remote: "edge.example.com:443", Transport: "tls", Reached: ago(1), RoundTrip: 1_234_567, Pool: 2, Ready: 2},
			{Name: "new", Listen: []string{"unix:/run/x"}, Remote: "edge.example.com:443", Transport: "tcp", Pool: 1},
			{Name: "quiet", Listen: []string{":1"}, Remote: "e:1", Transport: "tcp"},
		}},
		{File: "/home/me/other.toml", PID: 4712, Started: ago(61)},
	}
}

func TestStatusAsTables(t *testing.T) {
	now := time.Now()
	want := `/home/me/tunnels.toml (process 4711, for 1 h 0 min)

TUNNEL  STATE                  LISTEN -> REMOTE                                    OVER  POOL  OPEN  TOTAL  SENT    RECEIVED  ROUND TRIP
ssh     ready                  127.0.0.1:2222, [::1]:2222 -> edge.example.com:443  wss   -     1     1234   1.2 MB  99 B      12ms
db      out of reach for 32 s  127.0.0.1:5432 -> edge.example.com:443              wss   0/2   0     0      0 B     0 B       -
web     ready                  127.0.0.1:1080 -> edge.example.com:443              tls   2/2   0     0      0 B     0 B       1.23ms
new     waiting                unix:/run/x -> edge.example.com:443                 tcp   0/1   0     0      0 B     0 B       -
quiet   idle                   :1 -> e:1                                           tcp   -     0     0      0 B     0 B       -

ssh: last error, 3 min 0 s ago: hangs up
db: out of reach: no route

/home/me/other.toml (process 4712, for 1 min 1 s)

TUNNEL  STATE  LISTEN -> REMOTE  OVER  POOL  OPEN  TOTAL  SENT  RECEIVED  ROUND TRIP
`
	if got := statusText(reports(now), now, 140); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestStatusOnANarrowTerminal(t *testing.T) {
	now := time.Now()
	want := `/home/me/tunnels.toml (process 4711, for 1 h 0 min)

ssh: ready
  127.0.0.1:2222, [::1]:2222 -> edge.example.com:443 over wss
  pool -, open 1 of 1234
  sent 1.2 MB, received 99 B, round trip 12ms
  last error, 3 min 0 s ago: hangs up
db: out of reach for 32 s
  127.0.0.1:5432 -> edge.example.com:443 over wss
  pool 0/2, open 0 of 0
  sent 0 B, received 0 B, round trip -
  out of reach: no route
`
	if got := statusText(reports(now), now, 80); !strings.HasPrefix(got, want) {
		t.Errorf("got\n%s\nwant it to begin with\n%s", got, want)
	}
}

// What a network says does not reach the terminal as it is, nor in any length.
func TestStatusOfHostileNetworks(t *testing.T) {
	now := time.Now()
	all := reports(now)
	hostile := "\x1b]0;owned\a\x1b[2J\nfake line\u202e" + strings.Repeat("x", 100_000)
	for n := range all[0].Tunnels {
		s := &all[0].Tunnels[n]
		s.Name, s.Error, s.LastError = "\x1bname\n", hostile, hostile+"!"
	}
	for _, width := range []int{1, 80, unlimited} {
		got := statusText(all, now, width)
		for line := range strings.Lines(got) {
			if strings.HasPrefix(line, "fake line") || len(line) > 2*longestError {
				t.Errorf("width %d: line of %d bytes, %.60q", width, len(line), line)
			}
		}
		if n := strings.IndexFunc(got, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); n >= 0 {
			t.Errorf("width %d: not printable: %q", width, got[n:n+1])
		}
	}
}

// Without a pool nobody tries to reach an edge that no program wants: what is known of it is old.
func TestStatusOfAnEdgeThatNobodyTries(t *testing.T) {
	now := time.Now()
	s := client.Status{Since: now.Add(-time.Hour), Error: "no route", LastError: "no route", LastErrorAt: now.Add(-time.Minute)}
	for want, change := range map[string]func(*client.Status){
		"idle, out of reach when last tried 1 min 0 s ago": func(*client.Status) {},
		"idle, out of reach when last tried":               func(s *client.Status) { s.LastError = "" },
		"out of reach for 1 h 0 min":                       func(s *client.Status) { s.Open = 1 },
	} {
		s := s
		change(&s)
		if got := state(s, now); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := poolText(client.Status{Pool: 2, Ready: 3}); got != "2/2" {
		t.Errorf("pool %q while one is renewed", got)
	}
}
