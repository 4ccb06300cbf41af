package tunnel_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// What Header gives is part of the one write that the request is, in the spelling that it was given in.
func TestHeaderIsSent(t *testing.T) {
	big := strings.Repeat("x", 60<<10)
	dialed, accepted := tunneltest.Pair(t)
	seen := make(chan http.Header, 1)
	served := make(chan error, 1)
	edge := &tunnel.WebSocket{Match: func(r *http.Request, _ *tunnel.Info) bool {
		seen <- r.Header
		return true
	}}
	go func() {
		_, err := edge.Server(context.Background(), accepted, &tunnel.Info{})
		served <- err
	}()
	c := &countedWrites{Conn: dialed}
	client := &tunnel.WebSocket{Host: "a.test", Path: "/ws",
		Token: func(context.Context) (string, error) { return "t", nil },
		Header: func(context.Context) (http.Header, error) {
			return http.Header{"CF-Access-Client-Id": {"a, b"}, "User-Agent": {"Mozilla/5.0"}, "X-Big": {big}}, nil
		}}
	if _, err := client.Client(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	got := <-seen
	for name, want := range map[string]string{"CF-Access-Client-Id": "a, b", "User-Agent": "Mozilla/5.0", "X-Big": big, "Authorization": "Bearer t"} {
		if got.Get(name) != want {
			t.Errorf("the edge has seen %s: %.60q", name, got.Get(name))
		}
	}
	if c.writes != 1 {
		t.Errorf("the request took %d writes, want 1", c.writes)
	}
}

// What would end a line, or the patience of a server, ends the handshake before anything is sent.
func TestHeaderIsNotSent(t *testing.T) {
	gone := errors.New("none today")
	for name, test := range map[string]struct {
		header http.Header
		err    error
		want   string
	}{
		"error":       {nil, gone, "websocket handshake: none today"},
		"line end":    {http.Header{"X-Secret": {"s3cr3t\r\nHost: b.test"}}, nil, "header X-Secret: its value has a control character"},
		"zero":        {http.Header{"X-Secret": {"s3cr3t\x00"}}, nil, "header X-Secret: its value"},
		"second":      {http.Header{"X-Secret": {"a", "s3cr3t\n"}}, nil, "header X-Secret: its value"},
		"name":        {http.Header{"X: y\r\nZ": {"s3cr3t"}}, nil, "that is no name"},
		"no name":     {http.Header{"": {"s3cr3t"}}, nil, "that is no name"},
		"much":        {http.Header{"X": {strings.Repeat("s3cr3t", 11_000)}}, nil, "more than 64 KiB"},
		"much in all": {http.Header{"X": {strings.Repeat("x", 40<<10), strings.Repeat("x", 40<<10)}}, nil, "more than 64 KiB"},
	} {
		t.Run(name, func(t *testing.T) {
			dialed, _ := tunneltest.Pair(t)
			c := &countedWrites{Conn: dialed}
			w := &tunnel.WebSocket{Host: "a.test", Path: "/ws", Header: func(context.Context) (http.Header, error) { return test.header, test.err }}
			_, err := w.Client(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "s3cr3t") || test.err != nil && !errors.Is(err, test.err) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if c.writes != 0 {
				t.Errorf("%d writes were made", c.writes)
			}
		})
	}
}
