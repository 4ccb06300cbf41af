package tunnel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

// The words for why a target could not be reached, as an edge tells them to its client.
const (
	ReasonRefused     = "refused"     // nobody listens there
	ReasonUnreachable = "unreachable" // there is no way to it
	ReasonTimeout     = "timeout"     // it did not answer in time
	ReasonName        = "name"        // its name is not known
	ReasonForbidden   = "forbidden"   // the client may not have it
	ReasonBusy        = "busy"        // there are as many tunnels as there may be
	ReasonFailed      = "failed"      // something else
)

// phrases say the same to people.
var phrases = map[string]string{
	ReasonRefused:     "nothing listens there",
	ReasonUnreachable: "there is no way to it",
	ReasonTimeout:     "it does not answer",
	ReasonName:        "its name is not known",
	ReasonForbidden:   "it may not be reached from here",
	ReasonBusy:        "it has as many tunnels as it may",
	ReasonFailed:      "the edge's log says why",
}

// TargetError says that a target could not be reached, or may not be.
type TargetError struct {
	Reason string // one of those above
	Err    error  // what has happened; nil at a client, which knows no more
}

func (e *TargetError) Error() string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return fmt.Sprintf("the edge could not reach the target: %s (%s)", phrases[knownReason(e.Reason)], e.Reason)
}

func (e *TargetError) Unwrap() error { return e.Err }

// Reason is the word for why a dial has failed; empty for nil.
func Reason(err error) string {
	var (
		target *TargetError
		closed *CloseError
		dns    *net.DNSError
	)
	switch {
	case err == nil:
		return ""
	case errors.As(err, &target):
		return knownReason(target.Reason)
	case errors.As(err, &closed) && closed.Code == int(statusBadGateway):
		return knownReason(closed.Reason)
	case errors.As(err, &dns):
		return ReasonName
	case errors.Is(err, ErrTimeout), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, errTimedOut):
		return ReasonTimeout
	case IsRefused(err):
		return ReasonRefused
	case errors.Is(err, errHostUnreachable), errors.Is(err, errNetUnreachable):
		return ReasonUnreachable
	}
	return ReasonFailed
}

// knownReason is word if it is one of ours; a peer may say anything.
func knownReason(word string) string {
	if phrases[word] == "" {
		return ReasonFailed
	}
	return word
}
