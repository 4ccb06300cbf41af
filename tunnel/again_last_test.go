package tunnel_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gobwas/ws"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// What cuts a tunnel cuts its connection, which no other tunnel follows on.
func TestCutTunnelIsTheLast(t *testing.T) {
	errStop := errors.New("stopped by the test")
	for _, tr := range bothKinds(t) {
		for name, tt := range map[string]struct {
			linger time.Duration
			play   func(h hand, target *net.TCPConn, edge *countedEdge)
			end    func(error) bool
		}{
			"the target resets": {0, func(_ hand, target *net.TCPConn, _ *countedEdge) {
				target.SetLinger(0)
				target.Close()
			}, tunnel.IsReset},
			"the target resets behind its end": {0, func(h hand, target *net.TCPConn, _ *countedEdge) {
				target.CloseWrite()
				h.hear(endFrame)
				target.SetLinger(0)
				target.Close()
				h.say(data("too late"))
				h.Write(wire(data("too late"))) // the first has gone into the kernel of the edge
			}, tunnel.IsReset},
			"the client resets": {0, func(h hand, target *net.TCPConn, _ *countedEdge) {
				h.say(data("half a"))
				h.reset()
				mustReadTo(t, target, "half a", tunnel.IsReset)
			}, tunnel.IsReset},
			"the client leaves behind its end": {0, func(h hand, target *net.TCPConn, _ *countedEdge) {
				h.say(endFrame)
				mustReadTo(t, target, "", nil)
				h.reset()
			}, tunnel.IsReset},
			"linger": {50 * time.Millisecond, func(h hand, target *net.TCPConn, _ *countedEdge) {
				h.say(data("all"), endFrame)
				mustReadTo(t, target, "all", nil)
			}, func(err error) bool { return errors.Is(err, tunnel.ErrLinger) }},
			"the context": {0, func(h hand, target *net.TCPConn, edge *countedEdge) {
				h.say(data("half a"))
				io.ReadFull(target, make([]byte, 6))
				edge.cut(errStop)
			}, func(err error) bool { return errors.Is(err, errStop) }},
			"the context behind an end": {0, func(h hand, target *net.TCPConn, edge *countedEdge) {
				h.say(endFrame)
				mustReadTo(t, target, "", nil)
				edge.cut(errStop)
			}, func(err error) bool { return errors.Is(err, errStop) }},
		} {
			t.Run(tr.Name+"/"+name, func(t *testing.T) {
				tunneltest.NoLeaks(t)
				f := &tunnel.Forwarder{Linger: tt.linger, Again: func(*tunnel.Session, *tunnel.Session) bool {
					t.Error("the connection is to be used again")
					return true
				}}
				h, target, _, edge := reused(t, tr, f)
				tt.play(h, target, edge)
				if err := edge.mustEnd(t); !tt.end(err) {
					t.Errorf("ends with %v", err)
				}
				h.hearCut()
			})
		}
	}
}

// reset is the death of the client.
func (h hand) reset() {
	h.bare.SetLinger(0)
	h.bare.Close()
}

// An edge that will not wait for another tunnel says so in a way that tells that nothing of it has gone to a target.
func TestEdgeThatWaitsNoMore(t *testing.T) {
	ends := func(h hand, target *net.TCPConn) {
		h.say(endFrame)
		target.CloseWrite()
		h.hear(endFrame, word("wait"))
	}
	for _, tr := range bothKinds(t) {
		for name, play := range map[string]func(h hand, target *net.TCPConn, edge *countedEdge, replace func()){
			"draining in the tunnel": func(h hand, target *net.TCPConn, edge *countedEdge, _ func()) {
				edge.drain()
				ends(h, target)
			},
			"draining while it waits": func(h hand, target *net.TCPConn, edge *countedEdge, _ func()) {
				ends(h, target)
				edge.drain()
			},
			"draining, and the client has said more": func(h hand, target *net.TCPConn, edge *countedEdge, _ func()) {
				edge.drain()
				ends(h, target)
				h.Write(wire(word("dial"), data("early"))) // the edge may be gone
			},
			"until in the tunnel": func(h hand, target *net.TCPConn, _ *countedEdge, replace func()) {
				replace()
				ends(h, target)
			},
			"until while it waits": func(h hand, target *net.TCPConn, _ *countedEdge, replace func()) {
				ends(h, target)
				replace()
			},
		} {
			t.Run(tr.Name+"/"+name, func(t *testing.T) {
				tunneltest.NoLeaks(t)
				until, replace := context.WithCancel(t.Context())
				h, target, _, edge := reused(t, tr, &tunnel.Forwarder{Until: until})
				play(h, target, edge, replace)
				h.hear(goingAway)
				h.hearCut()
				if err := edge.mustEnd(t); !isNotTaken(err) {
					t.Errorf("ends with %v", err)
				}
				if n := edge.opened.Load(); n != 1 {
					t.Errorf("opened is told of %d tunnels", n)
				}
			})
		}
		t.Run(tr.Name+"/Again", func(t *testing.T) {
			tunneltest.NoLeaks(t)
			tunnels := 0
			h, target, targets, edge := reused(t, tr, &tunnel.Forwarder{Again: func(_, next *tunnel.Session) bool {
				tunnels++
				next.Info().Route = tunnels
				return tunnels < 3
			}, Opened: func(s *tunnel.Session) {
				if got := s.Info().Route; tunnels > 0 && got != tunnels {
					t.Errorf("the route of tunnel %d is %v", tunnels, got)
				}
			}})
			ends(h, target)
			h.goesOn(targets)
			h.goesOn(targets)
			h.hear(goingAway)
			h.hearEnd()
			if err := edge.mustEnd(t); err != nil {
				t.Errorf("ends with %v", err)
			}
		})
	}
}

var goingAway = ws.NewCloseFrame(ws.NewCloseFrameBody(ws.StatusGoingAway, ""))

// A client that has no use for a connection closes it, and makes another.
func TestConnectionThatNobodyKeeps(t *testing.T) {
	no := func(*tunnel.Session, tunnel.Conn, tunnel.Conn) bool { return false }
	for _, tr := range bothKinds(t) {
		for name, keep := range map[string]func(*tunnel.Session, tunnel.Conn, tunnel.Conn) bool{"Keep": no, "nil": nil} {
			t.Run(tr.Name+"/"+name, func(t *testing.T) {
				tunneltest.NoLeaks(t)
				edge := countEdge(t, &tunnel.Forwarder{Accept: tr.Server, Dial: dialTCP(tunneltest.Echo(t))})
				r := newRow(tr.Client, edge.address)
				r.Keep = keep
				for n := range int32(3) {
					if err := r.carry(t, echoes(1000)); err != nil {
						t.Fatal(err)
					}
					if err := edge.mustEnd(t); err != nil && !isNotTaken(err) {
						t.Errorf("the edge ends with %v", err)
					}
					if r.dials.Load() != n+1 {
						t.Errorf("%d connections for %d tunnels", r.dials.Load(), n+1)
					}
				}
			})
		}
	}
}

// A connection that a client has kept ends in order, whoever ends it: what ended well is not reset.
func TestKeptConnectionIsClosed(t *testing.T) {
	for name, play := range map[string]func(h hand, kept tunnel.Conn){
		"nobody has a use for it": func(h hand, kept tunnel.Conn) {
			kept.Close()
			h.hearMasked(endFrame)
			h.hearMasked(closeFrame)
		},
		"the edge waits no longer": func(h hand, kept tunnel.Conn) {
			h.Write(ws.MustCompileFrame(goingAway))
			if err := tunnel.AwaitOpen(kept); err == nil {
				t.Error("the edge has a target")
			}
			h.hearMasked(goingAway)
			kept.Close()
		},
		"the edge says what it may not": func(h hand, kept tunnel.Conn) {
			h.Write(ws.MustCompileFrame(word("wait")))
			if err := tunnel.AwaitOpen(kept); err == nil {
				t.Error("the edge has a target")
			}
			kept.Close()
			h.hearMasked(ws.NewCloseFrame(ws.NewCloseFrameBody(ws.StatusProtocolError, "")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			r, edge := rowByHand(t)
			var h hand
			if err := r.carry(t, func(app tunnel.Conn) error {
				h = <-edge
				app.CloseWrite()
				h.hearMasked(endFrame)
				h.Write(append(ws.MustCompileFrame(endFrame), ws.MustCompileFrame(word("wait"))...))
				_, err := io.ReadAll(app)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			<-r.kept
			play(h, <-r.kept)
			h.hearEnd()
		})
	}
}

// What is done to a tunnel that has ended does not reach the next one.
func TestCutOfATunnelThatIsOver(t *testing.T) {
	for _, tr := range bothKinds(t) {
		t.Run(tr.Name, func(t *testing.T) {
			tunneltest.NoLeaks(t)
			sessions := make(chan *tunnel.Session, 10)
			opened := func(s *tunnel.Session) { sessions <- s }
			edge := countEdge(t, &tunnel.Forwarder{Accept: tr.Server, Dial: dialTCP(tunneltest.Echo(t)), Opened: opened})
			r := newRow(tr.Client, edge.address)
			r.Opened = opened
			if err := r.carry(t, echoes(1000)); err != nil {
				t.Fatal(err)
			}
			first := []*tunnel.Session{<-sessions, <-sessions}
			if err := r.carry(t, func(c tunnel.Conn) error {
				io.WriteString(c, "hello")
				if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
					return err
				}
				for _, s := range first {
					s.Cut(errors.New("too late"))
				}
				return echoes(1000)(c)
			}); err != nil {
				t.Error(err)
			}
			r.close(t)
			if err := edge.mustEnd(t); err != nil && !isNotTaken(err) || r.dials.Load() != 1 {
				t.Errorf("ends with %v, after %d connections", err, r.dials.Load())
			}
		})
	}
}

// inMemory is an edge in a bubble, and a client that shakes hands by hand.
func inMemory(t *testing.T, f *tunnel.Forwarder) (h hand, targets chan *tunneltest.PipeConn, ended chan error) {
	t.Helper()
	client, accepted := tunneltest.Pipe()
	targets, ended = make(chan *tunneltest.PipeConn, 1), make(chan error, 1)
	f.Accept = tunnel.Transport{&tunnel.WebSocket{Host: "localhost", Path: "/ws"}}
	f.Dial = func(context.Context, *tunnel.Info) (tunnel.Conn, error) {
		target, dialed := tunneltest.Pipe()
		targets <- target
		return dialed, nil
	}
	go func() { ended <- f.Handle(t.Context(), accepted) }()
	return hand{t, client, nil}, targets, ended
}

// Who may use a connection is asked in its handshake, and that must not be long ago.
func TestOldConnectionIsNotUsedAgain(t *testing.T) {
	for _, clientFirst := range []bool{true, false} {
		for age, waits := range map[time.Duration]bool{5*time.Minute - time.Second: true, 5 * time.Minute: false, 9 * time.Hour: false} {
			synctest.Test(t, func(t *testing.T) {
				h, targets, ended := inMemory(t, new(tunnel.Forwarder))
				h.shake("end, again", "end, again")
				shaken := time.Now()
				target := <-targets
				end := func(said ws.Frame) {
					if clientFirst {
						h.say(endFrame)
						mustReadTo(t, target, "", nil)
						target.CloseWrite()
					} else {
						target.CloseWrite()
						synctest.Wait()
						h.say(endFrame)
						mustReadTo(t, target, "", nil)
					}
					h.hearSkippingPings(endFrame, said)
				}
				time.Sleep(2 * time.Minute)
				end(word("wait"))
				time.Sleep(2 * time.Minute)
				h.say(word("dial"))
				h.hearSkippingPings(word("open"))
				target = <-targets
				time.Sleep(time.Until(shaken.Add(age)))
				if waits {
					end(word("wait"))
				} else {
					end(closeFrame)
				}
				h.say(closeFrame)
				err := <-ended
				if waits && !isNotTaken(err) || !waits && err != nil {
					t.Errorf("after %v ends with %v", age, err)
				}
			})
		}
	}
}

// hearSkippingPings is hear of an edge that has been waiting.
func (h hand) hearSkippingPings(frames ...ws.Frame) {
	h.t.Helper()
	for len(frames) > 0 {
		got, err := tunneltest.ReadFrame(h)
		switch {
		case err != nil:
			h.t.Fatal(err)
		case got.Header.OpCode == ws.OpPing:
		case got.Header != frames[0].Header || string(got.Payload) != string(frames[0].Payload):
			h.t.Fatalf("got %v %q, want %v %q", got.Header.OpCode, got.Payload, frames[0].Header.OpCode, frames[0].Payload)
		default:
			frames = frames[1:]
		}
	}
}

// A connection that waits again waits until five minutes after its handshake, and answers Pings meanwhile.
func TestWaitAgainEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, targets, ended := inMemory(t, new(tunnel.Forwarder))
		h.shake("end, again", "end, again")
		begin := time.Now()
		time.Sleep(time.Minute)
		h.say(endFrame)
		(<-targets).CloseWrite()
		h.hearSkippingPings(endFrame, word("wait"))
		for range 17 {
			time.Sleep(14 * time.Second)
			h.say(ping("me too"))
			h.hear(ws.NewPongFrame([]byte("me too")))
		}
		h.hearSkippingPings(goingAway)
		if err := <-ended; !isNotTaken(err) || time.Since(begin) != 5*time.Minute {
			t.Errorf("ends after %v with %v", time.Since(begin), err)
		}
	})
}

// What others say and hear is what it was before connections were used again.
func TestPeersThatKnowNoAgain(t *testing.T) {
	const get = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" +
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	for name, tt := range map[string]struct {
		head, agreed string
		fin          bool   // the client ends with it
		said         string // by the edge, when both have ended
	}{
		"raimon":                   {"Connection: Upgrade\r\nRaimon: end\r\n", "Raimon: end\r\n", false, "\x81\x00\x88\x02\x03\xe8"},
		"raimon with other tokens": {"Connection: Upgrade\r\nRaimon: end, agains\r\n", "Raimon: end\r\n", false, "\x81\x00\x88\x02\x03\xe8"},
		"kaminari":                 {"Connection: upgrade\r\n", "", true, ""},
		"browser":                  {"Connection: Upgrade\r\nOrigin: https://example.com\r\n", "", true, "\x88\x02\x03\xe8"},
		"another":                  {"Connection: Upgrade\r\n", "", true, ""},
		"again alone":              {"Connection: Upgrade\r\nRaimon: again\r\n", "", true, ""},
	} {
		for _, clientFirst := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h, targets, ended := inMemory(t, &tunnel.Forwarder{Again: func(*tunnel.Session, *tunnel.Session) bool {
						t.Error("the connection is to be used again")
						return true
					}})
					h.head(get + tt.head + "\r\n")
					if head := h.answer(); !strings.HasSuffix(head, "Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"+tt.agreed+"\r\n") {
						t.Fatalf("the edge answers %q", head)
					}
					target := <-targets
					end := func() {
						if tt.fin {
							h.CloseWrite()
						} else {
							h.say(endFrame)
						}
						mustReadTo(t, target, "hello", nil)
					}
					h.say(data("hello"))
					if clientFirst {
						end()
						target.CloseWrite()
					} else {
						target.CloseWrite()
						synctest.Wait()
						end()
					}
					said := make([]byte, len(tt.said))
					if _, err := io.ReadFull(h, said); err != nil || string(said) != tt.said {
						t.Errorf("the edge says %q, %v, want %q", said, err, tt.said)
					}
					if !tt.fin {
						h.say(closeFrame)
					}
					h.hearEnd()
					if err := <-ended; err != nil {
						t.Errorf("ends with %v", err)
					}
				})
			})
		}
	}
}

// So it is with what a client says to other edges, and to ours where it does not ask for more.
func TestEdgesThatKnowNoAgain(t *testing.T) {
	const upgraded = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
	const lower = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: "
	for name, tt := range map[string]struct {
		asks          bool
		begin, agreed string
		raimon        bool
	}{
		"raimon":          {true, upgraded, "Raimon: end\r\n", true},
		"not asked":       {false, upgraded, "Raimon: end, again\r\n", true},
		"kaminari":        {true, lower, "", false},
		"another":         {true, upgraded, "", false},
		"again, no end":   {true, upgraded, "Raimon: again\r\n", false},
		"another feature": {true, upgraded, "Raimon: end, agains\r\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				app, accepted := tunneltest.Pipe()
				edge, dialed := tunneltest.Pipe()
				client := &tunnel.Forwarder{
					Connect: tunnel.Transport{&tunnel.WebSocket{Host: "localhost", Path: "/ws", Reuse: tt.asks}},
					Dial:    func(context.Context, *tunnel.Info) (tunnel.Conn, error) { return dialed, nil },
					Keep: func(*tunnel.Session, tunnel.Conn, tunnel.Conn) bool {
						t.Error("the connection is kept")
						return false
					},
				}
				ended := make(chan error, 1)
				go func() { ended <- client.Handle(t.Context(), accepted) }()
				h := hand{t, edge, nil}
				head := h.answer()
				if strings.Contains(head, "\r\nRaimon: end, again\r\n") != tt.asks {
					t.Errorf("asks with %q", head)
				}
				_, key, _ := strings.Cut(head, "Sec-WebSocket-Key: ")
				key, _, _ = strings.Cut(key, "\r\n")
				h.head(tt.begin + tunnel.AcceptKey(key) + "\r\n" + tt.agreed + "\r\n")
				said := ""
				if tt.raimon {
					h.Write(ws.MustCompileFrame(endFrame))
					said = "\x81\x80\x00\x00\x00\x00\x88\x82\x00\x00\x00\x00\x03\xe8"
				} else {
					h.CloseWrite()
				}
				mustReadTo(t, app, "", nil)
				app.CloseWrite()
				got := make([]byte, len(said))
				if _, err := io.ReadFull(h, got); err != nil || string(got) != said {
					t.Errorf("the client says %q, %v, want %q", got, err, said)
				}
				if tt.raimon {
					h.Write(ws.MustCompileFrame(closeFrame))
				}
				h.hearEnd()
				if err := <-ended; err != nil {
					t.Errorf("ends with %v", err)
				}
			})
		})
	}
}

// A target may take its time for what it has been sent. Nobody hears the client meanwhile, who is not told to go on then.
func TestNextTunnelDoesNotWaitForASlowTarget(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the system does not tell what a target has taken")
	}
	all := strings.Repeat("x", 100_000)
	for _, tr := range bothKinds(t) {
		for _, clientFirst := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/%v", tr.Name, clientFirst), func(t *testing.T) {
				tunneltest.NoLeaks(t)
				h, target, _, edge := reused(t, tr, new(tunnel.Forwarder))
				target.SetReadBuffer(8 << 10)
				if clientFirst {
					h.say(data(all), endFrame, ping("read?"))
					h.hear(ws.NewPongFrame([]byte("read?")))
					target.CloseWrite()
					h.hear(endFrame)
				} else {
					target.CloseWrite()
					h.hear(endFrame)
					h.say(data(all), endFrame)
				}
				h.hear(closeFrame)
				h.say(closeFrame)
				target.SetReadBuffer(1 << 20)
				mustReadTo(t, target, all, nil)
				h.hearEnd()
				if err := edge.mustEnd(t); err != nil {
					t.Errorf("ends with %v", err)
				}
			})
		}
	}
}
