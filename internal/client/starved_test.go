package client

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// starved is a dialer for connections that find no descriptor left.
func starved(t testing.TB) *tunnel.Dialer {
	proxy, err := url.Parse("http://" + tunneltest.Serve(t, func(*net.TCPConn) {}))
	if err != nil {
		t.Fatal(err)
	}
	return &tunnel.Dialer{
		Proxy: func(string) (*url.URL, error) { return proxy, nil },
		ProxyUser: func(context.Context) (*url.Userinfo, error) {
			return nil, fmt.Errorf("dial: %w", os.NewSyscallError("socket", syscall.EMFILE))
		},
	}
}

// Whoever waits keeps a descriptor: where these are what is missing, nobody does, and the edge is not blamed.
func TestNoDescriptorIsNoOutage(t *testing.T) {
	t.Parallel()
	address, l := startClient(t, &Tunnel{Remote: "edge.example.com:443", Dialer: starved(t), Pool: 2, Wait: time.Hour})
	if took := turnedAway(t, address); took > patience/2 {
		t.Errorf("turned away after %v, want at once", took)
	}
	eventually(t, "the error in the status", func() bool { return strings.Contains(l.client.Status()[0].LastError, "too many open files") })
	if s := l.client.Status()[0]; s.Error != "" {
		t.Errorf("the edge is out of reach: %s", s.Error)
	}
}

// starvedListener fails so many times, and then waits until it is closed.
type starvedListener struct {
	net.Listener
	left   atomic.Int32
	waited chan struct{}
}

func (l *starvedListener) Accept() (net.Conn, error) {
	if l.left.Add(-1) >= 0 {
		return nil, os.NewSyscallError("accept4", syscall.EMFILE)
	}
	close(l.waited)
	return l.Listener.Accept()
}

// A run of errors of a listener is one line.
func TestAcceptErrorsAreToldOnce(t *testing.T) {
	t.Parallel()
	log := new(outages)
	c := &Client{Alone: true, Log: slog.New(slog.NewTextHandler(log, nil))}
	if err := c.Apply(t.Context(), []*Tunnel{{Listen: []string{"127.0.0.1:0"}, Remote: "127.0.0.1:1", Dialer: new(tunnel.Dialer)}}); err != nil {
		t.Fatal(err)
	}
	d := c.doors["127.0.0.1:0"]
	l := &starvedListener{Listener: d.Listener, waited: make(chan struct{})}
	l.left.Store(5)
	d.Listener = l
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	select {
	case <-l.waited:
	case <-time.After(patience):
		t.Error("the listener was not asked again")
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "msg=accept"); n != 1 {
		t.Errorf("%d lines, want one:\n%s", n, log)
	}
}
