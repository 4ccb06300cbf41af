package tunnel

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// TLS is the layer that encrypts (RFC 8446). Both sides need TLS 1.2 at least.
//
// An end of stream is a close_notify alert; the TCP connection stays open until both directions
// have ended. A connection that closes without close_notify was cut.
type TLS struct {
	// ClientConfig is used by Client. It needs ServerName or InsecureSkipVerify.
	ClientConfig *tls.Config
	// ServerConfig is used by Server.
	ServerConfig *tls.Config
}

// Client does the handshake of the side that dialed. A certificate of an unknown CA is an *AuthorityError.
func (t *TLS) Client(ctx context.Context, c Conn) (Conn, error) {
	r := &records{Conn: asSocket(c)}
	conn := tls.Client(r, t.ClientConfig)
	if err := conn.HandshakeContext(ctx); err != nil {
		r.release()
		return nil, fmt.Errorf("tls handshake: %w", nameAuthority(handshakeError(ctx, err), t.ClientConfig))
	}
	return newTLSConn(conn, r), nil
}

// Server does the handshake of the side that accepted, and notes server name and state in info.
func (t *TLS) Server(ctx context.Context, c Conn, info *Info) (Conn, error) {
	ctx, stop := info.WhileShakingHands(ctx)
	defer stop()
	c, ahead := detach(c)
	r := &records{Conn: asSocket(c)}
	r.putBack(ahead)
	conn := tls.Server(r, t.ServerConfig)
	if err := conn.HandshakeContext(ctx); err != nil {
		r.release()
		refusePlain(c, err)
		return nil, fmt.Errorf("tls handshake: %w", handshakeError(ctx, err))
	}
	state := conn.ConnectionState()
	info.TLS, info.ServerName = &state, state.ServerName
	if state.NegotiatedProtocol == ChallengeProtocol {
		newTLSConn(conn, r).CloseWrite()
		r.release()
		return nil, ErrChallenge
	}
	return newTLSConn(conn, r), nil
}

// refusePlain answers a client that does not speak TLS: HTTP as other web servers do, anything else
// with a reset, for nothing of what it sent has arrived anywhere.
func refusePlain(c Conn, err error) {
	const page = "Client sent an HTTP request to an HTTPS server.\n"
	var record tls.RecordHeaderError
	if !errors.As(err, &record) {
		if errors.Is(err, errCut) {
			ResetOnClose(c)
		}
		return
	}
	switch string(record.RecordHeader[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		fmt.Fprintf(c, "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(page), page)
		c.CloseWrite()
	default:
		ResetOnClose(c)
	}
}

// handshakeError prefers the reason why ctx ended to the deadline that it set.
func handshakeError(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ctx.Err())) {
		return context.Cause(ctx)
	}
	return err
}

// PinError says that the server has another key than the pinned ones.
type PinError struct {
	// Got is the pin of the key that the server has, in base64.
	Got string
	// Issuer is who issued its certificate, as AuthorityError has it.
	Issuer string
}

func (e *PinError) Error() string {
	text := "the server's key is not the pinned one but " + e.Got
	if e.Issuer != "" {
		text += ", in a certificate issued by " + e.Issuer
	}
	return text
}

// VerifyPins returns a function for tls.Config.VerifyConnection that accepts exactly the public keys
// whose SHA-256 (of the SubjectPublicKeyInfo, RFC 7469, section 2.4) is in pins. It is checked on
// resumed connections too, which VerifyPeerCertificate is not.
func VerifyPins(pins [][]byte) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("the server sent no certificate")
		}
		sum := sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)
		for _, pin := range pins {
			if subtle.ConstantTimeCompare(pin, sum[:]) == 1 {
				return nil
			}
		}
		return &PinError{Got: base64.StdEncoding.EncodeToString(sum[:]), Issuer: IssuerName(state.PeerCertificates[0])}
	}
}

// tlsConn is an established TLS connection that does not hold buffers while it waits.
type tlsConn struct {
	*tls.Conn
	records *records

	reading sync.Mutex
	dry     bool // crypto/tls has handed over all it had

	writing  sync.Mutex
	ended    bool         // close_notify is sent
	deadline atomic.Int64 // of writes, Unix nanoseconds; 0: none
}

func newTLSConn(c *tls.Conn, r *records) *tlsConn {
	r.establish()
	return &tlsConn{Conn: c, records: r}
}

func (c *tlsConn) below() Conn { return c.records.Conn }

// Read is for those who bring their own buffer.
func (c *tlsConn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	c.dry = false
	n, err := c.Conn.Read(p)
	return n, c.readError(err)
}

// readError sends the alert that crypto/tls raised over bad input, if there is one.
func (c *tlsConn) readError(err error) error {
	if err != nil && err != io.EOF && c.records.unflushed() {
		var n net.Error
		if !errors.As(err, &n) || !n.Timeout() {
			c.records.Conn.SetWriteDeadline(time.Now().Add(time.Second))
			c.records.flush()
		}
	}
	return err
}

// readBuffer waits for the network without a buffer and then takes all records that have arrived.
func (c *tlsConn) readBuffer(limit int) (*buffer, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	for {
		if c.dry {
			if err := c.records.fill(limit); err != nil {
				return nil, err
			}
		}
		b, err := c.take()
		if b != nil || err != nil {
			return b, err
		}
	}
}

// take decrypts what is at hand; nil and nil if that is no data.
func (c *tlsConn) take() (*buffer, error) {
	c.records.quick = true
	defer func() { c.records.quick = false }()
	b := newBuffer(c.records.ahead())
	for room := b.room(bufferSize); len(room) > 0; room = b.room(bufferSize) {
		n, err := c.Conn.Read(room)
		b.end += n
		if err == nil && n < len(room) && c.records.atBoundary() {
			c.dry = true
			return b, nil
		}
		if err == nil {
			continue
		}
		if _, ok := err.(wouldBlock); ok {
			c.dry, err = true, nil
		}
		if err != nil {
			c.dry = false // crypto/tls gives the same error again
		}
		if b.len() == 0 {
			b.free()
			b = nil
		}
		return b, c.readError(err)
	}
	c.dry = false
	return b, nil
}

// Write encrypts p and sends it in as few writes as possible. After a deadline has passed it may be
// called again: what crypto/tls has taken is sent later, nothing is lost.
func (c *tlsConn) Write(p []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	for first := true; first || len(p) > 0; first = false {
		if err := c.ready(); err != nil {
			return n, err
		}
		m, err := c.Conn.Write(p[:max(0, c.records.reserve(len(p)))])
		n += m
		if err != nil {
			return n, err
		}
		if err := c.records.flush(); err != nil {
			return n, err
		}
		p = p[m:]
	}
	return n, nil
}

// ready sends what a deadline left behind. crypto/tls must not see a deadline that has passed, which
// would end the connection for good.
func (c *tlsConn) ready() error {
	if c.ended {
		return net.ErrClosed
	}
	if d := c.deadline.Load(); d != 0 && time.Now().UnixNano() >= d {
		return os.ErrDeadlineExceeded
	}
	for c.records.unflushed() {
		if err := c.records.flush(); err != nil {
			return err
		}
	}
	return nil
}

// CloseWrite sends close_notify; the TCP connection stays open both ways.
func (c *tlsConn) CloseWrite() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.ended {
		return nil
	}
	if err := c.ready(); err != nil {
		return err
	}
	c.ended = true
	if err := c.Conn.CloseWrite(); err != nil {
		return err
	}
	return c.records.flush()
}

// release gives back what the connection holds at its end, unless somebody still uses it.
func (c *tlsConn) release() {
	if c.reading.TryLock() {
		defer c.reading.Unlock()
		if c.writing.TryLock() {
			defer c.writing.Unlock()
			c.records.release()
		}
	}
}

// Close closes the connection at once. A close_notify is sent if nobody is writing.
func (c *tlsConn) Close() error {
	if c.writing.TryLock() {
		if !c.ended {
			c.ended = true
			c.records.Conn.SetWriteDeadline(time.Now().Add(time.Second))
			c.Conn.CloseWrite()
			c.records.flush()
		}
		c.writing.Unlock()
	}
	return c.records.Conn.Close()
}

func (c *tlsConn) SetDeadline(t time.Time) error {
	c.noteDeadline(t)
	return c.records.Conn.SetDeadline(t)
}

func (c *tlsConn) SetWriteDeadline(t time.Time) error {
	c.noteDeadline(t)
	return c.records.Conn.SetWriteDeadline(t)
}

func (c *tlsConn) noteDeadline(t time.Time) {
	if t.IsZero() {
		c.deadline.Store(0)
	} else {
		c.deadline.Store(t.UnixNano())
	}
}
