package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// lines takes what a log says, a line at a time.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// echoing is the address of an edge that knows the echo.
func echoing(t *testing.T, tr tunneltest.Transport, targets bool, log io.Writer) string {
	t.Helper()
	server := slices.Clone(tr.Server)
	w := *server[len(server)-1].(*tunnel.WebSocket)
	w.Targets = targets
	server[len(server)-1] = &w
	return serveForwarder(t, &tunnel.Forwarder{Accept: server, Drain: -1, Log: slog.New(slog.NewTextHandler(log, nil)),
		Dial: func(_ context.Context, info *tunnel.Info) (tunnel.Conn, error) {
			if info.Target != tunnel.TargetEcho {
				return nil, errors.New("something else than an echo: " + info.Target)
			}
			return tunnel.NewEcho(), nil
		}})
}

func TestEcho(t *testing.T) {
	const size = 3 << 20
	for _, tr := range waiting(t, tunneltest.NewCA(t)) {
		t.Run(tr.Name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			log := make(lines, 10)
			c := waitingConn(t, tr.Client, echoing(t, tr, true, log))
			if err := tunnel.Echo(c); err != nil {
				t.Fatal(err)
			}
			if err := tunnel.Take(c, ""); err == nil {
				t.Error("a connection was taken twice")
			}
			if err := tunnel.AwaitOpen(c); err != nil {
				t.Fatal(err)
			}
			sent := make(chan error, 1)
			go func() { sent <- tunneltest.SendRandomly(c, size, 1) }()
			if err := tunneltest.Receive(c, size, 1); err != nil {
				t.Fatal(err)
			}
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
			c.Close()
			select {
			case line := <-log:
				if !strings.Contains(line, `msg="tunnel closed"`) || !strings.Contains(line, " target=echo sent=3145728 received=3145728 ") {
					t.Errorf("logged %s", line)
				}
			case <-time.After(20 * time.Second):
				t.Error("the log has no line")
			}
		})
	}
}

// Where no client may choose anything there is no echo either, and where nobody waits none can be asked for.
func TestEchoWhereThereIsNone(t *testing.T) {
	for _, tr := range waiting(t, tunneltest.NewCA(t)) {
		c := waitingConn(t, tr.Client, echoing(t, tr, false, io.Discard))
		if err := tunnel.Echo(c); err != nil {
			t.Fatal(err)
		}
		var refused *tunnel.TargetError
		if err := tunnel.AwaitOpen(c); !errors.As(err, &refused) || refused.Reason != tunnel.ReasonForbidden {
			t.Errorf("%s: got %v", tr.Name, err)
		}
	}
	a, b := tunneltest.Pipe()
	defer a.Close()
	defer b.Close()
	if err := tunnel.Echo(a); err == nil {
		t.Error("an edge that does not wait was asked for an echo")
	}
}

// The end of an echo is one for its client, too, which does not wait for ever.
func TestEchoIsBounded(t *testing.T) {
	c := tunnel.NewEchoOf(1000, time.Hour)
	defer c.Close()
	written := make(chan int, 1)
	go func() {
		n, err := c.Write(make([]byte, 1500))
		if err == nil {
			t.Error("more was taken than an echo has")
		}
		if m, err := c.Write([]byte("more")); m > 0 || err == nil {
			t.Errorf("then %d bytes more were taken, %v", m, err)
		}
		written <- n
	}()
	got, err := io.ReadAll(c)
	if n := <-written; n != 1000 || err != nil || !bytes.Equal(got, make([]byte, 1000)) {
		t.Errorf("wrote %d bytes, read %d, %v; want 1000", n, len(got), err)
	}

	c = tunnel.NewEchoOf(1000, time.Millisecond)
	defer c.Close()
	if n, err := c.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		t.Errorf("an echo that is over gave %d bytes, %v", n, err)
	}
	if n, err := c.Write([]byte("more")); n > 0 || err == nil {
		t.Errorf("an echo that is over took %d bytes", n)
	}
}

// Nobody reads what a client sends that does not read what comes back.
func TestEchoHoldsNothing(t *testing.T) {
	c := tunnel.NewEcho()
	defer c.Close()
	c.SetWriteDeadline(time.Unix(1, 0))
	if n, err := c.Write([]byte("word")); n > 0 || err == nil {
		t.Errorf("%d bytes were taken, %v", n, err)
	}
}
