//go:build !linux

package tunnel

import (
	"syscall"
	"time"
)

// outq is not told by this system; its kernel is trusted to deliver after Close.
func (s *socket) outq() (n int, known bool) { return 0, false }

func (s *socket) isDead() bool { return false }

func (s *socket) lastAck() time.Time { return time.Time{} }

func (s *socket) holdsBack() bool { return false }

func healthOf(syscall.RawConn) Health { return Health{} }
