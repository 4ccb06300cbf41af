package main

import (
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// startTarget listens for connections and sends back what each sends.
func startTarget() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := io.Copy(c, c); err == nil {
					c.(*net.TCPConn).CloseWrite()
				}
			}()
		}
	}()
	return l, nil
}

// digest is what went one way.
type digest struct {
	bytes int64
	sum   [sha256.Size]byte
}

type transfer struct {
	sent, received digest
	duration       time.Duration
}

// connection is one tunnel, as an app sees it.
type connection struct {
	*net.TCPConn
	unhook func() bool
}

func open(ctx context.Context, address string) (*connection, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &connection{c.(*net.TCPConn), context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })}, nil
}

func (c *connection) Close() error {
	c.unhook()
	return c.TCPConn.Close()
}

// sendAndReceive sends n random bytes and reads as many; they must be the same.
func (c *connection) sendAndReceive(n int64) (*transfer, error) {
	begin := time.Now()
	var t transfer
	sending := make(chan error, 1)
	go func() {
		var err error
		t.sent, err = copyDigest(c.TCPConn, random(n))
		sending <- err
	}()
	var err error
	t.received, err = copyDigest(io.Discard, io.LimitReader(c.TCPConn, n))
	t.duration = time.Since(begin)
	if err != nil || t.received.bytes < n {
		c.SetDeadline(time.Unix(1, 0)) // for the sender
	}
	err = errors.Join(<-sending, err)
	if err == nil && t.sent != t.received {
		err = errors.New("what came back is not what was sent")
	}
	if err != nil {
		return nil, fmt.Errorf("%w, after %d bytes there and %d back", err, t.sent.bytes, t.received.bytes)
	}
	return &t, nil
}

// end says that all has been sent, and waits for the other side to say so too.
func (c *connection) end() error {
	if err := c.CloseWrite(); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, c.TCPConn)
	if err == nil && n > 0 {
		err = fmt.Errorf("%d bytes too many came back", n)
	}
	return err
}

// random is n bytes that differ from run to run.
func random(n int64) io.Reader {
	var seed [32]byte
	crand.Read(seed[:])
	return io.LimitReader(rand.NewChaCha8(seed), n)
}

func copyDigest(dst io.Writer, src io.Reader) (digest, error) {
	sum := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(dst, sum), src, make([]byte, 256<<10))
	return digest{n, [sha256.Size]byte(sum.Sum(nil))}, err
}

// shownCertificates is the chain that address shows to those who trust roots.
func shownCertificates(ctx context.Context, address string, roots *x509.CertPool) ([]*x509.Certificate, error) {
	d := tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: roots}}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState().PeerCertificates, nil
}
