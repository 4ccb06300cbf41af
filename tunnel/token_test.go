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

// countedWrites counts how often something is written to a connection.
type countedWrites struct {
	tunnel.Conn
	writes int
}

func (c *countedWrites) Write(p []byte) (int, error) {
	c.writes++
	return c.Conn.Write(p)
}

func TestTokenIsSent(t *testing.T) {
	for _, token := range []string{"t", "a-b_c~.+/==", strings.Repeat("x", 4096)} {
		dialed, accepted := tunneltest.Pair(t)
		seen := make(chan []string, 1)
		served := make(chan error, 1)
		edge := &tunnel.WebSocket{Match: func(r *http.Request, _ *tunnel.Info) bool {
			seen <- r.Header["Authorization"]
			return true
		}}
		go func() {
			_, err := edge.Server(context.Background(), accepted, &tunnel.Info{})
			served <- err
		}()
		c := &countedWrites{Conn: dialed}
		client := &tunnel.WebSocket{Host: "a.test", Path: "/ws", Token: func(context.Context) (string, error) { return token, nil }}
		if _, err := client.Client(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if err := <-served; err != nil {
			t.Fatal(err)
		}
		if got := <-seen; len(got) != 1 || got[0] != "Bearer "+token {
			t.Errorf("the edge has seen %.60q", got)
		}
		if c.writes != 1 {
			t.Errorf("the request took %d writes, want 1", c.writes)
		}
	}
}

// A token that would end the header, or that cannot be had, ends the handshake before anything is sent.
func TestTokenIsNotSent(t *testing.T) {
	gone := errors.New("no token today")
	for _, test := range []struct {
		token string
		err   error
		want  error
	}{
		{"", nil, tunnel.ErrToken}, {"s3cr3t\r\nX: y", nil, tunnel.ErrToken}, {"s3cr3t s3cr3t", nil, tunnel.ErrToken},
		{"s3cr3t\x7f", nil, tunnel.ErrToken}, {"s3cr3tü", nil, tunnel.ErrToken}, {strings.Repeat("s3cr3t", 700), nil, tunnel.ErrToken},
		{"s3cr3t", gone, gone},
	} {
		dialed, _ := tunneltest.Pair(t)
		c := &countedWrites{Conn: dialed}
		client := &tunnel.WebSocket{Host: "a.test", Path: "/ws", Token: func(context.Context) (string, error) { return test.token, test.err }}
		_, err := client.Client(t.Context(), c)
		if !errors.Is(err, test.want) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%.20q: got %v, want %v", test.token, err, test.want)
		}
		if c.writes != 0 {
			t.Errorf("%.20q: something was sent", test.token)
		}
	}
}

// Whoever is refused hears whether that may be for the token.
func TestTokenRefused(t *testing.T) {
	for _, token := range []func(context.Context) (string, error){nil, func(context.Context) (string, error) { return "wrong", nil }} {
		dialed, accepted := tunneltest.Pair(t)
		served := make(chan error, 1)
		edge := &tunnel.WebSocket{Match: func(*http.Request, *tunnel.Info) bool { return false }}
		go func() {
			_, err := edge.Server(context.Background(), accepted, &tunnel.Info{})
			served <- err
		}()
		client := &tunnel.WebSocket{Host: "a.test", Path: "/ws", Token: token}
		_, err := client.Client(t.Context(), dialed)
		var refused *tunnel.UpgradeError
		if !errors.As(err, &refused) || refused.Status != http.StatusNotFound || refused.Token != (token != nil) {
			t.Errorf("got %v (%+v)", err, refused)
		}
		dialed.Close()
		if err := <-served; !errors.Is(err, tunnel.ErrNoTunnel) {
			t.Errorf("the edge: %v", err)
		}
	}
}
