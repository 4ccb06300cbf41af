package tunnel_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// hand is a client that speaks ws and wss by hand.
type hand struct {
	t testing.TB
	tunnel.Conn
	bare *net.TCPConn // below Conn; nil in memory
}

// byHand shakes hands with an edge that agrees on all that is offered.
func byHand(t testing.TB, tr tunneltest.Transport, address, offer string) hand {
	t.Helper()
	bare, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { bare.Close() })
	bare.SetDeadline(time.Now().Add(20 * time.Second))
	h := hand{t, bare.(*net.TCPConn), bare.(*net.TCPConn)}
	if secure, ok := tr.Client[0].(*tunnel.TLS); ok {
		h.Conn = tls.Client(bare, secure.ClientConfig)
	}
	h.shake(offer, offer)
	return h
}

// shake offers something in the upgrade, and wants an answer.
func (h hand) shake(offer, agreed string) {
	h.t.Helper()
	h.head("GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nRaimon: " + offer + "\r\n\r\n")
	if head := h.answer(); !strings.Contains(head, "\r\nRaimon: "+agreed+"\r\n") {
		h.t.Fatalf("the edge answers %q", head)
	}
}

func (h hand) head(head string) {
	h.t.Helper()
	if _, err := io.WriteString(h, head); err != nil {
		h.t.Fatal(err)
	}
}

// answer reads a head, and nothing behind it.
func (h hand) answer() string {
	h.t.Helper()
	head, b := "", make([]byte, 1)
	for !strings.HasSuffix(head, "\r\n\r\n") {
		if _, err := h.Read(b); err != nil {
			h.t.Fatal(err)
		}
		head += string(b)
	}
	return head
}

// wire is frames as a client sends them.
func wire(frames ...ws.Frame) []byte {
	var all bytes.Buffer
	for _, f := range frames {
		ws.WriteFrame(&all, ws.MaskFrame(f))
	}
	return all.Bytes()
}

func word(s string) ws.Frame { return ws.NewTextFrame([]byte(s)) }
func data(s string) ws.Frame { return ws.NewBinaryFrame([]byte(s)) }
func ping(s string) ws.Frame { return ws.NewPingFrame([]byte(s)) }

var (
	endFrame   = ws.NewTextFrame(nil)
	closeFrame = ws.NewCloseFrame(ws.NewCloseFrameBody(1000, ""))
)

// say sends frames in one segment.
func (h hand) say(frames ...ws.Frame) {
	h.t.Helper()
	if _, err := h.Write(wire(frames...)); err != nil {
		h.t.Fatal(err)
	}
}

// hear wants these frames, one after the other.
func (h hand) hear(frames ...ws.Frame) {
	h.t.Helper()
	for _, want := range frames {
		got, err := tunneltest.ReadFrame(h)
		if err != nil {
			h.t.Fatalf("%v in place of %v %q", err, want.Header.OpCode, want.Payload)
		}
		if got.Header != want.Header || !bytes.Equal(got.Payload, want.Payload) {
			h.t.Fatalf("got %v %q, want %v %q", got.Header.OpCode, got.Payload, want.Header.OpCode, want.Payload)
		}
	}
}

// hearClose wants a Close frame and then the end.
func (h hand) hearClose(code ws.StatusCode) {
	h.t.Helper()
	h.hear(ws.NewCloseFrame(ws.NewCloseFrameBody(code, "")))
	h.hearEnd()
}

// hearEnd wants the end of the stream below.
func (h hand) hearEnd() {
	h.t.Helper()
	if rest, err := io.ReadAll(h); err != nil || len(rest) > 0 {
		h.t.Errorf("got %q and %v, want the end", rest, err)
	}
}

// hearCut wants that the stream stops behind frames, and perhaps the answer to a Close.
func (h hand) hearCut(frames ...ws.Frame) {
	h.t.Helper()
	h.hear(frames...)
	for {
		got, err := tunneltest.ReadFrame(h)
		if err != nil {
			return
		}
		if got.Header.OpCode != ws.OpClose {
			h.t.Errorf("got %v %q, want the end", got.Header.OpCode, got.Payload)
		}
	}
}

// goesOn wants another tunnel on the connection, and ends it.
func (h hand) goesOn(targets chan *net.TCPConn) {
	h.t.Helper()
	h.say(word("dial"), data("and now"))
	h.hear(word("open"))
	target := <-targets
	h.say(endFrame)
	mustReadTo(h.t, target, "and now", nil)
	answerAndEnd(h.t, target, "this")
	h.hear(data("this"), endFrame, word("wait"))
}

// targetsOf are the connections that an edge dials, as their targets see them.
func targetsOf(t testing.TB) (address string, targets chan *net.TCPConn) {
	targets = make(chan *net.TCPConn, 10)
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	return tunneltest.Serve(t, func(c *net.TCPConn) {
		c.SetDeadline(time.Now().Add(20 * time.Second))
		targets <- c
		<-over
	}), targets
}

// mustReadTo reads to the end, which is err; nil: a good one.
func mustReadTo(t testing.TB, c io.Reader, want string, cut func(error) bool) {
	t.Helper()
	got, err := io.ReadAll(c)
	if string(got) != want || cut == nil && err != nil || cut != nil && !cut(err) {
		t.Fatalf("the target sees %q and then %v, want %q", got, err, want)
	}
}

func answerAndEnd(t testing.TB, c tunnel.Conn, answer string) {
	t.Helper()
	if _, err := io.WriteString(c, answer); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// reused is a client by hand, the first tunnel of its connection, and the edge.
func reused(t testing.TB, tr tunneltest.Transport, f *tunnel.Forwarder) (h hand, target *net.TCPConn, targets chan *net.TCPConn, edge *countedEdge) {
	t.Helper()
	address, targets := targetsOf(t)
	f.Accept, f.Dial = tr.Server, dialTCP(address)
	edge = countEdge(t, f)
	h = byHand(t, tr, edge.address, "end, again")
	return h, <-targets, targets, edge
}

func TestWaitTakesThePlaceOfClose(t *testing.T) {
	for _, tr := range bothKinds(t) {
		for name, play := range map[string]func(h hand, target *net.TCPConn){
			"the client ends first": func(h hand, target *net.TCPConn) {
				h.say(data("question"), endFrame)
				mustReadTo(t, target, "question", nil)
				answerAndEnd(t, target, "answer")
				h.hear(data("answer"), endFrame, word("wait"))
			},
			"the target ends first": func(h hand, target *net.TCPConn) {
				answerAndEnd(t, target, "hello")
				h.hear(data("hello"), endFrame)
				h.say(ping("alive?"))
				h.hear(ws.NewPongFrame([]byte("alive?")))
				h.say(data("thanks"), endFrame)
				h.hear(word("wait"))
				mustReadTo(t, target, "thanks", nil)
			},
			"both at once": func(h hand, target *net.TCPConn) {
				h.say(endFrame)
				target.CloseWrite()
				h.hear(endFrame, word("wait"))
				mustReadTo(t, target, "", nil)
			},
		} {
			t.Run(tr.Name+"/"+name, func(t *testing.T) {
				tunneltest.NoLeaks(t)
				h, target, targets, edge := reused(t, tr, new(tunnel.Forwarder))
				play(h, target)
				for range 3 {
					h.goesOn(targets)
				}
				h.say(word("dial"))
				h.hear(word("open"))
				play(h, <-targets)
				h.say(endFrame) // it has no use for the connection
				h.hearEnd()
				if err := edge.mustEnd(t); !errors.Is(err, tunnel.ErrNotTaken) {
					t.Errorf("ends with %v", err)
				}
				if n := edge.opened.Load(); n != 5 {
					t.Errorf("opened is told of %d tunnels", n)
				}
			})
		}
	}
}

// A Ping may be under way when one tunnel ends and the next begins. So may its Pong.
func TestPingAcrossTunnels(t *testing.T) {
	whole := wire(ping("hello?"))
	for _, tr := range bothKinds(t) {
		for at := 1; at <= len(whole); at++ {
			for _, clientFirst := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%d-%v", tr.Name, at, clientFirst), func(t *testing.T) {
					h, target, targets, _ := reused(t, tr, new(tunnel.Forwarder))
					begin := append(wire(endFrame), whole[:at]...)
					if clientFirst {
						h.Write(begin)
						mustReadTo(t, target, "", nil)
						target.CloseWrite()
						h.hearWithPong(at == len(whole), endFrame, word("wait"))
					} else {
						target.CloseWrite()
						h.hear(endFrame)
						h.Write(begin)
						h.hearWithPong(at == len(whole), word("wait"))
					}
					h.Write(append(bytes.Clone(whole[at:]), wire(word("dial"), data("early"))...))
					h.hearWithPong(at < len(whole), word("open"))
					target = <-targets
					h.say(endFrame)
					mustReadTo(t, target, "early", nil)
					target.CloseWrite()
					h.hear(endFrame, word("wait"))
					h.say(ping("still there?"))
					h.hear(ws.NewPongFrame([]byte("still there?")))
					h.goesOn(targets)
				})
			}
		}
	}
}

// hearWithPong is hear, with a Pong anywhere among the frames if there is to be one.
func (h hand) hearWithPong(pong bool, frames ...ws.Frame) {
	h.t.Helper()
	for len(frames) > 0 || pong {
		got, err := tunneltest.ReadFrame(h)
		switch {
		case err != nil:
			h.t.Fatal(err)
		case pong && got.Header.OpCode == ws.OpPong:
			pong = false
		case len(frames) > 0 && got.Header == frames[0].Header && bytes.Equal(got.Payload, frames[0].Payload):
			frames = frames[1:]
		default:
			h.t.Fatalf("got %v %q, want %v and a Pong: %v", got.Header.OpCode, got.Payload, frames, pong)
		}
	}
}

// heldBack is a connection whose Write returns late: when what the peer has answered to the word wait has been read.
type heldBack struct {
	*tunneltest.PipeConn
	answered chan struct{}
}

func (c heldBack) Write(p []byte) (int, error) {
	n, err := c.PipeConn.Write(p)
	if bytes.Contains(p, []byte("\x81\x04wait")) {
		<-c.answered
	}
	return n, err
}

// The edge still reads for the tunnel that ends when the client begins the next one.
func TestDialBehindWait(t *testing.T) {
	for _, clientFirst := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			client, accepted := tunneltest.Pipe()
			target, dialed := tunneltest.Pipe()
			dials := make(chan *tunneltest.PipeConn, 2)
			dials <- dialed
			edge := &tunnel.Forwarder{Accept: tunnel.Transport{&tunnel.WebSocket{Host: "localhost", Path: "/ws"}},
				Dial: func(context.Context, *tunnel.Info) (tunnel.Conn, error) { return <-dials, nil }}
			answered, ended := make(chan struct{}), make(chan error, 1)
			go func() { ended <- edge.Handle(t.Context(), heldBack{accepted, answered}) }()
			h := hand{t, client, nil}
			h.shake("end, again", "end, again")
			if clientFirst {
				h.say(endFrame)
				synctest.Wait()
				target.CloseWrite()
				h.hear(endFrame, word("wait"))
			} else {
				target.CloseWrite()
				h.hear(endFrame)
				h.say(endFrame)
				h.hear(word("wait"))
			}
			mustReadTo(t, target, "", nil)
			target, dialed = tunneltest.Pipe()
			dials <- dialed

			h.say(ping("in front"), word("dial"), data("behind"), endFrame)
			synctest.Wait()
			if left := accepted.Buffered(); (left == 0) != clientFirst {
				t.Errorf("client first %v: %d bytes of what it says are unread", clientFirst, left)
			}
			answered <- struct{}{}

			mustReadTo(t, target, "behind", nil)
			answerAndEnd(t, target, "I see")
			h.hearWithPong(true, word("open"), data("I see"), endFrame, word("wait"))
			answered <- struct{}{}
			h.say(closeFrame)
			h.hear(closeFrame)
			if err := <-ended; !errors.Is(err, tunnel.ErrNotTaken) {
				t.Errorf("ends with %v", err)
			}
			client.Close()
		})
	}
}

func TestCloseAtEachState(t *testing.T) {
	for _, tr := range bothKinds(t) {
		for name, tt := range map[string]struct {
			play func(h hand, target *net.TCPConn, targets chan *net.TCPConn)
			end  func(error) bool
		}{
			"in a tunnel": {func(h hand, target *net.TCPConn, _ chan *net.TCPConn) {
				h.say(data("half a"), closeFrame)
				mustReadTo(t, target, "half a", tunnel.IsReset)
				h.hearCut()
			}, isClosed},
			"behind the client's end": {func(h hand, target *net.TCPConn, _ chan *net.TCPConn) {
				h.say(data("all"), endFrame)
				mustReadTo(t, target, "all", nil)
				h.say(closeFrame)
				h.hearCut()
			}, isClosed},
			"behind the target's end": {func(h hand, target *net.TCPConn, _ chan *net.TCPConn) {
				answerAndEnd(t, target, "all")
				h.hear(data("all"), endFrame)
				h.say(data("half a"), closeFrame)
				mustReadTo(t, target, "half a", tunnel.IsReset)
				h.hearCut()
			}, isClosed},
			// As without the next tunnel. The edge may say that it waits before it has read the Close.
			"with the last end": {func(h hand, target *net.TCPConn, _ chan *net.TCPConn) {
				answerAndEnd(t, target, "all")
				h.hear(data("all"), endFrame)
				h.say(data("too"), endFrame, closeFrame)
				mustReadTo(t, target, "too", nil)
				got, err := tunneltest.ReadFrame(h)
				if err == nil && string(got.Payload) == "wait" {
					got, err = tunneltest.ReadFrame(h)
				}
				if err != nil || got.Header != closeFrame.Header || !bytes.Equal(got.Payload, closeFrame.Payload) {
					t.Errorf("got %v %q, %v, want a Close", got.Header.OpCode, got.Payload, err)
				}
				h.hearEnd()
			}, func(err error) bool { return err == nil || isNotTaken(err) }},
			"while it waits": {func(h hand, target *net.TCPConn, targets chan *net.TCPConn) {
				h.say(endFrame)
				answerAndEnd(t, target, "")
				h.hear(endFrame, word("wait"))
				h.goesOn(targets)
				h.say(closeFrame)
				h.hear(closeFrame)
				h.hearEnd()
			}, isNotTaken},
			"behind dial": {func(h hand, target *net.TCPConn, targets chan *net.TCPConn) {
				h.say(endFrame)
				answerAndEnd(t, target, "")
				h.hear(endFrame, word("wait"))
				h.say(word("dial"), closeFrame)
				mustReadTo(t, <-targets, "", tunnel.IsReset)
				h.hearCut(word("open"))
			}, isClosed},
			"in the second tunnel": {func(h hand, target *net.TCPConn, targets chan *net.TCPConn) {
				h.say(endFrame)
				answerAndEnd(t, target, "")
				h.hear(endFrame, word("wait"))
				h.say(word("dial"), data("half a"))
				h.hear(word("open"))
				h.say(closeFrame)
				mustReadTo(t, <-targets, "half a", tunnel.IsReset)
				h.hearCut()
			}, isClosed},
		} {
			t.Run(tr.Name+"/"+name, func(t *testing.T) {
				tunneltest.NoLeaks(t)
				h, target, targets, edge := reused(t, tr, new(tunnel.Forwarder))
				tt.play(h, target, targets)
				if err := edge.mustEnd(t); !tt.end(err) {
					t.Errorf("ends with %v", err)
				}
			})
		}
	}
}

func isNotTaken(err error) bool { return errors.Is(err, tunnel.ErrNotTaken) }

func isClosed(err error) bool {
	var closed *tunnel.CloseError
	return errors.As(err, &closed) && closed.Code == 1000
}

// What a client may not say ends its connection, and cuts its tunnel; one that has ended well before, and those of others, are not touched.
func TestViolationsAroundWait(t *testing.T) {
	ends := func(t *testing.T, h hand, target *net.TCPConn) {
		h.say(data("all"), endFrame)
		mustReadTo(t, target, "all", nil)
		answerAndEnd(t, target, "too")
		h.hear(data("too"), endFrame, word("wait"))
	}
	halfCloses := func(t *testing.T, h hand, target *net.TCPConn) {
		h.say(data("all"), endFrame)
		mustReadTo(t, target, "all", nil)
	}
	for _, tr := range bothKinds(t) {
		for name, tt := range map[string]struct {
			before func(t *testing.T, h hand, target *net.TCPConn)
			say    []ws.Frame
			waited bool
		}{
			"data before dial":        {ends, []ws.Frame{data("x")}, true},
			"another word":            {ends, []ws.Frame{word("wait")}, true},
			"open":                    {ends, []ws.Frame{word("open")}, true},
			"no target":               {ends, []ws.Frame{word("dial "), data("x")}, true},
			"a fragment":              {ends, []ws.Frame{ws.NewFrame(ws.OpText, false, []byte("di"))}, true},
			"a continuation":          {ends, []ws.Frame{ws.NewFrame(ws.OpContinuation, true, []byte("dial"))}, true},
			"a word that is too long": {ends, []ws.Frame{word(strings.Repeat("x", 301))}, true},
			"dial in the tunnel":      {halfCloses, []ws.Frame{word("dial")}, false},
			"data behind the end":     {halfCloses, []ws.Frame{data("x")}, false},
			"another end":             {halfCloses, []ws.Frame{endFrame}, false},
		} {
			t.Run(tr.Name+"/"+name, func(t *testing.T) {
				tunneltest.NoLeaks(t)
				h, target, targets, edge := reused(t, tr, new(tunnel.Forwarder))
				other := byHand(t, tr, edge.address, "end, again")
				otherTarget := <-targets
				other.say(data("one and "))

				tt.before(t, h, target)
				h.say(tt.say...)
				h.hearClose(ws.StatusProtocolError)

				err := edge.mustEnd(t)
				if err == nil || isNotTaken(err) != tt.waited {
					t.Errorf("ends with %v", err)
				}
				if !tt.waited {
					if _, err := target.Write([]byte("x")); err == nil {
						_, err = target.Read(make([]byte, 1))
						if !tunnel.IsReset(err) {
							t.Errorf("the target sees %v", err)
						}
					}
				}
				other.say(data("two"), endFrame)
				mustReadTo(t, otherTarget, "one and two", nil)
				answerAndEnd(t, otherTarget, "three")
				other.hear(data("three"), endFrame, word("wait"))
				other.goesOn(targets)
			})
		}
	}
}

// rowByHand is a client over ws, and the edge that it connects to, which speaks by hand once it has shaken hands.
func rowByHand(t testing.TB) (*row, chan hand) {
	t.Helper()
	edge := make(chan hand, 1)
	w := &tunnel.WebSocket{Host: "localhost", Path: "/ws", Reuse: true}
	address := tunneltest.Serve(t, func(c *net.TCPConn) {
		if _, err := w.Server(t.Context(), c, new(tunnel.Info)); err != nil {
			t.Error(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		edge <- hand{t, c, nil}
		<-t.Context().Done()
	})
	return newRow(tunnel.Transport{w}, address), edge
}

// What an edge may not say to a client that wants to use the connection again.
func TestViolationsOfAnEdge(t *testing.T) {
	frame := func(f ws.Frame) []byte { return ws.MustCompileFrame(f) }
	for name, tt := range map[string]struct {
		say       []byte
		halfClose bool // the client's direction has not ended
	}{
		"another word":    {frame(word("open")), false},
		"data":            {frame(data("x")), false},
		"another end":     {frame(endFrame), false},
		"a masked frame":  {wire(word("wait")), false},
		"wait too early":  {frame(word("wait")), true},
		"data too early":  {frame(data("x")), true},
		"another end too": {frame(endFrame), true},
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			r, edge := rowByHand(t)
			r.Keep = func(*tunnel.Session, tunnel.Conn, tunnel.Conn) bool {
				t.Error("the connection is used again")
				return false
			}
			err := r.carry(t, func(app tunnel.Conn) error {
				h := <-edge
				if !tt.halfClose {
					app.CloseWrite()
					h.hearMasked(endFrame)
				}
				h.Write(append(frame(endFrame), tt.say...))
				h.hearMasked(ws.NewCloseFrame(ws.NewCloseFrameBody(ws.StatusProtocolError, "")))
				if tt.halfClose {
					mustEventually(t, "the program is cut off", func() bool {
						_, err := io.WriteString(app, "x")
						return err != nil
					})
				}
				return nil
			})
			if (err != nil) != tt.halfClose { // once both directions have ended everything has arrived
				t.Errorf("ends with %v", err)
			}
		})
	}
}

// hearMasked is hear of an edge.
func (h hand) hearMasked(want ws.Frame) {
	h.t.Helper()
	got, err := tunneltest.ReadFrame(h)
	if err != nil {
		h.t.Fatalf("%v in place of %v %q", err, want.Header.OpCode, want.Payload)
	}
	if got = ws.UnmaskFrame(got); got.Header.OpCode != want.Header.OpCode || !bytes.Equal(got.Payload, want.Payload) {
		h.t.Fatalf("got %v %q, want %v %q", got.Header.OpCode, got.Payload, want.Header.OpCode, want.Payload)
	}
}
