package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// waiting are ws and wss of which the edge waits. A Forwarder that connects with them has it dial at once.
func waiting(t testing.TB, ca *tunneltest.CA) (all []tunneltest.Transport) {
	t.Helper()
	for _, tr := range tunneltest.Transports(t, ca) {
		kind, ok := strings.CutSuffix(tr.Name, "-standard")
		if !ok {
			continue
		}
		last := len(tr.Client) - 1
		w := *tr.Client[last].(*tunnel.WebSocket)
		w.Wait = true
		all = append(all, tunneltest.Transport{
			Name: kind + "-wait", Client: append(slices.Clone(tr.Client[:last]), &w), Server: tr.Server,
		})
	}
	return all
}

// transports are all that there are, those that wait among them.
func transports(t testing.TB) []tunneltest.Transport {
	t.Helper()
	ca := tunneltest.NewCA(t)
	return append(tunneltest.Transports(t, ca), waiting(t, ca)...)
}

// taking is a WebSocket whose edge waits, and which is taken as soon as it does, as a Layer.
type taking struct{ *tunnel.WebSocket }

func (l taking) Client(ctx context.Context, c tunnel.Conn) (tunnel.Conn, error) {
	c, err := l.WebSocket.Client(ctx, c)
	if err != nil {
		return nil, err
	}
	if !tunnel.Waiting(c) {
		return nil, errors.New("the edge does not wait")
	}
	if err := tunnel.Take(c, ""); err != nil {
		return nil, err
	}
	return c, tunnel.AwaitOpen(c)
}

func (l taking) Server(ctx context.Context, c tunnel.Conn, info *tunnel.Info) (tunnel.Conn, error) {
	c, err := l.WebSocket.Server(ctx, c, info)
	if err != nil {
		return nil, err
	}
	if _, err := tunnel.AwaitDial(c); err != nil {
		return nil, err
	}
	return c.(tunnel.Answering).Answer(nil)
}

func TestConformanceOfTaken(t *testing.T) {
	tunneltest.NoLeaks(t)
	for _, tr := range waiting(t, tunneltest.NewCA(t)) {
		last := len(tr.Client) - 1
		layer := taking{tr.Client[last].(*tunnel.WebSocket)}
		tr.Client[last] = layer
		tr.Server = append(slices.Clone(tr.Server[:last]), layer)
		t.Run(tr.Name, func(t *testing.T) { tunneltest.Conformance(t, tr) })
	}
}

// waitingConn is a client's end of a connection to the edge at address.
func waitingConn(t testing.TB, tr tunnel.Transport, address string) tunnel.Conn {
	t.Helper()
	bare, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bare.Close() })
	c, err := tr.Client(t.Context(), bare.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func TestEdgeDialsWhenItIsTaken(t *testing.T) {
	for _, tr := range waiting(t, tunneltest.NewCA(t)) {
		t.Run(tr.Name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			dials := make(chan string, 10)
			echo := dialTCP(tunneltest.Echo(t))
			server := slices.Clone(tr.Server)
			w := *server[len(server)-1].(*tunnel.WebSocket)
			w.Targets = true
			server[len(server)-1] = &w
			edge := serveForwarder(t, &tunnel.Forwarder{Accept: server, Drain: -1,
				Dial: func(ctx context.Context, info *tunnel.Info) (tunnel.Conn, error) {
					dials <- info.Target
					return echo(ctx, info)
				}})
			for _, target := range []string{"", "db.example.com:5432", "[2001:db8::1]:22"} {
				c := waitingConn(t, tr.Client, edge)
				opened := make(chan error, 1)
				go func() { opened <- tunnel.AwaitOpen(c) }() // before Take, as a pool does
				if !tunnel.Waiting(c) || len(dials) > 0 {
					t.Fatalf("waiting: %v, dials: %d", tunnel.Waiting(c), len(dials))
				}
				if err := tunnel.Take(c, target); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Write([]byte("early")); err != nil {
					t.Fatal(err)
				}
				if err := <-opened; err != nil {
					t.Fatal(err)
				}
				if got := <-dials; got != target {
					t.Errorf("dials %q, want %q", got, target)
				}
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(c); string(got) != "early" || err != nil {
					t.Errorf("got %q, %v", got, err)
				}
				if err := tunnel.Take(c, target); err == nil {
					t.Error("a connection is taken twice")
				}
				c.Close()
			}
		})
	}
}

func TestWhyATargetIsNotThere(t *testing.T) {
	for reason, err := range map[string]error{
		tunnel.ReasonName:      &net.DNSError{Err: "no such host", Name: "nowhere.test", IsNotFound: true},
		tunnel.ReasonTimeout:   os.ErrDeadlineExceeded,
		tunnel.ReasonForbidden: &tunnel.TargetError{Reason: tunnel.ReasonForbidden, Err: errors.New("not for you")},
		tunnel.ReasonBusy:      &tunnel.TargetError{Reason: tunnel.ReasonBusy},
		tunnel.ReasonFailed:    errors.New("out of luck"),
		tunnel.ReasonRefused:   refusedError(t),
	} {
		for _, tr := range waiting(t, tunneltest.NewCA(t)) {
			t.Run(reason+"/"+tr.Name, func(t *testing.T) {
				tunneltest.NoLeaks(t)
				edge := serveForwarder(t, &tunnel.Forwarder{Accept: tr.Server, Drain: -1,
					Dial: func(context.Context, *tunnel.Info) (tunnel.Conn, error) { return nil, err }})
				c := waitingConn(t, tr.Client, edge)
				if err := tunnel.Take(c, ""); err != nil {
					t.Fatal(err)
				}
				got := tunnel.AwaitOpen(c)
				var target *tunnel.TargetError
				if !errors.As(got, &target) || target.Reason != reason || tunnel.Reason(got) != reason {
					t.Errorf("got %v, want %q", got, reason)
				}
			})
		}
	}
}

func refusedError(t *testing.T) error {
	l := tunneltest.Listen(t)
	l.Close()
	_, err := net.Dial("tcp", l.Addr().String())
	if !tunnel.IsRefused(err) {
		t.Fatalf("got %v", err)
	}
	return err
}

// Who names a target where clients may not is told so, and nothing is dialed.
func TestTargetWhereNoneMayBeChosen(t *testing.T) {
	for _, wait := range []bool{true, false} {
		dialed := false
		edge := serveForwarder(t, &tunnel.Forwarder{Accept: tunnel.Transport{edgeLayer}, Drain: -1,
			Dial: func(context.Context, *tunnel.Info) (tunnel.Conn, error) {
				dialed = true
				return nil, errors.New("dialed")
			}})
		w := &tunnel.WebSocket{Host: edgeLayer.Host, Path: edgeLayer.Path, Wait: wait, Target: "db:5432"}
		c := waitingConn(t, tunnel.Transport{w}, edge)
		if err := tunnel.Take(c, ""); err != nil {
			t.Fatal(err)
		}
		if err := tunnel.AwaitOpen(c); tunnel.Reason(err) != tunnel.ReasonForbidden || dialed {
			t.Errorf("wait %v: got %v, dialed: %v", wait, err, dialed)
		}
	}
}

// The target that a client names in its upgrade, without waiting.
func TestTargetInTheUpgrade(t *testing.T) {
	dials := make(chan string, 1)
	echo := dialTCP(tunneltest.Echo(t))
	edge := serveForwarder(t, &tunnel.Forwarder{Drain: -1,
		Accept: tunnel.Transport{&tunnel.WebSocket{Host: edgeLayer.Host, Path: edgeLayer.Path, Targets: true}},
		Dial: func(ctx context.Context, info *tunnel.Info) (tunnel.Conn, error) {
			dials <- info.Target
			return echo(ctx, info)
		}})
	w := &tunnel.WebSocket{Host: edgeLayer.Host, Path: edgeLayer.Path, Target: "db:5432"}
	app := serveForwarder(t, &tunnel.Forwarder{Connect: tunnel.Transport{w}, Drain: -1, Dial: dialTCP(edge)})
	c, err := net.Dial("tcp", app)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if got := <-dials; got != "db:5432" {
		t.Errorf("dials %q", got)
	}
}

// An edge that knows nothing of all this answers as ever.
func TestEdgeThatKnowsNoWait(t *testing.T) {
	answer := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
	for _, target := range []string{"", "db:5432"} {
		dialed, accepted := tunneltest.Pair(t)
		heads := make(chan string, 1)
		go func() {
			head := make([]byte, 4<<10)
			n, _ := accepted.Read(head)
			_, key, _ := strings.Cut(string(head[:n]), "Sec-WebSocket-Key: ")
			key, _, _ = strings.Cut(key, "\r\n")
			io.WriteString(accepted, answer+tunnel.AcceptKey(key)+"\r\nRaimon: end\r\n\r\n")
			heads <- string(head[:n])
		}()
		w := &tunnel.WebSocket{Host: "h", Path: "/", Wait: true, Target: target}
		c, err := w.Client(t.Context(), dialed)
		if err != nil {
			t.Fatal(err)
		}
		if head := <-heads; !strings.Contains(head, "\r\nRaimon: end, wait\r\n") || strings.Contains(head, "\r\nRaimon-Target: db:5432\r\n") != (target != "") {
			t.Errorf("asks with %q", head)
		}
		if tunnel.Waiting(c) {
			t.Error("it is said to wait")
		}
		if err := tunnel.Take(c, ""); err != nil {
			t.Error(err)
		}
		if err := tunnel.Take(c, "web:80"); err == nil {
			t.Error("it is said to know targets")
		}
		if err := tunnel.AwaitOpen(c); (err != nil) != (target != "") {
			t.Errorf("target %q: %v", target, err)
		}
	}
}

// orderly is a connection that notes what is written to it.
type orderly struct {
	tunnel.Conn
	name string
	log  *writeLog
}

type writeLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *writeLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (c orderly) Write(p []byte) (int, error) {
	c.log.mu.Lock()
	c.log.text.WriteString("\n" + c.name + string(p))
	c.log.mu.Unlock()
	return c.Conn.Write(p)
}

// What the client sends together with its word, in one segment or in many, gets to the target, but not before the client was told
// that this is there.
func TestNothingIsDeliveredBeforeOpen(t *testing.T) {
	for _, crumbs := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			log := new(writeLog)
			client, accepted := tunneltest.Pipe()
			target, dialed := tunneltest.Pipe()
			release := make(chan struct{})
			edge := &tunnel.Forwarder{Accept: tunnel.Transport{edgeLayer},
				Dial: func(context.Context, *tunnel.Info) (tunnel.Conn, error) {
					<-release
					return orderly{dialed, "target:", log}, nil
				}}
			var below tunnel.Conn = accepted
			if crumbs {
				below = tunneltest.Crumbs{Conn: accepted}
			}
			ended := make(chan error, 1)
			go func() { ended <- edge.Handle(t.Context(), orderly{below, "client:", log}) }()
			head := strings.Replace(upgradeHead, "\r\n\r\n", "\r\nRaimon: end, wait\r\n\r\n", 1)
			var all bytes.Buffer
			all.WriteString(head)
			for _, f := range []ws.Frame{
				ws.NewPingFrame([]byte("hello?")),
				ws.NewTextFrame([]byte("dial")), ws.NewBinaryFrame([]byte("first")), ws.NewBinaryFrame(bytes.Repeat([]byte("x"), 40_000)),
				ws.NewTextFrame(nil),
			} {
				ws.WriteFrame(&all, ws.MaskFrame(f))
			}
			if _, err := client.Write(all.Bytes()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if lines := log.String(); strings.Contains(lines, "target:") || strings.Contains(lines, "open") {
				t.Fatalf("before the target is there: %q", lines)
			}
			close(release)
			target.CloseWrite()
			got, err := io.ReadAll(target)
			if err != nil || string(got) != "first"+strings.Repeat("x", 40_000) {
				t.Fatalf("target gets %.20q, %d bytes, %v", got, len(got), err)
			}
			synctest.Wait() // the client gets the target's end, too: a Close before it would break off the tunnel
			ws.WriteFrame(client, ws.MaskFrame(ws.NewCloseFrame(ws.NewCloseFrameBody(1000, ""))))
			if err := <-ended; err != nil {
				t.Error(err)
			}
			lines := strings.ReplaceAll(log.String(), "\nclient:", "") // that came in crumbs
			opened, first := strings.Index(lines, "\x81\x04open"), strings.Index(lines, "\ntarget:")
			if opened < 0 || first < opened {
				t.Errorf("open is at %d, the first to the target at %d", opened, first)
			}
		})
	}
}

// scriptedEdge is an edge that waits for a client that the test plays frame by frame.
func scriptedEdge(t *testing.T, ctx, draining context.Context) (client *tunneltest.PipeConn, ended chan error) {
	t.Helper()
	client, accepted := tunneltest.Pipe()
	ended = make(chan error, 1)
	f := &tunnel.Forwarder{Accept: tunnel.Transport{edgeLayer}, Timeout: 5 * time.Second,
		Dial: func(context.Context, *tunnel.Info) (tunnel.Conn, error) {
			t.Error("dials")
			return nil, errors.New("no target")
		}}
	f.Start(ctx, draining, accepted, func(_ *tunnel.Session, err error) { ended <- err })
	head := strings.Replace(upgradeHead, "\r\n\r\n", "\r\nRaimon: end, wait\r\n\r\n", 1)
	io.WriteString(client, head)
	answer := make([]byte, 0, 200)
	for !bytes.HasSuffix(answer, []byte("\r\n\r\n")) {
		b := make([]byte, 1)
		if _, err := client.Read(b); err != nil {
			t.Fatal(err)
		}
		answer = append(answer, b...)
	}
	if !strings.Contains(string(answer), "\r\nRaimon: end, wait\r\n") {
		t.Fatalf("the edge answers %q", answer)
	}
	return client, ended
}

// closeCode reads frames until a Close, and counts Pings.
func closeCode(t *testing.T, c io.Reader) (code ws.StatusCode, reason string, pings int) {
	t.Helper()
	for {
		f, err := tunneltest.ReadFrame(c)
		switch {
		case err != nil:
			t.Fatal("no Close:", err)
		case f.Header.OpCode == ws.OpClose:
			code, reason = ws.ParseCloseFrameData(f.Payload)
			return code, reason, pings
		case f.Header.OpCode == ws.OpPing:
			pings++
		}
	}
}

func TestWrongFirstMessages(t *testing.T) {
	text := func(s string) ws.Frame { return ws.NewTextFrame([]byte(s)) }
	for name, frames := range map[string][]ws.Frame{
		"data":              {ws.NewBinaryFrame([]byte("x"))},
		"another word":      {text("open")},
		"a longer word":     {text("dialler")},
		"upper case":        {text("DIAL")},
		"no target":         {text("dial ")},
		"a name alone":      {text("dial db")},
		"two blanks":        {text("dial  db:1")},
		"echo of something": {text("echo db:1")},
		"a line":            {text("dial db:1\r\n")},
		"a unix socket":     {text("dial unix:/run/x")},
		"port 0":            {text("dial db:0")},
		"a port too high":   {text("dial db:65536")},
		"no host":           {text("dial :22")},
		"IPv6 bare":         {text("dial ::1:22")},
		"not ASCII":         {text("dial b\u00fccher.example:80")},
		"300 bytes":         {text("dial " + strings.Repeat("a", 292) + ":22")},
		"301 bytes":         {text("dial " + strings.Repeat("a", 293) + ":22")},
		"a fragment":        {ws.NewFrame(ws.OpText, false, []byte("di")), ws.NewFrame(ws.OpContinuation, true, []byte("al"))},
		"an empty fragment": {ws.NewFrame(ws.OpText, false, nil), ws.NewFrame(ws.OpContinuation, true, []byte("dial"))},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, ended := scriptedEdge(t, t.Context(), t.Context())
				for _, f := range frames {
					ws.WriteFrame(client, ws.MaskFrame(f))
				}
				if code, _, _ := closeCode(t, client); code != ws.StatusProtocolError {
					t.Errorf("close %d", code)
				}
				if err := <-ended; !errors.Is(err, tunnel.ErrNotTaken) {
					t.Errorf("ends with %v", err)
				}
			})
		})
	}
}

// The time for handshakes does not count while an edge waits, but it does not wait forever.
func TestWaitEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		act   func(client *tunneltest.PipeConn, drain func())
		after time.Duration
		code  ws.StatusCode // 0: none
		pings int
	}{
		// Its Ping moves those of the edge on: none is under way when the edge wants to send its Close.
		"after a time": {func(c *tunneltest.PipeConn, _ func()) {
			time.Sleep(time.Second)
			ws.WriteFrame(c, ws.MaskFrame(ws.NewPingFrame(nil)))
		}, 5 * time.Minute, ws.StatusGoingAway, 9},
		"by draining": {func(_ *tunneltest.PipeConn, drain func()) { drain() }, 0, ws.StatusGoingAway, 0},
		"by its end":  {func(c *tunneltest.PipeConn, _ func()) { ws.WriteFrame(c, ws.MaskFrame(ws.NewTextFrame(nil))) }, 0, 0, 0},
		"by FIN":      {func(c *tunneltest.PipeConn, _ func()) { c.CloseWrite() }, 0, 0, 0},
		"by Close":    {func(c *tunneltest.PipeConn, _ func()) { ws.WriteFrame(c, ws.MaskFrame(ws.NewCloseFrame(nil))) }, 0, 0, 0},
		"by RST":      {func(c *tunneltest.PipeConn, _ func()) { c.SetLinger(0); c.Close() }, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				draining, drain := context.WithCancel(t.Context())
				defer drain()
				client, ended := scriptedEdge(t, t.Context(), draining)
				begin := time.Now()

				tt.act(client, drain)

				if err := <-ended; !errors.Is(err, tunnel.ErrNotTaken) {
					t.Errorf("ends with %v", err)
				}
				if after := time.Since(begin); after != tt.after {
					t.Errorf("ends after %v, want %v", after, tt.after)
				}
				if tt.code != 0 {
					if code, _, pings := closeCode(t, client); code != tt.code || pings < tt.pings || pings > tt.pings+1 {
						t.Errorf("close %d after %d pings, want %d after %d or one more", code, pings, tt.code, tt.pings)
					}
				}
				synctest.Wait()
			})
		})
	}
}

// Client and edge notice each other's death, and nothing else, while one waits for the other.
func TestPoolNoticesADeadEdge(t *testing.T) {
	for name, kill := range map[string]func(*tunneltest.PipeConn){
		"reset":   func(c *tunneltest.PipeConn) { c.SetLinger(0); c.Close() },
		"FIN":     func(c *tunneltest.PipeConn) { c.CloseWrite() },
		"silence": nil,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &tunnel.WebSocket{Host: "localhost", Path: "/ws", Wait: true}
				edge, dialed := tunneltest.Pipe()
				served := make(chan error, 1)
				go func() {
					_, err := w.Server(t.Context(), edge, new(tunnel.Info))
					served <- err
				}()
				c, err := w.Client(t.Context(), dialed)
				if err != nil {
					t.Fatal(err)
				}
				if err := <-served; err != nil {
					t.Fatal(err)
				}
				awaited := make(chan error, 1)
				go func() { awaited <- tunnel.AwaitOpen(c) }()
				stop := make(chan struct{})
				go func() {
					swallow(edge, 3)
					close(stop)
				}()
				time.Sleep(100 * time.Second)
				select {
				case err := <-awaited:
					t.Fatal("gives up on an edge that answers:", err)
				default:
				}
				if kill != nil {
					kill(edge)
				}
				time.Sleep(2 * time.Minute)
				select {
				case err := <-awaited:
					var target *tunnel.TargetError
					if err == nil || errors.As(err, &target) {
						t.Errorf("got %v", err)
					}
				default:
					t.Error("does not notice")
				}
				c.Close()
				edge.Close()
				<-stop
			})
		})
	}
}

// A deadline wakes AwaitOpen, and nothing is lost by that.
func TestAwaitOpenIsWoken(t *testing.T) {
	tr := waiting(t, tunneltest.NewCA(t))[0]
	edge := serveForwarder(t, &tunnel.Forwarder{Accept: tr.Server, Drain: -1, Dial: dialTCP(tunneltest.Echo(t))})
	c := waitingConn(t, tr.Client, edge)
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if err := tunnel.AwaitOpen(c); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	c.SetReadDeadline(time.Time{})
	if err := tunnel.Take(c, ""); err != nil {
		t.Fatal(err)
	}
	if err := tunnel.AwaitOpen(c); err != nil {
		t.Fatal(err)
	}
	if err := tunnel.AwaitOpen(c); err != nil {
		t.Errorf("called again: %v", err)
	}
}

// What an edge may not say in place of the word.
func TestWrongAnswers(t *testing.T) {
	for name, tt := range map[string]struct {
		frame ws.Frame
		taken bool
	}{
		"data":           {ws.NewBinaryFrame([]byte("x")), true},
		"another word":   {ws.NewTextFrame([]byte("opened")), true},
		"an end":         {ws.NewTextFrame(nil), true},
		"open too early": {ws.NewTextFrame([]byte("open")), false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &tunnel.WebSocket{Host: "localhost", Path: "/ws", Wait: true}
			dialed, accepted := tunneltest.Pair(t)
			c, _ := tunneltest.Wrap(t, tunneltest.Transport{Client: tunnel.Transport{w}, Server: tunnel.Transport{w}}, dialed, accepted)
			c.SetDeadline(time.Now().Add(20 * time.Second))
			if tt.taken {
				if err := tunnel.Take(c, ""); err != nil {
					t.Fatal(err)
				}
			}
			ws.WriteFrame(accepted, tt.frame)
			if err := tunnel.AwaitOpen(c); err == nil {
				t.Error("takes it")
			}
		})
	}
}

// hangsOn is a peer of another kind that waits to hear whether the other end is there.
type hangsOn struct {
	tunnel.Conn
	answers chan error
}

func (c hangsOn) Answer(err error) (tunnel.Conn, error) {
	c.answers <- err
	return c.Conn, nil
}

type hangsOnLayer struct{ answers chan error }

func (l hangsOnLayer) Client(context.Context, tunnel.Conn) (tunnel.Conn, error) {
	return nil, errors.ErrUnsupported
}

func (l hangsOnLayer) Server(_ context.Context, c tunnel.Conn, _ *tunnel.Info) (tunnel.Conn, error) {
	return hangsOn{c, l.answers}, nil
}

func TestAnswering(t *testing.T) {
	answers := make(chan error, 2)
	app := serveForwarder(t, &tunnel.Forwarder{Accept: tunnel.Transport{hangsOnLayer{answers}}, Drain: -1, Dial: dialTCP(tunneltest.Echo(t))})
	c, err := net.Dial("tcp", app)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "hello")
	c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); string(got) != "hello" || err != nil || <-answers != nil {
		t.Errorf("got %q, %v", got, err)
	}

	nowhere := refusedError(t)
	app = serveForwarder(t, &tunnel.Forwarder{Accept: tunnel.Transport{hangsOnLayer{answers}}, Drain: -1,
		Dial: func(context.Context, *tunnel.Info) (tunnel.Conn, error) { return nil, nowhere }})
	if c, err = net.Dial("tcp", app); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := io.ReadAll(c); len(got) != 0 || err != nil {
		t.Errorf("got %q, %v; want an end, no reset", got, err)
	}
	if err := <-answers; tunnel.Reason(err) != tunnel.ReasonRefused {
		t.Errorf("answer: %v", err)
	}
}

// What waits needs less than what is open: of it there may be many for one that is taken.
func TestWaitingTakesLittleMemory(t *testing.T) {
	if tunnel.RaceEnabled {
		t.Skip("the race detector needs memory of its own")
	}
	many := 1000
	if testing.Short() {
		many = 100
	}
	inUse := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // the pools empty in two steps
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc + m.StackInuse)
	}
	for _, tr := range waiting(t, tunneltest.NewCA(t)) {
		t.Run(tr.Name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			edge := serveForwarder(t, &tunnel.Forwarder{Accept: tr.Server, Drain: -1, Dial: dialTCP(tunneltest.Echo(t))})
			waitingConn(t, tr.Client, edge).Close()
			before := inUse()
			var all []tunnel.Conn
			for range many {
				all = append(all, waitingConn(t, tr.Client, edge))
			}
			waits := (inUse() - before) / many
			for _, c := range all {
				if err := errors.Join(tunnel.Take(c, ""), tunnel.AwaitOpen(c)); err != nil {
					t.Fatal(err)
				}
			}
			open := (inUse() - before) / many
			t.Logf("both ends of a connection: %d bytes while it waits, %d when it is open, with its target", waits, open)
			if waits >= open {
				t.Error("waiting costs as much as a tunnel")
			}
		})
	}
}
