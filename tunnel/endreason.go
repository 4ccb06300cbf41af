package tunnel

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"
)

// The reasons that logs and metrics tell apart are few and fixed: what strangers do must not make more of them.

// side is an end of a tunnel.
type side uint8

const (
	byNobody side = iota
	byClient      // who connected to us
	byTarget      // what we dialed
)

func (s side) other() side {
	switch s {
	case byClient:
		return byTarget
	case byTarget:
		return byClient
	}
	return byNobody
}

// reason says in one word why the session has ended with err, and in front of it whose doing that was, where that is known.
func (s *Session) reason(err error) string {
	switch {
	case s.relay != nil:
		return s.relay.by.prefix() + EndReason(err)
	case isUnreached(err) && EndReason(err) == "shutdown":
		return "shutdown"
	case isUnreached(err):
		return "dial_" + Reason(err)
	case errors.Is(err, ErrNotTaken):
		return "not_taken"
	case s.f.Reason != nil:
		return s.f.Reason(&s.info, err)
	}
	return EndReason(err)
}

func (s side) prefix() string {
	switch s {
	case byClient:
		return "client_"
	case byTarget:
		return "target_"
	}
	return ""
}

// EndReason says in one word how a tunnel ended: closed, shutdown, silent, reset, close_code, cut, timeout or failed.
func EndReason(err error) string {
	var closed *CloseError
	switch {
	case err == nil:
		return "closed"
	case errors.Is(err, ErrDrained), errors.Is(err, context.Canceled):
		return "shutdown"
	case errors.Is(err, ErrLinger):
		return "silent"
	case IsReset(err):
		return "reset"
	case errors.As(err, &closed):
		return "close_code"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "cut"
	case IsTimeout(err), errors.Is(err, errNoPong): // or keep-alive, or a peer that acknowledges nothing
		return "timeout"
	}
	return "failed"
}

// IsTimeout tells whether something took too long.
func IsTimeout(err error) bool {
	return errors.Is(err, ErrTimeout) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT)
}
