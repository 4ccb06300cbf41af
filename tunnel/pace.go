package tunnel

import (
	"io"
	"net/http"
	"sync"
	"time"
)

// paceStep is how much of an answer a client has to take in pace.limit.
const paceStep = 32 << 10

// pace ends the request of a client that stalls: one from which nothing of the body comes, or that takes nothing
// of the answer, for limit while the site waits for just that. What the site itself takes does not
// count, nor does the length of it all.
type pace struct {
	limit   time.Duration
	control *http.ResponseController

	mu      sync.Mutex
	streams bool // the request is one of several on its connection (HTTP/2)
	wrote   bool
	waiting int // calls that wait for the client
	timer   *time.Timer
	over    bool // the request is, or was given up
}

// serve answers r with site.
func (p *pace) serve(site http.Handler, w http.ResponseWriter, r *http.Request, hijacked func() bool) {
	p.control, p.streams = http.NewResponseController(w), r.ProtoMajor >= 2
	p.timer = time.AfterFunc(p.limit, p.giveUp)
	p.timer.Stop()
	defer func() { p.finish(hijacked()) }()
	if r.Body != http.NoBody {
		r = r.WithContext(r.Context()) // net/http looks at the Body of its own
		r.Body = &pacedBody{ReadCloser: r.Body, pace: p}
	}
	paced := &pacedWriter{ResponseWriter: w, pace: p}
	site.ServeHTTP(paced, r)
	if p.streams && p.wrote {
		paced.Flush() // after it nothing is left that could wait for the client
	}
}

func (p *pace) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting++; p.waiting == 1 && !p.over {
		p.timer.Reset(p.limit)
	}
}

func (p *pace) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch p.waiting--; {
	case p.over:
	case p.waiting == 0:
		p.timer.Stop()
	default:
		p.timer.Reset(p.limit) // whoever sends may be slow to take, and the other way round
	}
}

// giveUp wakes those who wait for the client.
func (p *pace) giveUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting > 0 && !p.over {
		p.over = true
		p.setDeadlines(past)
	}
}

// finish leaves a last deadline to net/http, which may still have an answer to send and a body to skip.
// It takes the deadline away before the next request. Over HTTP/2 there is nothing left to send or to skip, and a deadline
// that came when the stream has ended would keep all of it in memory until then.
func (p *pace) finish(hijacked bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer.Stop()
	if !p.over && !hijacked && !p.streams {
		p.setDeadlines(time.Now().Add(p.limit))
	}
	p.over = true
}

// setDeadlines fails only where the connection is over already.
func (p *pace) setDeadlines(t time.Time) {
	p.control.SetReadDeadline(t)
	p.control.SetWriteDeadline(t)
}

// pacedBody is the body of a request.
type pacedBody struct {
	io.ReadCloser
	pace *pace
}

func (b *pacedBody) Read(p []byte) (int, error) {
	b.pace.begin()
	defer b.pace.end()
	return b.ReadCloser.Read(p)
}

// pacedWriter is where the answer goes.
type pacedWriter struct {
	http.ResponseWriter
	pace *pace
}

func (w *pacedWriter) Write(p []byte) (n int, err error) {
	w.pace.wrote = true
	for first := true; first || len(p) > n && err == nil; first = false {
		var m int
		m, err = w.writePiece(p[n:min(n+paceStep, len(p))])
		n += m
	}
	return n, err
}

func (w *pacedWriter) writePiece(p []byte) (int, error) {
	w.pace.begin()
	defer w.pace.end()
	return w.ResponseWriter.Write(p)
}

// FlushError is for http.ResponseController.
func (w *pacedWriter) FlushError() error {
	w.pace.begin()
	defer w.pace.end()
	return w.pace.control.Flush()
}

// Flush implements http.Flusher, which has no place for an error; the next Write has it.
func (w *pacedWriter) Flush() { w.FlushError() }

// Unwrap is for http.ResponseController.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
