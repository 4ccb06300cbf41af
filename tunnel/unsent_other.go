//go:build !linux

package tunnel

import (
	"syscall"
	"time"
)

// tellsUnsent: what unsent returns is no more than a guess.
const tellsUnsent = false

// unsent is not told by this system; its kernel is trusted to deliver after Close.
func (s *socket) unsent() int { return 0 }

func (s *socket) isDead() bool { return false }

func (s *socket) lastAck() time.Time { return time.Time{} }

func (s *socket) holdsBack() bool { return false }

func healthOf(syscall.RawConn) Health { return Health{} }
