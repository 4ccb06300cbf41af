// Package localproxy is the port that programs on this machine are given as their proxy: the accepting side of SOCKS5
// (RFC 1928) and of HTTP proxying (RFC 9110, sections 7.1 and 9.3.6), told apart by the first byte.
//
// It hears where a program wants to go and tells it what has come of that. It dials nothing and resolves no names.
package localproxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"raimon/tunnel"
)

const (
	// maxHead bounds what a program may say before its request is complete, tries at the password included.
	maxHead = 64 << 10
	// answerTimeout is how long a program may take to take an answer of some bytes.
	answerTimeout = 5 * time.Second
	// farewellTimeout is how long a program may take to read an answer that ends the connection, and to leave.
	farewellTimeout = time.Second
)

// past is a deadline that has expired.
var past = time.Unix(1, 0)

// Layer is the accepting side. What its Server returns is a tunnel.Answering.
type Layer struct {
	// User and Password are what programs have to give (RFC 1929; RFC 7617). Both empty: nobody is asked.
	User, Password string
	// Log takes a line where a person can set a program right, which speaks SOCKS4, has no password, or wants UDP:
	// a Forwarder itself makes nothing of those who got no connection. Nil discards them.
	Log *slog.Logger
}

// Client is not there: tunnel.Dialer knows how to ask a proxy. The error matches errors.ErrUnsupported.
func (l *Layer) Client(context.Context, tunnel.Conn) (tunnel.Conn, error) {
	return nil, fmt.Errorf("proxy request: the dialing side: %w", errors.ErrUnsupported)
}

// Server reads the request of a program and notes in info.Target where it wants to go. A request that gets no
// connection is answered here; the error then has a Hint where a person can do something. The end of ctx
// ends it, with the cause of ctx.
func (l *Layer) Server(ctx context.Context, c tunnel.Conn, info *tunnel.Info) (tunnel.Conn, error) {
	ctx, stop := info.UntilDraining(ctx)
	defer stop()
	wake := context.AfterFunc(ctx, func() { c.SetDeadline(past) })
	asked, err := newDialogue(l, c).hear()
	if !wake() {
		return nil, fmt.Errorf("proxy request: %w", context.Cause(ctx))
	}
	if refused, ok := errors.AsType[*refusal](err); ok {
		if l.Log != nil && refused.hint != "" {
			l.Log.Warn("proxy request refused", "client", c.RemoteAddr().String(), "error", err, "hint", refused.hint)
		}
		farewell(c, refused.answer) // why it is refused matters more than whether the program has waited to hear it
	}
	if err != nil {
		return nil, err
	}
	info.Target = asked.target
	return asked, nil
}

// dialogue is what is said before there is a request.
type dialogue struct {
	layer  *Layer
	conn   tunnel.Conn
	source *source       // of conn
	in     *bufio.Reader // of source
}

func newDialogue(l *Layer, c tunnel.Conn) *dialogue {
	s := &source{Reader: c, left: maxHead}
	return &dialogue{layer: l, conn: c, source: s, in: bufio.NewReader(s)}
}

// source ends after so many bytes, and tells its own errors from those of a parser behind it.
type source struct {
	io.Reader
	left int64
	err  error // of Reader
}

func (s *source) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	n, err := s.Reader.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	s.err = err
	return n, err
}

// hear waits for the first byte, which tells what is spoken.
func (d *dialogue) hear() (*asking, error) {
	first, err := d.in.Peek(1)
	if err != nil {
		return nil, fmt.Errorf("proxy request: %w", err)
	}
	switch b := first[0]; {
	case b == socks5Version:
		return d.hearSOCKS5()
	case b == socks4Version:
		return nil, refuseSOCKS4()
	case b == tlsHandshake:
		return nil, fmt.Errorf("proxy request: %w", &refusal{
			err:  errors.New("the program speaks TLS to its proxy"),
			hint: "in the program's settings the address of this proxy begins with http:// or socks5h://, not with https://",
		})
	case 'a' <= b|0x20 && b|0x20 <= 'z':
		return d.hearHTTP()
	}
	return nil, fmt.Errorf("proxy request: %w", &refusal{err: errors.New("it is neither SOCKS5 nor HTTP")})
}

// tlsHandshake is the type of the record that a ClientHello comes in (RFC 8446, section 5.1).
const tlsHandshake = 22

// rest is the connection after the request, with what was read ahead.
func (d *dialogue) rest() tunnel.Conn {
	ahead, _ := d.in.Peek(d.in.Buffered()) // never more than there is
	return tunnel.ReadAhead(d.conn, bytes.Clone(ahead))
}

// asksLogin tells whether programs have to say who they are.
func (l *Layer) asksLogin() bool { return l.User != "" || l.Password != "" }

// isLogin compares in a time that does not tell how much is right (the hashes are of one length).
func (l *Layer) isLogin(user, password string) bool {
	return sameSecret(user, l.User)&sameSecret(password, l.Password) == 1
}

func sameSecret(got, want string) int {
	g, w := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(want))
	return subtle.ConstantTimeCompare(g[:], w[:])
}

// asking is a program that waits to hear whether the other end is there.
type asking struct {
	tunnel.Conn // what is relayed

	target string
	bare   tunnel.Conn
	yes    []byte              // is said where the other end is there
	no     func(reason) []byte // where it is not
}

// Answer tells the program what has come of its request (tunnel.Answering). With an error it gives the program a
// second to read why, and to leave, so that no reset overtakes the answer.
func (a *asking) Answer(err error) (tunnel.Conn, error) {
	if err != nil {
		if err := farewell(a.bare, a.no(reasonOf(err))); err != nil {
			return nil, fmt.Errorf("proxy answer: %w", err)
		}
		return a, nil
	}
	if len(a.yes) == 0 {
		return a.Conn, nil
	}
	a.bare.SetWriteDeadline(time.Now().Add(answerTimeout))
	if _, err := a.bare.Write(a.yes); err != nil {
		return nil, fmt.Errorf("proxy answer: %w", err)
	}
	a.bare.SetWriteDeadline(time.Time{})
	return a.Conn, nil
}

// SetLinger lets a Forwarder cut the connection where there is no tunnel after all: what was answered holds no longer.
func (a *asking) SetLinger(seconds int) error { return setLinger(a.bare, seconds) }

// setLinger is for connections that can be reset.
func setLinger(c tunnel.Conn, seconds int) error {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(seconds)
	}
	return nil
}

// farewell says the last words on c and reads on until the program has left: to close while something unread waits
// would be a reset, which takes with it what the program has not read yet. An error says that it cannot have heard them.
func farewell(c tunnel.Conn, words []byte) error {
	c.SetDeadline(time.Now().Add(farewellTimeout))
	if _, err := c.Write(words); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	io.Copy(io.Discard, c) // ends with the program, or with its patience: both are fine
	return nil
}

// refusal is why a program gets no connection, and what it is told.
type refusal struct {
	err    error
	hint   string
	answer []byte
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// Hint says what a person can do; empty: nothing.
func (r *refusal) Hint() string { return r.hint }
