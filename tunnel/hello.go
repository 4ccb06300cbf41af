package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
)

// errPeeked ends the handshake of PeekHello when there is a ClientHello.
var errPeeked = errors.New("the ClientHello is read")

// maxHello bounds the records of a ClientHello that PeekHello keeps. Browsers send less than 2 KiB.
const maxHello = 16 << 10

// PeekHello reads a ClientHello (RFC 8446, section 4.1.2), at most 16 KiB of it, and answers nothing. The
// Conn that it returns brings it once more, for TLS.Server, or for Relay to hand it on as it came. What is not TLS gets the
// answer of TLS.Server. The end of ctx ends it, with the cause of ctx.
func PeekHello(ctx context.Context, c Conn, info *Info) (*tls.ClientHelloInfo, Conn, error) {
	ctx, stop := info.WhileShakingHands(ctx)
	defer stop()
	t := &tap{Conn: c}
	var hello *tls.ClientHelloInfo
	err := tls.Server(t, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		hello = h
		return nil, errPeeked
	}}).HandshakeContext(ctx)
	if hello == nil || !errors.Is(err, errPeeked) {
		refusePlain(c, err)
		return nil, nil, fmt.Errorf("tls handshake: %w", handshakeError(ctx, err))
	}
	return hello, &readAhead{Conn: c, pending: t.taken}, nil
}

// tap lets a handshake read, and remembers what it has read. The alert that ends it goes nowhere.
type tap struct {
	Conn
	taken []byte
}

func (t *tap) Read(p []byte) (int, error) {
	if len(t.taken) >= maxHello {
		return 0, errors.New("the ClientHello is longer than 16 KiB")
	}
	n, err := t.Conn.Read(p[:min(len(p), maxHello-len(t.taken))])
	t.taken = append(t.taken, p[:n]...)
	return n, err
}

func (t *tap) Write(p []byte) (int, error) { return len(p), nil }

// Close is called by crypto/tls when ctx ends. The connection is not ours to close.
func (t *tap) Close() error { return t.Conn.SetDeadline(past) }
