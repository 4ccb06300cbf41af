package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"raimon/tunnel"
)

// maxSaid is how much a program can say, in bytes, before the edge has said that the target is there.
const maxSaid = 64 << 10

// open gives local, the connection of a program, its other end: a connection of the pool if there is one, else a new
// one. A connection that breaks before the edge has said that the target is there is replaced by another, and what the
// program has said is said again. An edge says so before it delivers anything. Only where the network loses
// that word, and the connection with it, can the target hear it twice: to rule that out would cost a round trip each time.
func (l *link) open(ctx context.Context, local tunnel.Conn, info *tunnel.Info) (bare, c tunnel.Conn, err error) {
	said := &said{local: local, listens: info.Target == ""}
	defer func() { info.Sent = int64(len(said.text)) }()
	deadline := time.Now().Add(l.Wait)
	if l.Wait <= 0 {
		deadline = time.Now().Add(l.timeout()) // of the one attempt
	}
	r := l.pool.take()
	for tries := 1; ; tries++ {
		if r == nil {
			if r, err = l.connect(ctx, deadline, said, info.Target); errors.Is(err, errReplaced) {
				l = l.latest()
				r = l.pool.take()
				tries--
				continue
			}
			if err != nil && ctx.Err() != nil {
				err = errStopped
			}
			if err != nil {
				return nil, nil, err
			}
		}
		err = l.begin(ctx, r, said, info.Target, deadline)
		if err == nil {
			info.Route = r.watched
			if proxy := l.Dialer.Via(l.Remote); proxy != "" { // what ends the tunnel may be its doing
				info.Attrs = append(info.Attrs, "proxy", proxy)
			}
			return r.bare, r.conn, nil
		}
		r.abandon()
		var target *tunnel.TargetError
		if errors.As(err, &target) || errors.Is(err, tunnel.ErrTimeout) || ctx.Err() != nil || said.err != nil || tries >= maxTries {
			return nil, nil, err
		}
		l.log().Debug("another connection is tried", "error", err)
		r = nil // others of the pool may be as dead
	}
}

// maxTries is how many connections are tried for a program that break before the edge has said that the target is there.
const maxTries = 5

// begin makes r the other end of a program's connection. Where the edge says when its target is there, it waits for
// that: until deadline, if the edge does not even take what is said to it.
func (l *link) begin(ctx context.Context, r *ready, said *said, target string, deadline time.Time) error {
	if r.refused != nil {
		return r.refused
	}
	if !r.waits {
		if err := r.claim(); err != nil {
			return err
		}
		return said.again(r.conn)
	}
	cut := context.AfterFunc(ctx, func() { r.conn.SetDeadline(past) })
	defer cut()
	late := time.AfterFunc(l.timeout()+edgeHeadStart, func() { r.conn.SetDeadline(past) })
	defer late.Stop()
	var settled atomic.Bool
	unheard := time.AfterFunc(time.Until(deadline), func() {
		if h := tunnel.HealthOf(r.conn); h.InFlight > 0 && h.Timeouts > 0 && settled.CompareAndSwap(false, true) {
			r.declareDead(errUnheard)
		}
	})
	defer unheard.Stop()
	first := said.first()
	if said.err != nil {
		return said.left()
	}
	if err := tunnel.TakeAndWrite(r.conn, target, first); err != nil {
		return err
	}
	err := r.opened(said.local, func() { said.carry(r.conn, len(first)) })
	switch {
	case ctx.Err() != nil:
		return errStopped
	case said.err != nil:
		return said.left()
	case !settled.CompareAndSwap(false, true):
		return errUnheard
	case r.dead.Load() != nil:
		return *r.dead.Load()
	case errors.Is(err, os.ErrDeadlineExceeded) && tunnel.HealthOf(r.conn).InFlight > 0:
		return errUnheard // so its target is not to blame
	case errors.Is(err, os.ErrDeadlineExceeded):
		return tunnel.ErrTimeout
	case !cut() || !late.Stop():
		return tunnel.ErrTimeout // the deadline is set, or about to be
	}
	return err
}

// errStopped ends programs whose tunnel has not come about when raimonc ends.
var errStopped = tunnel.Told{Err: errors.New("shut down before there was a tunnel")}

// errUnheard says that an edge has not even taken what was said to it.
var errUnheard = errors.New("nothing that was said has arrived at the edge")

// edgeHeadStart is how much longer than itself an edge with the same time limit may take to say that its target does not
// answer.
const edgeHeadStart = 2 * time.Second

// said is what a program says while nobody knows yet whether its target is there.
type said struct {
	local   tunnel.Conn
	listens bool // else the program waits for an answer of ours before it says anything

	text  []byte
	ended bool  // it says nothing more; whoever relays finds the end again
	err   error // the program has gone
}

// maxFirst is how much of what a program has said goes along with the word that takes a connection, in bytes.
const maxFirst = 4 << 10

// earshot is what programs are listened to with.
var earshot = sync.Pool{New: func() any { return new([maxFirst]byte) }}

// first is what the program has said already, if that is little.
func (s *said) first() []byte {
	if s.listens && len(s.text) == 0 {
		buf := earshot.Get().(*[maxFirst]byte)
		defer earshot.Put(buf)
		var n int
		n, s.err = tunnel.ReadNow(s.local, buf[:])
		s.text = append(s.text, buf[:n]...)
	}
	if len(s.text) > maxFirst {
		return nil
	}
	return s.text
}

// carry says to conn what the program has said already, from the byte that is not told yet, and goes on with what it says next. What an
// error of conn means shows where it is read.
func (s *said) carry(conn tunnel.Conn, told int) {
	if !s.listens {
		return
	}
	if len(s.text) > told {
		if _, err := conn.Write(s.text[told:]); err != nil {
			return
		}
	}
	s.listen(conn)
}

// again says to conn what the program has said to connections that broke.
func (s *said) again(conn tunnel.Conn) error {
	if len(s.text) == 0 {
		return nil
	}
	conn.SetWriteDeadline(time.Now().Add(sayLimit))
	defer conn.SetWriteDeadline(time.Time{})
	_, err := conn.Write(s.text)
	return err
}

// sayLimit is for an edge that has just shaken hands and takes maxSaid bytes.
const sayLimit = 10 * time.Second

// hear listens to a program while there is no connection for it, until stop. It calls leave when the program goes:
// with a reset, or with an end before it has said anything, which of a TCP connection is its Close nearly always.
func (s *said) hear(leave func(error)) (stop func()) {
	if !s.listens {
		return func() {}
	}
	return s.while(func() {
		s.listen(nil)
		_, isTCP := s.local.(*net.TCPConn)
		if s.err != nil || isTCP && s.ended && len(s.text) == 0 {
			leave(errLeft)
		}
	})
}

// while runs listen, which reads from the program, until stop, which waits for its end.
func (s *said) while(listen func()) (stop func()) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		listen()
	}()
	return func() {
		s.local.SetReadDeadline(past)
		<-ended
		s.local.SetReadDeadline(time.Time{})
	}
}

// errLeft says that nobody waits for the edge any more.
var errLeft = errors.New("the program has gone before there was a tunnel")

// left is errLeft, and why.
func (s *said) left() error { return tunnel.Told{Err: fmt.Errorf("%w: %w", errLeft, s.err)} }

// listen notes what the program says and, if there is one, tells conn.
func (s *said) listen(conn tunnel.Conn) {
	buf := earshot.Get().(*[maxFirst]byte)
	defer earshot.Put(buf)
	for len(s.text) < maxSaid && !s.ended {
		n, err := s.local.Read(buf[:min(len(buf), maxSaid-len(s.text))])
		s.text = append(s.text, buf[:n]...)
		if n > 0 && conn != nil {
			if _, err := conn.Write(buf[:n]); err != nil {
				return
			}
		}
		switch {
		case err == nil:
		case err == io.EOF:
			s.ended = true
		case errors.Is(err, os.ErrDeadlineExceeded):
			return
		default:
			s.err = err
			if conn != nil {
				conn.SetDeadline(past) // nobody waits for the edge any more
			}
			return
		}
	}
}

// past is a deadline that wakes whoever waits.
var past = time.Unix(1, 0)
