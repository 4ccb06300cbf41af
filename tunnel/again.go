package tunnel

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/gobwas/ws"
)

// This file is how one connection carries several tunnels, one after the other. Where client and edge have agreed on it
// (featureAgain), the edge says in place of Close that it waits, and then does so as if it had been asked to in the handshake.

const (
	wordWait = "wait"
	// takeTime is how long a target may take to acknowledge the last of a tunnel.
	takeTime = time.Second
)

// mayWait tells whether the edge waits for another tunnel when this one has ended well.
func (f *frames) mayWait() bool {
	return f.again && !f.client && time.Since(time.Unix(0, f.since)) < maxWait
}

// waitsAfter tells whether the edge waits for another tunnel when that to target has ended well. Until target has acknowledged
// everything, which may be long, nobody would hear what the client says.
func (f *frames) waitsAfter(target Conn) bool {
	if f.waiting.Load() || f.saidClose.Load() || !f.mayWait() {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), takeTime)
	defer cancel()
	awaitSent(ctx, 0, target)
	return hasTakenAll(target)
}

// sayWait says, behind before, that the edge waits for the next tunnel, and wakes who lingers. The caller holds writing.
func (f *frames) sayWait(before []byte) error {
	f.waiting.Store(true) // the client may answer at once
	err := f.writeWhole(f.appendSmall(before, ws.OpText, []byte(wordWait)))
	f.torn = f.torn || err != nil
	f.Conn.SetReadDeadline(past)
	return err
}

// hearWait is linger of a client that wants to use the connection again: it returns nil when the edge says that it waits, or Close.
// The caller holds reading.
func (f *frames) hearWait() error {
	f.ended = false // what comes is no data of the tunnel
	word, err := f.readWord()
	switch {
	case err == nil && word == wordWait && f.saidEnd.Load():
		f.waiting.Store(true)
		return nil
	case err == nil, err == io.EOF: // another end
		f.violation(fmt.Errorf("%.20q behind the end of the stream", word))
	case f.readErr == nil:
		return err
	}
	if f.closed.Load() && f.saidEnd.Load() {
		return nil
	}
	return f.readErr
}

// waitsAgain tells whether the edge has said that it waits for the next tunnel on c.
func waitsAgain(c Conn) bool {
	f, ok := c.(*frames)
	return ok && f.waiting.Load()
}

// goesOn tells whether f, whose relay has ended well, can carry the next tunnel.
func (f *frames) goesOn() bool {
	f.reading.Lock()
	defer f.reading.Unlock()
	f.writing.Lock()
	defer f.writing.Unlock()
	return f.waiting.Load() && f.readErr == nil && !f.dead.Load() && !f.closed.Load() && !f.saidClose.Load() &&
		!f.torn && f.owed == 0 && len(f.unsent) == 0
}

// renew makes f what it is after a handshake with an edge that waits. Nobody reads or writes.
func (f *frames) renew() {
	f.SetDeadline(time.Time{})
	f.wait, f.open, f.used = true, true, true
	f.ended, f.isOpen, f.text, f.nonEmpty, f.floodHead = false, false, false, false, 0
	f.saidEnd.Store(false)
	f.waiting.Store(false)
	f.taken.Store(false)
	f.mu.Lock()
	f.stopped = false
	f.mu.Unlock()
}

// over is the end of a tunnel. Its connection to the edge may serve the next one: on the edge it then waits for that, and a client gives
// it to Keep.
func (s *Session) over() {
	r := s.relay
	if r.err == nil && s.ctx.Err() == nil {
		if f, ok := r.a.(*frames); ok && f.goesOn() {
			r.dismiss(r.b)
			go s.goOn(f) // the goroutine of a direction has little stack
			return
		}
		if f, ok := r.b.(*frames); ok && s.f.Keep != nil && f.goesOn() {
			f.renew()
			if s.f.Keep(s, s.dialed, f) {
				r.dismiss(r.a)
				s.dialed = nil
				s.close(nil)
				return
			}
		}
	}
	r.dismiss(r.a)
	r.dismiss(r.b)
	s.close(r.err)
}

// goOn waits for the next tunnel on the connection of s, which has ended well.
func (s *Session) goOn(f *frames) {
	growStack(0)
	f.renew()
	if below, ok := bottomSocket(f); ok && below.unsent() > probeSize {
		letEnd(f) // the tail of this tunnel comes even if the process dies
		f.used = false
	}
	f.expectDial()
	next := &Session{f: s.f, ctx: s.ctx, accepted: s.accepted, begin: time.Now(), follows: true, ended: s.ended}
	next.info = Info{Client: s.info.Client, ServerName: s.info.ServerName, Path: s.info.Path, Attrs: s.info.Attrs, Route: s.info.Route, drain: s.info.drain}
	if s.f.Again != nil && !s.f.Again(s, next) {
		f.hangUp(ws.StatusGoingAway, "")
		s.seeOff(f)
		release(f)
		s.close(nil)
		return
	}
	s.tell(nil)
	s.dialed.Close()
	next.wait(f)
}

// seeOff ends a connection that has waited in vain for the next tunnel: it returns when the client has all of the last one, or takes
// no more of it, as relay.settle does. What the client says is read meanwhile, since a Close would make a reset of it, which drops what is still on its way.
func (s *Session) seeOff(f *frames) {
	letEnd(f)
	if hasTakenAll(f) {
		return
	}
	f.Conn.SetReadDeadline(time.Time{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		awaitSent(s.ctx, orDefault(s.f.Linger, time.Minute), f)
		f.Conn.SetReadDeadline(past)
	}()
	for {
		b, err := readBuffer(f.Conn, probeSize)
		b.free()
		if err != nil {
			break
		}
	}
	<-done
}
