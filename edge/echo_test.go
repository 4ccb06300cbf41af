package edge

import (
	"errors"
	"testing"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// An echo is a tunnel of its route like any other, without a target, and nobody but its client is told anything.
func TestEcho(t *testing.T) {
	s := newScene(t, func(s *scene) {
		s.config.Sites[0].Routes = append(s.config.Sites[0].Routes,
			&Route{Path: "/elsewhere", Limit: 1, Proxy: 1, Targets: rules(t, "127.0.0.1:*")})
	})
	for _, path := range []string{"/narrow", "/elsewhere"} {
		first, second := s.waits(path), s.waits(path)
		if err := errors.Join(tunnel.Echo(first), tunnel.AwaitOpen(first)); err != nil {
			t.Fatal(err)
		}
		if !s.eventually(func() bool {
			got := s.server.Tunnels()
			return len(got) == 1 && got[0].Target == tunnel.TargetEcho && got[0].Route == path
		}) {
			t.Errorf("%s: open are %v", path, s.server.Tunnels())
		}
		if err := errors.Join(tunnel.Echo(second), tunnel.AwaitOpen(second)); tunnel.Reason(err) != tunnel.ReasonBusy {
			t.Errorf("%s: got %v, want busy", path, err)
		}
		sent := make(chan error, 1)
		go func() { sent <- tunneltest.SendRandomly(first, 1<<20, 1) }()
		if err := errors.Join(tunneltest.Receive(first, 1<<20, 1), <-sent); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		first.Close()
		if !s.eventually(func() bool {
			c := s.waits(path)
			defer c.Close()
			return errors.Join(tunnel.Echo(c), tunnel.AwaitOpen(c)) == nil
		}) {
			t.Errorf("%s: its place is not given back", path)
		}
		if !s.eventually(func() bool { return len(s.server.Tunnels()) == 0 }) {
			t.Errorf("%s: still open are %v", path, s.server.Tunnels())
		}
	}
}
