package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// An address that becomes wider or narrower is in its own way; where the rest fails, the old one is open again.
func TestAddressBecomesWider(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free, err := net.Listen("tcp", ":0") // on all addresses
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(free.Addr().String())
	free.Close()

	target := tunneltest.Echo(t)
	tunnels := func(listen ...string) []*Tunnel {
		return []*Tunnel{{Name: "a", Key: listen[0], Listen: listen, Remote: target, Dialer: new(tunnel.Dialer)}}
	}
	narrow, wide := "127.0.0.1:"+port, ":"+port
	c := &Client{Alone: true}
	if err := c.Apply(t.Context(), tunnels(narrow)); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	for _, listen := range []string{narrow, wide, narrow, wide} {
		if err := c.Apply(t.Context(), tunnels(listen)); err != nil {
			t.Fatalf("to %s: %v", listen, err)
		}
		if got, err := exchange(t, narrow, "hello"); err != nil || got != "hello" {
			t.Fatalf("at %s: got %q, %v", listen, got, err)
		}
	}
	err = c.Apply(t.Context(), tunnels(narrow, taken.Addr().String()))
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Fatalf("got %v, want an address in use", err)
	}
	if got, err := exchange(t, narrow, "still"); err != nil || got != "still" {
		t.Errorf("after a refusal: got %q, %v", got, err)
	}
	if d := c.doors[wide]; d == nil || len(c.doors) != 1 {
		t.Errorf("after a refusal: the doors are %v, want that at %s", c.doors, wide)
	}
}

// Programs that wait for an edge go on with what a new config says in its place: with its pool, too. It may say so
// several times.
func TestProgramsWaitForNewRemote(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // its queue takes connections
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	const nobody = "127.0.0.1:1" // a port that is free now another test may get
	for name, wrong := range map[string][]string{
		"refuses":  {nobody},
		"silent":   {silent.Addr().String()},
		"by turns": {nobody, silent.Addr().String(), nobody, silent.Addr().String(), nobody, silent.Addr().String()},
	} {
		for _, pool := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s pool=%d", name, pool), func(t *testing.T) {
				t.Parallel()
				to := func(key, remote string) *Tunnel {
					return &Tunnel{Key: key, Listen: []string{"127.0.0.1:0"}, Remote: remote, Dialer: new(tunnel.Dialer), Transport: ws(), Wait: time.Hour, Timeout: time.Hour, Pool: pool}
				}
				address, first := startClient(t, to("0", wrong[0]))
				answers := make(chan string, 3)
				for range cap(answers) {
					go func() {
						got, err := exchange(t, address, "hello")
						answers <- got + errorText(err)
					}()
				}
				eventually(t, "all of them wait", func() bool { return first.client.Status()[0].Open == cap(answers) })
				for i, remote := range append(wrong[1:], newEdge(t, ws(), tunneltest.Echo(t)).address) {
					if err := first.client.Apply(t.Context(), []*Tunnel{to(fmt.Sprint(i+1), remote)}); err != nil {
						t.Fatal(err)
					}
				}
				for range cap(answers) {
					if got := <-answers; got != "hello" {
						t.Errorf("got %q", got)
					}
				}
			})
		}
	}
}
