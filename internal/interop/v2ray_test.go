//go:build interop

package interop

import (
	"fmt"
	"io"
	"testing"
	"time"
)

// startV2ray starts v2ray-plugin as shadowsocks would.
func startV2ray(t testing.TB, remote, local, option, listens string) {
	t.Helper()
	p := start(t, "ss-v2ray-plugin", []string{
		"SS_REMOTE_HOST=" + host(remote), "SS_REMOTE_PORT=" + port(remote),
		"SS_LOCAL_HOST=" + host(local), "SS_LOCAL_PORT=" + port(local),
		"SS_PLUGIN_OPTIONS=" + option,
	})
	p.awaitPort(t, listens)
}

// v2rayCases are ws and wss with v2ray-plugin's own options, which raimon takes as well.
func v2rayCases(t testing.TB) []transportCase {
	var cases []transportCase
	for _, c := range transports(t) {
		switch c.name {
		case "wss":
			c.server = c.server[len(wsOption)+1:] + ";mode=websocket;mux=0;host=localhost;path=/tunnel"
			c.client = "tls;mode=websocket;mux=0;host=localhost;path=/tunnel;cert=" + c.ca
		case "ws":
			c.server, c.client = "mode=websocket;mux=0;host=localhost;path=/tunnel", "mode=websocket;mux=0;host=localhost;path=/tunnel"
		default:
			continue
		}
		cases = append(cases, c)
	}
	return cases
}

func TestV2rayClient(t *testing.T) {
	g := newTarget(t)
	for _, c := range v2rayCases(t) {
		t.Run(c.name, func(t *testing.T) {
			_, edge := startRaimons(t, g.address, c.server+";ping=200ms")
			client := freePort()
			startV2ray(t, edge, client, c.client, client)
			v2rayStreams(t, client)
		})
	}
}

func TestV2rayServer(t *testing.T) {
	g := newTarget(t)
	for _, c := range v2rayCases(t) {
		t.Run(c.name, func(t *testing.T) {
			edge := freePort()
			startV2ray(t, edge, g.address, c.server+";server", edge)
			_, client := startRaimonc(t, edge, c.client+";ping=200ms")
			v2rayStreams(t, client)
		})
	}
}

// v2rayStreams is what v2ray-plugin can carry: it knows no half-close, and drops what it has not
// passed on a second or two after either end.
func v2rayStreams(t *testing.T, address string) {
	all(t, map[string]func(t testing.TB) error{
		"lockstep": func(t testing.TB) error { return tryOpenEcho(t, address, megabyte) },
		"bulk":     func(t testing.TB) error { return tryOpenEcho(t, address, 8*megabyte) },
		"target closes": func(t testing.TB) error {
			for _, n := range []int{1, 1000, 70_000, 8 * megabyte} {
				if err := tryClosing(t, address, n); err != nil {
					return err
				}
			}
			return nil
		},
		"idle": func(t testing.TB) error { return tryIdle(t, address, 2*time.Second) },
		"half-close": func(t testing.TB) error {
			// The target never hears of the end; the reply must come within v2ray-plugin's second of grace.
			return tryAnswer(t, address, 500*time.Millisecond, 70_000)
		},
	})
}

// tryOpenEcho is tryEcho in which nobody ends before all has come back.
func tryOpenEcho(t testing.TB, address string, n int) error {
	t.Helper()
	c := dial(t, address, "echo")
	defer c.Close()
	sent := flow(c, n, false)
	s := newSum()
	if _, err := io.CopyN(s, c, int64(n)); err != nil || s.String() != sumOf(n) {
		return fmt.Errorf("echo of %d: %v (%v), want %v", n, s, err, sumOf(n))
	}
	return <-sent
}

// tryAnswer ends our direction after the request, which the target answers after delay.
func tryAnswer(t testing.TB, address string, delay time.Duration, n int) error {
	t.Helper()
	c := dial(t, address, "answer %d %d", n, delay.Milliseconds())
	defer c.Close()
	if err := c.CloseWrite(); err != nil {
		return err
	}
	s := newSum()
	if _, err := io.Copy(s, c); err != nil || s.String() != sumOf(n) {
		return fmt.Errorf("answer: %v (%v), want %v", s, err, sumOf(n))
	}
	return nil
}
