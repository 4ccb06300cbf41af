package client

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"raimon/internal/netwatch"
	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// outages are the lines of a log that are not for debugging.
type outages struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *outages) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *outages) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// newOutage is an outage of a link that is not dialed, and its log.
func newOutage(wait time.Duration) (*outage, *outages) {
	log := new(outages)
	c := &Client{Alone: true, Log: slog.New(slog.NewTextHandler(log, nil)), Hint: func(error) string { return "look at the cable" }}
	l := newLink(c, &Tunnel{Remote: "edge.example.com:443", Dialer: new(tunnel.Dialer), Wait: wait, Timeout: 10 * time.Second})
	return &l.outage, log
}

// lines wants so many lines about a beginning and about an end.
func (o *outages) lines(t *testing.T, began, ended int) {
	t.Helper()
	text := o.String()
	if b, e := strings.Count(text, "the edge cannot be reached"), strings.Count(text, "the edge is reached again"); b != began || e != ended {
		t.Errorf("%d lines about a beginning and %d about an end, want %d and %d:\n%s", b, e, began, ended, text)
	}
}

var errDown = errors.New("connection refused")

// visit waits for its turns and tries until an attempt goes well.
func (o *outage) visit(ctx context.Context, deadline time.Time, attempt func(context.Context) error) error {
	for {
		if err := o.turn(ctx, deadline); err != nil {
			return err
		}
		err := o.try(ctx, attempt)
		if err == nil || isFinal(err) || ctx.Err() != nil || !time.Now().Before(deadline) {
			return err
		}
	}
}

// Those who wait take turns: of forty, one tries at a time, and less and less often.
func TestOneTriesForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, log := newOutage(time.Minute)
		if err := o.try(t.Context(), func(context.Context) error { return errDown }); err != errDown {
			t.Fatal(err)
		}
		up := time.Now().Add(30 * time.Second)
		var attempts []time.Time // before the end
		var trying, most atomic.Int32
		attempt := func(context.Context) error {
			most.Store(max(most.Load(), trying.Add(1)))
			defer trying.Add(-1)
			begin := time.Now()
			time.Sleep(50 * time.Millisecond)
			if begin.Before(up) {
				attempts = append(attempts, begin)
				return errDown
			}
			return nil
		}
		var visits sync.WaitGroup
		for range 40 {
			visits.Go(func() {
				if err := o.visit(t.Context(), time.Now().Add(time.Minute), func(ctx context.Context) error {
					if time.Now().Before(up) {
						return attempt(ctx)
					}
					return nil
				}); err != nil {
					t.Error(err)
				}
				if late := time.Since(up); late > 2*longestPause {
					t.Errorf("got through %v after the edge had come back", late)
				}
			})
		}
		visits.Wait()

		if most.Load() != 1 {
			t.Errorf("%d tried at a time", most.Load())
		}
		if n := len(attempts); n < 7 || n > 25 {
			t.Errorf("%d attempts in 30 s, want a dozen", n)
		}
		for i := range attempts[1:] {
			if pause := attempts[i+1].Sub(attempts[i]); pause < firstPause/2 || pause > longestPause*3/2+100*time.Millisecond {
				t.Errorf("pause of %v", pause)
			}
		}
		log.lines(t, 1, 1)
		if text := log.String(); !strings.Contains(text, `error="connection refused" hint="look at the cable" programs_wait=1m0s`) ||
			!strings.Contains(text, fmt.Sprintf("attempts=%d", len(attempts)+2)) || !strings.Contains(text, "after=") {
			t.Errorf("the log says:\n%s", text)
		}
	})
}

// Twenty attempts that fail together are one reason to pause.
func TestFailuresTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, log := newOutage(time.Minute)
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if err := o.visit(t.Context(), time.Now(), func(context.Context) error { time.Sleep(time.Second); return errDown }); err != errDown {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if pause := time.Until(o.backoff.until); pause > 2*firstPause {
			t.Errorf("the next attempt is in %v", pause)
		}
		log.lines(t, 1, 0)
	})
}

// An attempt over a network that is no more is over, and the next begins at once.
func TestNetworkChangeEndsAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, log := newOutage(time.Minute)
		o.try(t.Context(), func(context.Context) error { return errDown })
		for range 8 { // pauses have grown
			time.Sleep(2 * longestPause)
			o.try(t.Context(), func(context.Context) error { return errDown })
		}
		begin := time.Now()
		var ended error
		attempt := func(ctx context.Context) error {
			if ended != nil {
				return nil
			}
			<-ctx.Done()
			ended = context.Cause(ctx)
			return ctx.Err()
		}
		visits := make(chan error, 2)
		for range 2 {
			go func() { visits <- o.visit(t.Context(), begin.Add(time.Hour), attempt) }()
		}
		time.Sleep(2 * longestPause)
		if err := func() error { o.retry(true); return <-visits }(); err != nil {
			t.Error(err)
		}
		if err := <-visits; err != nil {
			t.Error(err)
		}
		if ended != errNetworkChanged || time.Since(begin) != 2*longestPause {
			t.Errorf("the attempt ended with %v after %v", ended, time.Since(begin))
		}
		log.lines(t, 1, 1)
	})
}

// What is still told of the time before the edge was reached again does not make it unreachable.
func TestLateFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, log := newOutage(time.Minute)
		late := make(chan error, 1)
		go func() {
			late <- o.try(t.Context(), func(context.Context) error { time.Sleep(5 * time.Second); return errDown })
		}()
		synctest.Wait()
		time.Sleep(time.Second)
		if err := o.try(t.Context(), func(context.Context) error { return nil }); err != nil {
			t.Error(err)
		}
		err := <-late
		if !errors.Is(err, errDown) {
			t.Error(err)
		}
		if errors.As(told(err), new(tunnel.Told)) {
			t.Error("nobody has told of it")
		}
		if since, cause := o.state(); !since.IsZero() {
			t.Errorf("the edge cannot be reached since %v: %v", since, cause)
		}
		log.lines(t, 0, 0)
	})
}

func TestWaitHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, log := newOutage(15 * time.Second)
		begin := time.Now()
		err := o.visit(t.Context(), begin.Add(15*time.Second), func(context.Context) error { return errDown })
		var told tunnel.Told
		if !errors.As(err, &told) || !errors.Is(err, errDown) || time.Since(begin) != 15*time.Second {
			t.Errorf("got %v after %v, want what is the matter after 15s", err, time.Since(begin))
		}

		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		err = o.visit(ctx, time.Now().Add(15*time.Second), func(context.Context) error { return errDown })
		if !errors.Is(err, context.Canceled) && err != errDown {
			t.Errorf("got %v, want the end of the context", err)
		}
		log.lines(t, 1, 0)
	})
}

// With wait=0 each connection has one attempt, at once.
func TestNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, log := newOutage(0)
		begin := time.Now()
		for range 10 {
			if err := o.visit(t.Context(), time.Time{}, func(context.Context) error { return errDown }); err != errDown {
				t.Error(err)
			}
		}
		if time.Since(begin) != 0 {
			t.Errorf("they have waited for %v", time.Since(begin))
		}
		log.lines(t, 1, 0)
		if strings.Contains(log.String(), "programs_wait") {
			t.Errorf("the log says that somebody tries:\n%s", log)
		}
	})
}

// What time does not heal is told at once to each, and once to the log; also where it comes after something else.
func TestFinalErrors(t *testing.T) {
	for name, final := range map[string]error{
		"404":                 &tunnel.UpgradeError{Status: 404},
		"unknown authority":   fmt.Errorf("handshake: %w", x509.UnknownAuthorityError{}),
		"name of another":     x509.HostnameError{Certificate: new(x509.Certificate), Host: "edge"},
		"expired certificate": x509.CertificateInvalidError{Reason: x509.Expired},
		"wrong token":         tunnel.ErrToken,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, log := newOutage(time.Minute)
				o.try(t.Context(), func(context.Context) error { return errDown })
				time.Sleep(longestPause)
				begin := time.Now()
				for range 10 {
					if err := o.visit(t.Context(), begin.Add(time.Minute), func(context.Context) error { return final }); err != final {
						t.Error(err)
					}
				}
				if time.Since(begin) != 0 {
					t.Errorf("they have waited for %v", time.Since(begin))
				}
				log.lines(t, 2, 0)
				if err := o.visit(t.Context(), begin.Add(time.Minute), func(context.Context) error { return nil }); err != nil {
					t.Error(err)
				}
				log.lines(t, 2, 1)
			})
		})
	}
	for _, passing := range []error{
		&tunnel.UpgradeError{Status: 502}, &tunnel.UpgradeError{Status: 429}, &tunnel.UpgradeError{Status: 408}, tunnel.ErrTimeout, errDown,
	} {
		if isFinal(passing) {
			t.Errorf("%v is final", passing)
		}
	}
}

// An attempt whose program has gone says nothing of the edge, and keeps nobody from trying.
func TestProgramGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, log := newOutage(time.Minute)
		o.try(t.Context(), func(context.Context) error { return errDown })
		time.Sleep(longestPause)
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan error, 1)
		go func() {
			gone <- o.visit(ctx, time.Now().Add(time.Minute), func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		}()
		synctest.Wait()
		begin := time.Now()
		other := make(chan error, 1)
		go func() {
			other <- o.visit(t.Context(), time.Now().Add(time.Minute), func(context.Context) error { return nil })
		}()
		synctest.Wait()
		cancel()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := <-other; err != nil || time.Since(begin) != 0 {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
		log.lines(t, 1, 1)
	})
}

// Of what the network has ended the log has one line, and none while it knows of an outage.
func TestOneLineForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := newOutage(time.Minute)
		l := o.link
		if l.isTold(errDown) || l.isTold(ErrForgotten) {
			t.Error("the first is told already")
		}
		for _, err := range []error{ErrForgotten, ErrMoved, fmt.Errorf("read: %w", tunnel.ErrTimeout)} {
			if !l.isTold(err) {
				t.Errorf("%v is not told", err)
			}
		}
		if l.isTold(errDown) {
			t.Error("what has another reason is not told")
		}
		time.Sleep(silenceTime)
		if l.isTold(ErrMoved) {
			t.Error("after a while it is news")
		}
		time.Sleep(silenceTime)
		o.try(t.Context(), func(context.Context) error { return errDown })
		if !l.isTold(ErrMoved) {
			t.Error("in an outage it is not told")
		}
	})
}

// The pool does not pause for what has failed only because the network has changed.
func TestNetworkChangeFillsPool(t *testing.T) {
	t.Parallel()
	e := newEdge(t, ws(), tunneltest.Echo(t))
	g := newGate(t, e.address)
	e.stop()
	_, l := startClient(t, &Tunnel{Remote: g.address, Dialer: new(tunnel.Dialer), Transport: ws(), Pool: 1, Wait: patience})
	eventually(t, "the pool pauses", func() bool {
		l.pool.mu.Lock()
		defer l.pool.mu.Unlock()
		return l.pool.away.pause > 0
	})
	e.start()
	release, _ := g.hold(fromEdge)
	l.networkChanged(netwatch.Change{Routes: true})
	eventually(t, "it tries again", func() bool {
		l.outage.mu.Lock()
		defer l.outage.mu.Unlock()
		return l.outage.network != nil
	})
	l.networkChanged(netwatch.Change{Routes: true})
	release()
	full(t, l)
}

// Addresses that come and go elsewhere are no other network: the pool is kept.
func TestAddressesElsewhere(t *testing.T) {
	t.Parallel()
	e := newEdge(t, ws(), tunneltest.Echo(t))
	_, l := startClient(t, &Tunnel{Remote: e.address, Dialer: new(tunnel.Dialer), Transport: ws(), Pool: 1, Wait: patience})
	full(t, l)
	ready := func() *ready {
		l.pool.mu.Lock()
		defer l.pool.mu.Unlock()
		if len(l.pool.idle) == 0 {
			return nil
		}
		return l.pool.idle[0]
	}
	before := ready()
	for range 10 {
		l.networkChanged(netwatch.Change{Addresses: true})
	}
	if ready() != before {
		t.Error("the pool has another connection than before")
	}
}

func TestAddressesElsewhereLeaveAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o, _ := newOutage(time.Minute)
		ended := make(chan error, 1)
		attempt := func() {
			go func() {
				ended <- o.try(t.Context(), func(ctx context.Context) error {
					select {
					case <-ctx.Done():
						return ctx.Err()
					case <-time.After(5 * time.Second):
						return nil
					}
				})
			}()
			synctest.Wait()
		}
		attempt()
		o.retry(false) // the way to the edge may be another
		if err := <-ended; err != errNetworkChanged {
			t.Errorf("the attempt ends with %v", err)
		}
		attempt()
		for range 5 {
			time.Sleep(500 * time.Millisecond)
			o.retry(false)
		}
		if err := <-ended; err != nil {
			t.Errorf("addresses that come and go: the attempt ends with %v", err)
		}
	})
}

// Of the addresses of an edge, one where nobody answers, or somebody else does, does not keep programs from the others.
func TestAddressOfAnother(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		serve func(net.Conn)
		wait  time.Duration
	}{
		"that answers nothing":   {func(c net.Conn) { io.Copy(io.Discard, c) }, patience},
		"that resets":            {func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }, 0},
		"that is another server": {func(c net.Conn) { io.WriteString(c, "HTTP/1.1 404 Not Found\r\n\r\n"); io.Copy(io.Discard, c) }, 0},
	} {
		for _, pool := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s pool=%d", name, pool), func(t *testing.T) {
				t.Parallel()
				_, port, err := net.SplitHostPort(newEdge(t, ws(), tunneltest.Echo(t)).address)
				if err != nil {
					t.Fatal(err)
				}
				other, err := net.Listen("tcp", "127.0.0.2:"+port)
				if err != nil {
					t.Skip("needs this address: ", err)
				}
				defer other.Close()
				go func() {
					for {
						c, err := other.Accept()
						if err != nil {
							return
						}
						go func() { defer c.Close(); tt.serve(c) }()
					}
				}()
				address, _ := startClient(t, &Tunnel{
					Remote: "edge.test:" + port, Dialer: &tunnel.Dialer{Resolver: addresses{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")}},
					Transport: ws(), Wait: tt.wait, Timeout: 500 * time.Millisecond, Pool: pool,
				})
				for range 3 {
					if got, err := exchange(t, address, "hello"); err != nil || got != "hello" {
						t.Errorf("got %q, %v", got, err)
					}
				}
			})
		}
	}
}

// An edge that takes the connection has its time for the handshake, however short programs wait for one that does not.
func TestShortWaitForSlowEdge(t *testing.T) {
	t.Parallel()
	g := newGate(t, newEdge(t, ws(), tunneltest.Echo(t)).address)
	address, _ := startClient(t, &Tunnel{Remote: g.address, Dialer: new(tunnel.Dialer), Transport: ws(), Wait: time.Millisecond})
	release, _ := g.hold(fromEdge)
	time.AfterFunc(lastAttempt+100*time.Millisecond, release)
	if got, err := exchange(t, address, "hello"); err != nil || got != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
}

// addresses is a resolver that knows one name.
type addresses []netip.Addr

func (a addresses) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	if network == "ip6" {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return a, nil
}
