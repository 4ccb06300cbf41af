package tunneltest

import (
	"context"
	"io"
	"slices"
	"sync"
	"testing"

	"raimon/tunnel"
)

// Stage is a whole tunnel in memory: app ⇄ client ⇄ link ⇄ edge ⇄ target. The test plays app and
// target, and what lies in between client and edge.
type Stage struct {
	App, Target *PipeConn
	Link        *Link
	Tap         *Tap // nil without WebSocket

	// What Handle returned; each gives one error.
	Client, Edge chan error
}

// NewStage starts a tunnel. Inside of testing/synctest everything it starts belongs to the bubble.
func NewStage(t testing.TB, tr Transport, link *Link) *Stage {
	t.Helper()
	s := &Stage{Link: link, Client: make(chan error, 1), Edge: make(chan error, 1)}
	app, accepted := Pipe()
	target, dialed := Pipe()
	s.App, s.Target = app, target
	tr, s.Tap = tapped(tr)
	clientEnd, edgeEnd := link.start()
	client := &tunnel.Forwarder{Connect: tr.Client, Dial: give(clientEnd)}
	edge := &tunnel.Forwarder{Accept: tr.Server, Dial: give(dialed)}
	ctx, cancel := context.WithCancel(context.Background())
	var handles sync.WaitGroup
	handles.Go(func() { s.Client <- client.Handle(ctx, accepted) })
	handles.Go(func() {
		err := edge.Handle(ctx, edgeEnd)
		dialed.SetLinger(0) // where the handshake failed nobody has dialed, and nobody closed
		dialed.Close()
		s.Edge <- err
	})
	t.Cleanup(func() {
		cancel()
		for _, c := range []*PipeConn{app, target} {
			c.Close()
		}
		handles.Wait()
		clientEnd.Close()
		edgeEnd.Close()
		link.Wait()
	})
	return s
}

func give(c tunnel.Conn) func(context.Context, *tunnel.Info) (tunnel.Conn, error) {
	return func(context.Context, *tunnel.Info) (tunnel.Conn, error) { return c, nil }
}

// Link is the network between client and edge.
type Link struct {
	// CutUp and CutDown are after how many bytes from client to edge, and back, the link is cut;
	// negative: never.
	CutUp, CutDown int
	// Reset cuts with RST instead of FIN.
	Reset bool

	client, edge *PipeConn // our ends
	pumps        sync.WaitGroup
	mu           sync.Mutex
	up, down     int
	cut          bool
}

// NewLink is a link that is never cut by itself.
func NewLink() *Link { return &Link{CutUp: -1, CutDown: -1} }

func (l *Link) start() (clientEnd, edgeEnd *PipeConn) {
	clientEnd, l.client = Pipe()
	edgeEnd, l.edge = Pipe()
	l.pumps.Go(func() { l.pump(l.client, l.edge, &l.up, l.CutUp) })
	l.pumps.Go(func() { l.pump(l.edge, l.client, &l.down, l.CutDown) })
	return clientEnd, edgeEnd
}

// WasCut tells whether the link has been cut.
func (l *Link) WasCut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cut
}

// Wait waits until both ends have left the link, or it was cut with a reset.
func (l *Link) Wait() {
	l.pumps.Wait()
	l.client.Close()
	l.edge.Close()
}

// pump carries one direction. After a cut with FIN it goes on reading, so that no reset follows.
func (l *Link) pump(from, to *PipeConn, moved *int, limit int) {
	buf := make([]byte, 4<<10)
	for {
		if limit >= 0 && *moved == limit {
			l.Kill(l.Reset)
		}
		p := buf
		if limit > *moved {
			p = buf[:min(len(buf), limit-*moved)]
		}
		n, err := from.Read(p)
		if n > 0 {
			l.mu.Lock()
			cut := l.cut
			if !cut {
				*moved += n
			}
			l.mu.Unlock()
			if !cut {
				if _, werr := to.Write(p[:n]); werr != nil {
					from.SetLinger(0)
					from.Close()
					return
				}
			}
		}
		if err == io.EOF {
			to.CloseWrite()
			return
		}
		if err != nil {
			to.SetLinger(0)
			to.Close()
			return
		}
	}
}

// Kill ends the link in both directions at once: with a reset, or with FIN as if both peers had ended
// without a word.
func (l *Link) Kill(reset bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = true
	for _, c := range []*PipeConn{l.client, l.edge} {
		if reset {
			c.SetLinger(0)
			c.Close()
		} else {
			c.CloseWrite()
		}
	}
}

// Tap is a Layer that changes nothing and gives the test the connections below the framing.
type Tap struct {
	Client, Server tunnel.Conn
}

type tapLayer struct{ *Tap }

func (t tapLayer) Client(_ context.Context, c tunnel.Conn) (tunnel.Conn, error) {
	t.Tap.Client = c
	return c, nil
}

func (t tapLayer) Server(_ context.Context, c tunnel.Conn, _ *tunnel.Info) (tunnel.Conn, error) {
	t.Tap.Server = c
	return c, nil
}

// tapped puts a tap below tr's WebSocket.
func tapped(tr Transport) (Transport, *Tap) {
	last := len(tr.Client) - 1
	if last < 0 {
		return tr, nil
	}
	if _, ok := tr.Client[last].(*tunnel.WebSocket); !ok {
		return tr, nil
	}
	tap := new(Tap)
	tr.Client = slices.Insert(slices.Clone(tr.Client), last, tunnel.Layer(tapLayer{tap}))
	tr.Server = slices.Insert(slices.Clone(tr.Server), last, tunnel.Layer(tapLayer{tap}))
	return tr, tap
}

// Record is what has been read from a connection so far.
type Record struct {
	mu   sync.Mutex
	data []byte
	err  error
	done chan struct{}
}

// NewRecord reads c until an error.
func NewRecord(c io.Reader) *Record {
	r := &Record{done: make(chan struct{})}
	go func() {
		defer close(r.done)
		buf := make([]byte, 4<<10)
		for {
			n, err := c.Read(buf)
			r.mu.Lock()
			r.data = append(r.data, buf[:n]...)
			r.err = err
			r.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return r
}

// Get returns a copy of the data, and io.EOF or an error if there was one.
func (r *Record) Get() ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.data), r.err
}

// Wait waits for the end or an error and returns everything.
func (r *Record) Wait() ([]byte, error) {
	<-r.done
	return r.Get()
}
