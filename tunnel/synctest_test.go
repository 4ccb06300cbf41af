package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// transportsInBubbles are tcp, tls, ws and wss, with certificates that are valid in a bubble's time.
func transportsInBubbles(t testing.TB) []tunneltest.Transport {
	t.Helper()
	now := time.Now()
	var all []tunneltest.Transport
	for _, tr := range transports(t) {
		if len(tr.Client) > 0 {
			if secure, ok := tr.Client[0].(*tunnel.TLS); ok {
				secure.ClientConfig.Time = func() time.Time { return now }
			}
		}
		if !strings.HasSuffix(tr.Name, "-skip") && !strings.HasSuffix(tr.Name, "-fixed") {
			all = append(all, tr)
		}
	}
	return all
}

// event is one thing that happens to an open tunnel.
type event int

const (
	appData event = iota
	appEnd
	appReset
	targetData
	targetEnd
	targetReset
	killRST // of the link
	killFIN
	pingBoth
	closeToEdge // a Close frame without the end of the stream
	closeToClient
)

func (e event) String() string {
	return [...]string{"app data", "app end", "app reset", "target data", "target end", "target reset",
		"link RST", "link FIN", "pings", "close to edge", "close to client"}[e]
}

// breaks tells whether nothing can flow any more afterwards.
func (e event) breaks() bool {
	return e == appReset || e == targetReset || e == killRST || e == killFIN || e == closeToEdge || e == closeToClient
}

// sequences calls visit with every sequence of up to length events that can happen.
func sequences(events []event, length int, visit func([]event)) {
	var extend func(seq []event)
	extend = func(seq []event) {
		if len(seq) > 0 {
			visit(seq)
		}
		if len(seq) == length {
			return
		}
		for _, e := range events {
			if canFollow(seq, e) {
				extend(append(slices.Clone(seq), e))
			}
		}
	}
	extend(nil)
}

func canFollow(seq []event, e event) bool {
	has := func(e event) bool { return slices.Contains(seq, e) }
	switch e {
	case appData, appEnd:
		return !has(appEnd) && !has(appReset)
	case targetData, targetEnd:
		return !has(targetEnd) && !has(targetReset)
	}
	// What is broken is broken once; Pings come only while something flows.
	return !slices.ContainsFunc(seq, event.breaks) && !(has(appEnd) && has(targetEnd))
}

// player is app or target: what it did, and what it has seen.
type player struct {
	name  string
	conn  *tunneltest.PipeConn
	seen  *tunneltest.Record
	sent  []byte
	ended bool
	quit  bool // has reset its connection
}

func (p *player) send() {
	data := fmt.Appendf(nil, "%s says %d;", p.name, len(p.sent))
	if _, err := p.conn.Write(data); err == nil {
		p.sent = append(p.sent, data...)
	}
}

func (p *player) end() {
	if p.conn.CloseWrite() == nil {
		p.ended = true
	}
}

func (p *player) reset() {
	p.quit = true
	p.conn.SetLinger(0)
	p.conn.Close()
}

// play is a tunnel under a sequence of events.
type play struct {
	*tunneltest.Stage
	app, target *player
	broken      bool
	lingers     bool // each end of the link is read beyond the end of the stream
}

func newPlay(t testing.TB, tr tunneltest.Transport) *play {
	s := tunneltest.NewStage(t, tr, tunneltest.NewLink())
	p := &play{Stage: s, lingers: s.Tap != nil}
	p.app = &player{name: "app", conn: s.App, seen: tunneltest.NewRecord(s.App)}
	p.target = &player{name: "target", conn: s.Target, seen: tunneltest.NewRecord(s.Target)}
	synctest.Wait() // the handshakes are done
	return p
}

func (p *play) do(e event) {
	p.broken = p.broken || e.breaks()
	switch e {
	case appData:
		p.app.send()
	case appEnd:
		p.app.end()
	case appReset:
		p.app.reset()
	case targetData:
		p.target.send()
	case targetEnd:
		p.target.end()
	case targetReset:
		p.target.reset()
	case killRST, killFIN:
		p.Link.Kill(e == killRST)
	case pingBoth:
		p.Tap.Client.Write(ws.MustCompileFrame(ws.MaskFrame(ws.NewPingFrame([]byte("to edge")))))
		p.Tap.Server.Write(ws.MustCompileFrame(ws.NewPingFrame([]byte("to client"))))
	case closeToEdge:
		p.Tap.Client.Write(ws.MustCompileFrame(ws.MaskFrame(ws.NewCloseFrame(ws.NewCloseFrameBody(1000, "")))))
	case closeToClient:
		p.Tap.Server.Write(ws.MustCompileFrame(ws.NewCloseFrame(ws.NewCloseFrameBody(1000, ""))))
	}
}

// check compares what to has seen with what from did. Settled says that all has had its effect.
func (p *play) check(from, to *player, settled bool) error {
	if to.quit {
		return nil
	}
	got, err := to.seen.Get()
	switch {
	case !bytes.HasPrefix(from.sent, got):
		return fmt.Errorf("%s sees %q of %q", to.name, got, from.sent)
	case err == io.EOF && (!from.ended || len(got) < len(from.sent)):
		return fmt.Errorf("%s sees an end after %d of %d bytes, ended: %v", to.name, len(got), len(from.sent), from.ended)
	case !p.broken && err != nil && err != io.EOF:
		return fmt.Errorf("%s sees %v, but nothing broke", to.name, err)
	case !p.broken && settled && len(got) < len(from.sent):
		return fmt.Errorf("%s sees %d of %d bytes", to.name, len(got), len(from.sent))
	case !p.broken && settled && from.ended && err != io.EOF:
		return fmt.Errorf("%s does not see the end", to.name)
	// A reset behind an end shows when something is sent; a WebSocket is read on and shows it at once.
	case p.broken && settled && !from.ended && err == nil && (p.lingers || !to.ended || !from.quit):
		return fmt.Errorf("%s does not see that the tunnel broke", to.name)
	}
	return nil
}

func (p *play) checkBoth(settled bool) error {
	return errors.Join(p.check(p.app, p.target, settled), p.check(p.target, p.app, settled))
}

// finish ends what has not ended, lets time pass, and checks that nothing is left.
func (p *play) finish() error {
	for _, one := range []*player{p.app, p.target} {
		if !one.ended && !one.quit {
			one.end()
		}
	}
	synctest.Wait()
	time.Sleep(3 * time.Minute)
	synctest.Wait()
	for _, side := range []struct {
		name   string
		handle chan error
	}{{"client", p.Client}, {"edge", p.Edge}} {
		select {
		case err := <-side.handle:
			if err != nil && !p.broken {
				return fmt.Errorf("%s: %w", side.name, err)
			}
		default:
			return fmt.Errorf("%s goes on", side.name)
		}
	}
	return p.checkBoth(true)
}

// Every short sequence of events, once with time for each to have its effect and once all in a rush.
func TestEveryInterleaving(t *testing.T) {
	for _, tr := range transportsInBubbles(t) {
		t.Run(tr.Name, func(t *testing.T) {
			events := []event{appData, appEnd, appReset, targetData, targetEnd, targetReset, killRST}
			length := 5
			if len(tr.Client) > 0 {
				events = append(events, killFIN)
			}
			if len(tr.Client) > 1 {
				length--
			}
			if tunnel.RaceEnabled || testing.Short() {
				length = 3
			}
			if strings.HasPrefix(tr.Name, "ws") {
				events = append(events, pingBoth, closeToEdge, closeToClient)
			}
			n := 0
			sequences(events, length, func(seq []event) {
				if t.Failed() && len(seq) == length {
					return // the shorter ones say it better
				}
				n++
				for _, rush := range []bool{false, true} {
					synctest.Test(t, func(t *testing.T) {
						p := newPlay(t, tr)
						for i, e := range seq {
							p.do(e)
							if rush {
								continue
							}
							time.Sleep(time.Second) // no network lasts as long, no limit is as short
							synctest.Wait()
							if err := p.checkBoth(true); err != nil {
								t.Errorf("%v, after %d: %v", seq, i+1, err)
								return
							}
						}
						if err := p.finish(); err != nil {
							t.Errorf("%v, in a rush: %v: %v", seq, rush, err)
						}
					})
				}
			})
			t.Log(n, "sequences")
		})
	}
}

// within runs test in a bubble over every transport whose name begins with one of names.
func within(t *testing.T, names []string, test func(t *testing.T, tr tunneltest.Transport)) {
	for _, tr := range transportsInBubbles(t) {
		name, _, _ := strings.Cut(tr.Name, "-")
		if slices.Contains(names, name) {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { test(t, tr) })
			})
		}
	}
}

// mustSee waits until seen has data and then err (nil: nothing).
func mustSee(t *testing.T, who string, seen *tunneltest.Record, data string, err error) {
	t.Helper()
	synctest.Wait()
	got, gotErr := seen.Get()
	if string(got) != data || gotErr != err {
		t.Fatalf("%s sees %q and %v; want %q and %v", who, got, gotErr, data, err)
	}
}

// mustBeCut wants that seen ended with an error that is no end.
func mustBeCut(t *testing.T, who string, seen *tunneltest.Record) {
	t.Helper()
	synctest.Wait()
	if _, err := seen.Get(); err == nil || err == io.EOF {
		t.Fatalf("%s sees %v; want an error", who, err)
	}
}

// mustReturn wants that handle has returned.
func mustReturn(t *testing.T, who string, handle chan error) error {
	t.Helper()
	synctest.Wait()
	select {
	case err := <-handle:
		return err
	default:
		t.Fatalf("%s goes on", who)
		return nil
	}
}

func TestHalfClosedAndSilentIsCut(t *testing.T) {
	within(t, []string{"tcp", "tls"}, func(t *testing.T, tr tunneltest.Transport) {
		p := newPlay(t, tr)
		p.app.send()
		p.app.end()
		mustSee(t, "target", p.target.seen, string(p.app.sent), io.EOF)
		time.Sleep(50 * time.Second)
		p.target.send() // begins the time anew
		time.Sleep(59 * time.Second)
		mustSee(t, "app", p.app.seen, string(p.target.sent), nil)

		time.Sleep(2 * time.Second)

		mustBeCut(t, "app", p.app.seen)
		client, edge := mustReturn(t, "client", p.Client), mustReturn(t, "edge", p.Edge)
		if !errors.Is(client, tunnel.ErrLinger) && !errors.Is(edge, tunnel.ErrLinger) {
			t.Errorf("client ends with %v, edge with %v; want %v", client, edge, tunnel.ErrLinger)
		}
	})
}

// Between raimons a Pong is proof of life.
func TestReplyAfterHoursArrives(t *testing.T) {
	within(t, []string{"ws", "wss"}, func(t *testing.T, tr tunneltest.Transport) {
		for _, appFirst := range []bool{true, false} {
			p := newPlay(t, tr)
			first, second := p.app, p.target
			if !appFirst {
				first, second = second, first
			}
			first.send()
			first.end()
			mustSee(t, second.name, second.seen, string(first.sent), io.EOF)

			time.Sleep(3 * time.Hour)

			second.send()
			second.end()
			mustSee(t, first.name, first.seen, string(second.sent), io.EOF)
			for _, err := range []error{mustReturn(t, "client", p.Client), mustReturn(t, "edge", p.Edge)} {
				if err != nil {
					t.Error(err)
				}
			}
		}
	})
}

func TestSilentHandshakeIsCut(t *testing.T) {
	within(t, []string{"tls", "ws", "wss"}, func(t *testing.T, tr tunneltest.Transport) {
		for _, client := range []bool{true, false} {
			f := &tunnel.Forwarder{Accept: tr.Server, Dial: func(context.Context, *tunnel.Info) (tunnel.Conn, error) {
				t.Error("dials for nobody")
				return nil, errors.New("no target")
			}}
			app, accepted := tunneltest.Pipe()
			link, dialed := tunneltest.Pipe()
			if client {
				f = &tunnel.Forwarder{Connect: tr.Client, Dial: func(context.Context, *tunnel.Info) (tunnel.Conn, error) {
					return dialed, nil
				}}
			}
			begin := time.Now()
			err := f.Handle(t.Context(), accepted)
			if d := time.Since(begin); d < 10*time.Second || d > 10*time.Second+100*time.Millisecond {
				t.Errorf("client %v: gives up after %v; want 10s", client, d)
			}
			if !errors.Is(err, tunnel.ErrTimeout) {
				t.Errorf("client %v: %v; want %v", client, err, tunnel.ErrTimeout)
			}
			for _, c := range []*tunneltest.PipeConn{app, link} {
				if c == link && !client {
					continue
				}
				if _, err := io.Copy(io.Discard, c); client && c == app && err == nil {
					t.Error("the app sees an end")
				}
			}
		}
	})
}

// scripted is a client's tunnel to an edge that the test plays frame by frame. The peer agrees on
// what raimon agrees on.
func scripted(t *testing.T) (app *tunneltest.PipeConn, edge *tunneltest.PipeConn, handle chan error) {
	t.Helper()
	w := &tunnel.WebSocket{Host: "localhost", Path: "/ws"}
	app, accepted := tunneltest.Pipe()
	edge, dialed := tunneltest.Pipe()
	handle = make(chan error, 1)
	client := &tunnel.Forwarder{
		Connect: tunnel.Transport{w},
		Dial:    func(context.Context, *tunnel.Info) (tunnel.Conn, error) { return dialed, nil },
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		handle <- client.Handle(ctx, accepted)
	}()
	t.Cleanup(func() { cancel(); <-done; app.Close(); edge.Close() })
	if _, err := w.Server(ctx, edge, new(tunnel.Info)); err != nil {
		t.Fatal(err)
	}
	return app, edge, handle
}

// swallow reads frames and answers the first pongs Pings.
func swallow(edge *tunneltest.PipeConn, pongs int) {
	for {
		f, err := tunneltest.ReadFrame(edge)
		if err != nil {
			return
		}
		if f.Header.OpCode == ws.OpPing && pongs > 0 {
			pongs--
			ws.WriteFrame(edge, ws.NewPongFrame(ws.UnmaskFrame(f).Payload))
		}
	}
}

func TestPeerThatNoLongerAnswersPingsIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app, edge, handle := scripted(t)
		go swallow(edge, 2) // at 30 s and at 60 s
		seen := tunneltest.NewRecord(app)
		time.Sleep(89 * time.Second)
		mustSee(t, "app", seen, "", nil)

		time.Sleep(3*30*time.Second + time.Second)

		mustBeCut(t, "app", seen)
		if err := mustReturn(t, "client", handle); err == nil || !strings.Contains(err.Error(), "pings") {
			t.Errorf("ends with %v", err)
		}
	})
}

// Kaminari never answers; it is not dead.
func TestPeerThatNeverAnsweredPingsStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		app, edge, _ := scripted(t)
		go swallow(edge, 0)
		seen := tunneltest.NewRecord(app)

		time.Sleep(5 * time.Hour)

		ws.WriteFrame(edge, ws.NewBinaryFrame([]byte("still here")))
		mustSee(t, "app", seen, "still here", nil)
	})
}

// No bubble here: a Pong waits for a mutex, which a bubble does not take for waiting.
func TestPingIsAnsweredAtTheNextFrameBoundary(t *testing.T) {
	tunneltest.NoLeaks(t)
	app, edge, _ := scripted(t)
	flood := make(chan struct{})
	data := tunneltest.Bytes(1<<20, 1)
	go func() {
		defer close(flood)
		app.Write(data)
		app.CloseWrite()
	}()
	defer func() { app.Close(); <-flood }()
	mustEventually(t, "the writer is blocked", func() bool { return edge.Buffered() == tunneltest.PipeBuffer })

	// The reader is not: it takes the Ping and what comes behind it.
	ws.WriteFrame(edge, ws.NewPingFrame([]byte("are you there")))
	ws.WriteFrame(edge, ws.NewBinaryFrame([]byte("data")))
	got := make([]byte, 4)
	if _, err := io.ReadFull(app, got); err != nil || string(got) != "data" {
		t.Fatalf("app reads %q, %v behind the ping", got, err)
	}

	// The writer's frames are whole, and the Pong is one of its own before the end.
	var received []byte
	pongs := 0
	for {
		f, err := tunneltest.ReadFrame(edge)
		if err != nil {
			t.Fatal(err)
		}
		f = ws.UnmaskFrame(f)
		switch f.Header.OpCode {
		case ws.OpBinary:
			received = append(received, f.Payload...)
			continue
		case ws.OpPong:
			pongs++
			if string(f.Payload) != "are you there" {
				t.Errorf("pong %q", f.Payload)
			}
			continue
		}
		break
	}
	if pongs != 1 || !bytes.Equal(received, data) {
		t.Errorf("%d pongs, %d bytes; want 1 and the %d that were sent", pongs, len(received), len(data))
	}
}

func mustEventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within 30 seconds: " + what)
		}
	}
}
