package tunnel

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gobwas/ws"
)

// errNoPong ends a tunnel whose peer used to answer Pings and no longer does.
var errNoPong = errors.New("the peer no longer answers pings")

// controls sends control frames between data frames: our Pings, and the answers to the peer's Pings
// and Close, for which the reader never waits.
type controls struct {
	interval time.Duration // of silence before a Ping; 0 or less: never

	mu      sync.Mutex
	busy    sync.WaitGroup
	pong    []byte        // owed to the peer; nil: none
	close   ws.StatusCode // owed to the peer; 0: none
	sending bool
	stopped bool
	answers bool // a Pong has ever come
	timer   *time.Timer

	pinged   time.Time   // when the oldest unanswered Ping was sent; zero: none is out
	atPing   int64       // data frames written before that
	digested int64       // data frames written before the last Ping that was answered
	dead     atomic.Bool // it is declared
	hungUp   atomic.Bool // we have ended the connection with a Close frame of our own
}

// answer owes the peer a Pong; of several Pings only the last needs one (RFC 6455, section 5.5.3).
func (f *frames) answer(ping []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pong = append(make([]byte, 0, len(ping)), ping...)
	f.send()
}

// answerClose owes the peer a Close.
func (f *frames) answerClose(code ws.StatusCode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.close = code
	f.send()
}

// send starts the goroutine that sends what is owed, at the writer's next frame boundary.
// The caller holds mu.
func (f *frames) send() {
	if !f.sending && !f.stopped {
		f.sending = true
		f.busy.Go(f.sendOwed)
	}
}

func (f *frames) sendOwed() {
	f.writing.Lock()
	defer f.writing.Unlock()
	for {
		f.mu.Lock()
		pong, code := f.pong, f.close
		f.pong, f.close = nil, 0
		f.sending = pong != nil || code != 0
		f.mu.Unlock()
		// An error here is met again by whoever writes or reads next.
		switch {
		case pong != nil && !f.saidClose.Load():
			f.writeSmall(ws.OpPong, pong)
		case pong == nil && code == 0:
			return
		}
		if code != 0 && !f.saidClose.Swap(true) {
			f.writeSmall(ws.OpClose, ws.NewCloseFrameBody(code, ""))
		}
	}
}

// hangUp ends the connection with a Close frame in place of a reset, unless a frame is under way
// that does not get finished.
func (f *frames) hangUp(code ws.StatusCode, reason string) {
	for range 20 {
		if f.writing.TryLock() {
			defer f.writing.Unlock()
			if f.saidClose.Swap(true) {
				return
			}
			f.Conn.SetWriteDeadline(time.Now().Add(time.Second))
			if f.writeSmall(ws.OpClose, ws.NewCloseFrameBody(code, reason)) == nil && f.Conn.CloseWrite() == nil {
				f.hungUp.Store(true)
			}
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// keepAlive sends a Ping after every interval of silence until stop, which waits for all that was
// still being sent.
func (f *frames) keepAlive() (stop func()) {
	f.startPings()
	return func() {
		f.stopPings()
		patience := past
		if f.waiting.Load() {
			patience = time.Now().Add(time.Second) // what is owed is owed to a connection that goes on
		}
		f.quiet(patience)
	}
}

// quiet begins nothing more, and returns when what was begun is sent, or patience is over.
func (f *frames) quiet(patience time.Time) {
	f.mu.Lock()
	f.stopped = true
	f.mu.Unlock()
	f.Conn.SetWriteDeadline(patience)
	f.busy.Wait()
}

func (f *frames) startPings() {
	if f.interval > 0 {
		f.mu.Lock()
		f.timer = time.AfterFunc(f.interval, f.beat)
		f.mu.Unlock()
	}
}

// stopPings has the peer not declared dead any more either. A Ping may still be under way.
func (f *frames) stopPings() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
}

// beat looks after the silence, and comes again when it may have lasted long enough.
func (f *frames) beat() {
	f.mu.Lock()
	if f.stopped {
		f.mu.Unlock()
		return
	}
	f.busy.Add(1)
	f.mu.Unlock()
	defer f.busy.Done()

	next := f.interval - time.Since(time.Unix(0, f.lastRead.Load()))
	if next <= 0 {
		next = f.interval
		if f.declaresDead() {
			return
		}
		f.sendPing()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer != nil {
		f.timer.Reset(next)
	}
}

// declaresDead wakes the reader of a peer that owes us a Pong which nothing but its death explains, while Pings are sent. It must have
// answered before; it must have had nothing to digest since, for a Ping behind data waits until the
// data is taken; and we must have been reading, or the Pong may be here already.
func (f *frames) declaresDead() bool {
	waits := f.waitsSince.Load()
	f.mu.Lock()
	defer f.mu.Unlock()
	isDead := f.answers && !f.pinged.IsZero() && time.Since(f.pinged) >= f.interval &&
		f.digested == f.written.Load() && waits != 0 && waits <= f.pinged.UnixNano()
	if isDead && f.timer != nil {
		f.dead.Store(true)
		f.Conn.SetReadDeadline(past)
	}
	return isDead
}

// sendPing sends a Ping unless a frame is being written, which is no silence.
func (f *frames) sendPing() {
	if !f.writing.TryLock() {
		return
	}
	defer f.writing.Unlock()
	if f.saidClose.Load() || f.peer != peerRaimon && f.saidEnd.Load() {
		return
	}
	f.mu.Lock()
	if f.pinged.IsZero() {
		f.pinged, f.atPing = time.Now(), f.written.Load()
	}
	f.mu.Unlock()
	f.writeSmall(ws.OpPing, nil)
}

// ponged notes a Pong.
func (f *frames) ponged() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers = true
	if !f.pinged.IsZero() {
		f.pinged, f.digested = time.Time{}, f.atPing
	}
}

// heard is when anything last came; only from another raimon is that proof that a silent tunnel is
// wanted: its Pings and Pongs come for hours.
func (f *frames) heard() time.Time {
	if f.peer != peerRaimon {
		return time.Time{}
	}
	return time.Unix(0, f.lastRead.Load())
}
