package resolve

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"
)

const (
	maxKept  = 2                // IPv4 and IPv6 are asked for at the same time
	idleTime = 10 * time.Second // RFC 7766, section 6.2.3: a few seconds
)

// stream asks over TCP or TLS. It keeps connections for further questions.
type stream struct {
	dial func(context.Context) (net.Conn, error)

	mu   sync.Mutex
	kept []keptConn
}

type keptConn struct {
	net.Conn
	idle *time.Timer
}

// ask tries again where it was a kept connection that failed: name servers end those as they like.
func (s *stream) ask(ctx context.Context, query []byte) ([]byte, error) {
	for {
		c := s.take()
		if c == nil {
			break
		}
		limited, cancel := context.WithTimeout(ctx, keptTime)
		answer, err := s.askOn(limited, c, query)
		cancel()
		if err == nil || ctx.Err() != nil {
			return answer, err
		}
	}
	limited, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := s.dial(limited)
	if err != nil {
		return nil, err
	}
	return s.askOn(ctx, c, query)
}

// askOn asks on c, and keeps it for the next question or closes it.
func (s *stream) askOn(ctx context.Context, c net.Conn, query []byte) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	answer, err := converse(c, query)
	if !stop() && err != nil {
		err = ctx.Err()
	}
	if err != nil || ctx.Err() != nil {
		c.Close()
		return answer, err
	}
	s.keep(c)
	return answer, nil
}

// converse writes query and reads the answer (RFC 1035, section 4.2.2).
func converse(c net.Conn, query []byte) ([]byte, error) {
	message := append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	if _, err := c.Write(message); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(c, answer); err != nil {
		return nil, err
	}
	if !answers(answer, query) {
		return nil, errNoMessage
	}
	return answer, nil
}

func (s *stream) take() net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) == 0 {
		return nil
	}
	last := s.kept[len(s.kept)-1]
	s.kept = s.kept[:len(s.kept)-1]
	last.idle.Stop()
	return last.Conn
}

func (s *stream) keep(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.kept) == maxKept {
		c.Close()
		return
	}
	s.kept = append(s.kept, keptConn{c, time.AfterFunc(idleTime, func() { s.drop(c) })})
}

// drop closes c if it is still kept.
func (s *stream) drop(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, k := range s.kept {
		if k.Conn == c {
			s.kept = append(s.kept[:i], s.kept[i+1:]...)
			c.Close()
			return
		}
	}
}

func (s *stream) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kept {
		k.idle.Stop()
		k.Close()
	}
	s.kept = nil
}
