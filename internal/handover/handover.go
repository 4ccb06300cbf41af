// Package handover gives the listeners of a running edge to a new process of it, so that a new binary takes
// over without a connection refused.
//
// Both accept for a moment, from the same queues. The old process goes on as if nothing had been until the
// new one has said that it is ready; only then Serve returns nil, and the old one stops accepting.
//
// The old process, once it serves:
//
//	running.Go(func() {
//		err := handover.Serve(ctx, path, server.Listeners, log)
//		if err == nil {
//			server.Retire() // and give up the admin and the control socket
//		}
//	})
//
// The new one, at its start:
//
//	listeners, commit, err := handover.Take(ctx, path)
//	if err == nil {
//		server.Handed = listeners
//		err = commit(server.Apply(ctx, config)) // and then Serve on the same path, and Run
//	}
//
// Who can open the socket gets the listeners. So it is for the user of the edge alone, and for the superuser.
package handover

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// ErrNobody says that there is no process to take listeners from. It is told together with the cause.
var ErrNobody = errors.New("nobody hands over")

const (
	version = 1

	// stepLimit is how long one side waits for what the other does at once.
	stepLimit = 10 * time.Second
	// readyLimit is how long the new process may take from the listeners to its readiness.
	readyLimit = 2 * time.Minute

	// chunk is how many descriptors go over in one message; Linux takes 253 at most.
	chunk        = 64
	maxListeners = 4096
	maxMessage   = 64 << 10 // bytes
	maxAddress   = 512      // bytes; chunk of them fit into a message
	maxReason    = 1 << 10  // bytes
)

// Kinds of messages. The new process says take, the old one listeners as often as it needs, the
// new one ready or failed, and on ready the old one done.
const (
	kindTake      = "take"
	kindListeners = "listeners"
	kindReady     = "ready"
	kindFailed    = "failed"
	kindDone      = "done"
)

// message is JSON behind four bytes that tell its length, the highest first.
type message struct {
	Kind      string   `json:"kind"`
	Version   int      `json:"version,omitempty"`   // of take and listeners
	Process   int      `json:"process,omitempty"`   // id of the one that says take
	Listeners []socket `json:"listeners,omitempty"` // as many as there are descriptors with the message
	More      bool     `json:"more,omitempty"`      // further listeners follow
	Reason    string   `json:"reason,omitempty"`    // of failed
}

// socket is a listener on its way.
type socket struct {
	Address string `json:"address"`           // key of the map; what it means is up to the two processes
	Network string `json:"network"`           // tcp or unix
	Foreign bool   `json:"foreign,omitempty"` // the file of the Unix socket is not for us to remove
}

func encode(m *message) ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if len(text) > maxMessage {
		return nil, fmt.Errorf("%s: %d bytes where %d are allowed", m.Kind, len(text), maxMessage)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...), nil
}

// length is that of the message behind its first four bytes.
func length(head []byte) (int, error) {
	n := binary.BigEndian.Uint32(head)
	if n == 0 || n > maxMessage {
		return 0, fmt.Errorf("a message of %d bytes, which is no hand-over", n)
	}
	return int(n), nil
}

func decode(text []byte) (*message, error) {
	m := &message{}
	if err := json.Unmarshal(text, m); err != nil {
		return nil, fmt.Errorf("a message that is no hand-over: %w", err)
	}
	return m, nil
}

// write sends a message without descriptors.
func write(c net.Conn, m *message) error {
	text, err := encode(m)
	if err != nil {
		return err
	}
	if err := c.SetWriteDeadline(time.Now().Add(stepLimit)); err != nil {
		return err
	}
	_, err = c.Write(text)
	return err
}

// read takes a message without descriptors.
func read(c net.Conn, limit time.Duration) (*message, error) {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(c, head); err != nil {
		return nil, err
	}
	n, err := length(head)
	if err != nil {
		return nil, err
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(c, text); err != nil {
		return nil, err
	}
	return decode(text)
}

// Error is what keeps a hand-over from coming about.
type Error struct {
	Text string
	Fix  string // what to do; empty if there is nothing to say
	Err  error  // what lies behind it; nil if nothing does
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %v", e.Text, e.Err)
	}
	return e.Text
}

func (e *Error) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *Error) Hint() string { return e.Fix }

// closeAll closes listeners that nobody will use. Files of Unix sockets stay: they are the old process's.
func closeAll(listeners map[string]net.Listener) {
	for _, l := range listeners {
		l.Close()
	}
}
