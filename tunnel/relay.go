package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// lastWords is how long an end that takes no more data may go on sending what it has left.
const lastWords = 5 * time.Second

// ErrLinger ends a tunnel of which one direction had ended and the other stayed silent for too long.
var ErrLinger = errors.New("half-closed and silent for too long")

// errCut is what Read gives instead of io.EOF when a stream stops without its sign of the end.
var errCut = fmt.Errorf("stream was cut: %w", io.ErrUnexpectedEOF)

// past is a deadline that has expired.
var past = time.Unix(1, 0)

// keeper is a Conn with a life of its own while it is relayed: WebSocket sends Pings.
type keeper interface {
	// keepAlive starts that life; stop ends it and waits for it.
	keepAlive() (stop func())
	// heard is when the peer last proved that it is there although it had nothing to say.
	heard() time.Time
}

// lingerer is a Conn that has to be read beyond the end of its stream.
type lingerer interface {
	// linger returns nil when the peer has said its last word, if ours was said too.
	linger() error
	// farewell says our last word, once both directions have ended. Other is the other end of the tunnel.
	farewell(other Conn) error
	// closeLast is CloseWrite and farewell at once, for the direction that ends last.
	closeLast(other Conn) error
}

// Relay copies both ways between a and b until both directions have ended, each on its own, and
// returns how many bytes went from a to b and from b to a.
//
// An end of stream is passed on with CloseWrite. A stream that was cut ends the other direction
// too, and Relay returns an error. When ctx ends the tunnel is cut with the cause of ctx.
//
// Relay closes nothing, but says what Close will do: after an error it resets both connections, so
// that no cut looks like an end, not even one by kill -9 in the middle. Without an error nothing is
// left in the kernel's send buffers, and Close loses nothing.
//
// Linger is how long one direction may be silent after the other has ended; 0 or less: no limit.
func Relay(ctx context.Context, a, b Conn, linger time.Duration) (sent, received int64, err error) {
	over := make(chan struct{})
	r := newRelay(new(Forwarder).leashFor(ctx), a, b, linger)
	r.start(func() { close(over) })
	<-over
	r.dismiss(r.a)
	r.dismiss(r.b)
	return r.forth.moved.Load(), r.back.moved.Load(), r.err
}

// relay is a tunnel that is open. Each direction has a goroutine, on which nothing but the direction
// stands: their two stacks are most of what an idle tunnel needs.
type relay struct {
	ctx         context.Context
	a, b        Conn
	forth, back direction
	linger      time.Duration

	running atomic.Int32 // directions
	over    func()       // called by the last
	leash   *leash       // cuts it when ctx ends
	silent  [2]func()    // end the keepers

	mu      sync.Mutex
	ended   int // directions that have ended by themselves
	err     error
	refused bool // err comes from an end that takes no more
	by      side // whose doing the end is: who ended first, or failed
	settled bool // there is nothing left to cut: a and b may serve others

	// Both ends have got everything, the ends of the stream as well, or are gone: of a bare socket there is nothing left that Close might reset.
	acknowledged bool

	watch *time.Timer
}

func newRelay(leash *leash, a, b Conn, linger time.Duration) *relay {
	r := &relay{ctx: leash.ctx, leash: leash, linger: linger}
	a, r.forth.pending = detach(a)
	b, r.back.pending = detach(b)
	r.a, r.b = asSocket(a), asSocket(b)
	r.forth.src, r.forth.dst = r.a, r.b
	r.back.src, r.back.dst = r.b, r.a
	return r
}

// start begins to carry both ways, and calls over when both directions have ended.
func (r *relay) start(over func()) {
	for i, c := range []Conn{r.a, r.b} {
		if f, ok := c.(*frames); !ok || !f.used {
			ResetOnClose(c)
		}
		if k, ok := c.(keeper); ok {
			r.silent[i] = k.keepAlive()
		}
	}
	r.over = over
	r.leash.hold(r)
	r.running.Store(2)
	go r.carry(&r.forth)
	go r.carry(&r.back)
}

// carry is the life of a direction. The last one ends the relay.
func (r *relay) carry(d *direction) {
	err := d.copy()
	r.passOn(d, err)
	if r.running.Add(-1) == 0 {
		r.end()
		r.over()
	}
}

// end is the end of both directions: it undoes what start did, save that Close is a reset.
func (r *relay) end() {
	r.settle()
	r.leash.letGo(r)
	for _, silent := range r.silent {
		if silent != nil {
			silent()
		}
	}
}

// dismiss gives up c, which is about to be closed: it may end if it has said all.
func (r *relay) dismiss(c Conn) {
	if _, bare := c.(*socket); (r.err == nil || hasHungUp(c)) && !(bare && r.acknowledged) {
		letEnd(c)
	}
	release(c)
}

// passOn tells the other end what d has ended with.
func (r *relay) passOn(d *direction, err error) {
	if err == nil {
		d.read.Store(true)
		r.ends(d)
		if err = r.closeWrite(d); err != nil {
			err = writeError{err}
		}
	}
	if err != nil {
		if r.failed(d, err) {
			d.discard()
		}
		return
	}
	r.finished(d)
	if l, ok := d.src.(lingerer); ok {
		if err := l.linger(); err != nil {
			r.failed(d, err)
		}
	}
}

// ends notes who is the first to end. The other may do so as soon as it hears of it.
func (r *relay) ends(d *direction) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == byNobody && r.err == nil {
		r.by = r.source(d)
	}
}

// closeWrite passes the end of d on.
func (r *relay) closeWrite(d *direction) error {
	if l, ok := d.dst.(lingerer); ok {
		r.mu.Lock()
		last := r.ended == 1 && r.err == nil
		r.mu.Unlock()
		if last {
			return l.closeLast(d.src)
		}
	}
	return d.dst.CloseWrite()
}

// finished counts a direction that has ended. The first starts the watch over the other, the second
// lets both ends say their last word.
func (r *relay) finished(d *direction) {
	r.mu.Lock()
	d.over = true
	r.ended++
	both := r.ended == 2
	if r.err != nil {
		r.cut(r.err, r.by) // the last words are said
	}
	if !both && r.linger > 0 && r.err == nil {
		r.touch()
		r.watch = time.AfterFunc(r.linger, r.look)
	}
	r.mu.Unlock()
	if !both {
		return
	}
	r.touch()
	for _, d := range []*direction{&r.forth, &r.back} {
		if l, ok := d.src.(lingerer); ok {
			if err := l.farewell(d.dst); err != nil {
				r.abort(err, r.source(d))
			}
		}
	}
}

func (r *relay) touch() {
	r.forth.touch()
	r.back.touch()
}

// look cuts a half-closed tunnel that has been silent for too long.
func (r *relay) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil || r.watch == nil {
		return
	}
	for _, d := range []*direction{&r.forth, &r.back} {
		if r.died(d) {
			r.cut(errCut, r.source(d))
			return
		}
	}
	if left := r.linger - time.Since(r.lastSign()); left > 0 {
		r.watch.Reset(left)
		return
	}
	r.cut(ErrLinger, byNobody)
}

// died tells whether the source of d, which has ended, is gone for good while the other direction still runs. Nobody
// reads it any more: what became of it shows only here. The other source may be closed both ways
// and still have data to be read. The caller holds mu.
func (r *relay) died(d *direction) bool {
	other := &r.forth
	if d == other {
		other = &r.back
	}
	s, ok := bottomSocket(d.src)
	// In this order: passing the end of other on, begun by then, closes the socket as well.
	return ok && d.over && r.ended < 2 && s.isDead() && !other.read.Load()
}

// source is the side that d comes from.
func (r *relay) source(d *direction) side {
	if d == &r.forth {
		return byClient
	}
	return byTarget
}

// lastSign is when data last moved, also out of the kernel's queues, or a peer last proved that it is
// there.
func (r *relay) lastSign() time.Time {
	last := time.Unix(0, max(r.forth.last.Load(), r.back.last.Load()))
	for _, c := range []Conn{r.a, r.b} {
		if k, ok := c.(keeper); ok && k.heard().After(last) {
			last = k.heard()
		}
		if s, ok := bottomSocket(c); ok && s.holdsBack() {
			return time.Now()
		} else if ok && s.unsent() > 0 && s.lastAck().After(last) {
			last = s.lastAck()
		}
	}
	for _, d := range []*direction{&r.forth, &r.back} {
		// A local pipe that nobody reads any more fails; one that takes nothing is alive.
		if _, ok := bottomSocket(d.dst); !ok && d.writing.Load() {
			return time.Now()
		}
	}
	return last
}

// failed ends the tunnel because of d. Where d's receiver takes no more, what it still has to say
// is carried first: a server that answers and hangs up in the middle of an upload is heard. Its
// client may listen only once the upload is done, so the caller then discards the rest of it.
func (r *relay) failed(d *direction, err error) (lastWordsToCome bool) {
	var w writeError
	by := r.source(d)
	if errors.As(err, &w) {
		by = by.other()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil && w.error != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		r.err, r.refused, r.by = w.error, true, by
		if r.ended == 0 {
			soon := time.Now().Add(lastWords)
			d.dst.SetReadDeadline(soon)
			d.src.SetDeadline(soon)
			return true
		}
	}
	r.cut(err, by)
	return false
}

func (r *relay) abort(err error, by side) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut(err, by)
}

// cut wakes everything that waits on either end. The first reason is the one that counts; once both
// directions have ended everything has arrived, and an unanswered farewell matters to nobody.
func (r *relay) cut(err error, by side) {
	if r.settled {
		return
	}
	// Why the peer hung up says more than that it takes nothing any more.
	var closed *CloseError
	if r.err == nil && r.ended < 2 || r.refused && errors.As(err, &closed) {
		r.err, r.by = err, by
	}
	r.a.SetDeadline(past)
	r.b.SetDeadline(past)
}

// settle waits until the peers' kernels have everything, as long as they go on taking it: after
// Close the system would give up on a slow reader within minutes, and a reset would drop the rest.
// A connection that stays open for the next tunnel needs no such care.
func (r *relay) settle() {
	r.mu.Lock()
	r.settled = true // cut waits for nobody, and changes nothing any more
	if r.watch != nil {
		r.watch.Stop()
		r.watch = nil
	}
	r.mu.Unlock()
	switch {
	case r.err == nil:
		ends := slices.DeleteFunc([]Conn{r.a, r.b}, waitsAgain)
		r.acknowledged = awaitSent(r.ctx, r.linger, ends...)
	case r.refused && r.ended > 0:
		awaitSent(r.ctx, lastWords, r.a, r.b)
	}
}

// direction is one half of a tunnel.
type direction struct {
	src, dst Conn
	pending  []byte       // read ahead of src
	moved    atomic.Int64 // bytes
	last     atomic.Int64 // when bytes last moved, in Unix nanoseconds
	read     atomic.Bool  // src has ended; its end is being passed on
	writing  atomic.Bool  // dst is being written to
	over     bool         // it has ended by itself; guarded by relay.mu
	bulk     bool         // the last read brought as much as it could
}

// writeError marks an error of the receiving end.
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

// copy moves bytes until src ends. What comes in floods is left to the kernel where that is
// possible; the rest goes through a buffer that is held only while bytes are in it.
func (d *direction) copy() error {
	if len(d.pending) > 0 {
		if _, err := d.dst.Write(d.pending); err != nil {
			return writeError{err}
		}
		d.count(len(d.pending))
		d.pending = nil
	}
	for {
		if d.bulk {
			n, err := d.splice()
			if n > 0 {
				d.count(n)
			}
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if n > 0 {
				continue
			}
		}
		limit := probeSize
		if d.bulk {
			limit = bulkSize
		}
		b, err := readBuffer(d.src, limit)
		if b != nil {
			if err := d.write(b); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// floods is how many directions of all tunnels are handing on what a large read has brought.
var floods atomic.Int32

// write sends what one read has brought, and gives b back.
func (d *direction) write(b *buffer) error {
	n := b.len()
	d.bulk = n >= probeSize/2
	d.writing.Store(true)
	if d.bulk {
		floods.Add(1)
	}
	err := writeBuffer(d.dst, b)
	if d.bulk {
		floods.Add(-1)
	}
	d.writing.Store(false)
	b.free()
	if err != nil {
		return writeError{err}
	}
	d.count(n)
	return nil
}

// discard reads src until it ends or its deadline passes.
func (d *direction) discard() {
	for {
		b, err := readBuffer(d.src, bufferSize)
		b.free()
		if err != nil {
			return
		}
	}
}

func (d *direction) count(n int) {
	d.moved.Add(int64(n))
	d.touch()
}

func (d *direction) touch() { d.last.Store(time.Now().UnixNano()) }
