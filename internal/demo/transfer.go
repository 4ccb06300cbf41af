package main

import (
	"context"
	crand "crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
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

// sendAndReceive sends random data to address, says that it has finished, and reads to the end.
func sendAndReceive(ctx context.Context, address string) (*transfer, error) {
	var d net.Dialer
	bare, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer bare.Close()
	defer context.AfterFunc(ctx, func() { bare.SetDeadline(time.Unix(1, 0)) })()
	c := bare.(*net.TCPConn)

	begin := time.Now()
	var t transfer
	sending := make(chan error, 1)
	go func() {
		var err error
		if t.sent, err = copyDigest(c, random(size)); err == nil {
			err = c.CloseWrite()
		}
		sending <- err
	}()
	t.received, err = copyDigest(io.Discard, io.LimitReader(c, size+1))
	t.duration = time.Since(begin)
	if err != nil {
		bare.SetDeadline(time.Unix(1, 0)) // for the sender
	}
	if sendErr := <-sending; err == nil && sendErr != nil {
		err = sendErr
	}
	if err != nil {
		return nil, fmt.Errorf("%w, after %d bytes there and %d back", err, t.sent.bytes, t.received.bytes)
	}
	return &t, nil
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

// shownCertificate is the one that anybody sees who connects to address.
func shownCertificate(ctx context.Context, address string) (*x509.Certificate, error) {
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // only to look at it
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// pinOf is what pin= expects of the certificate.
func pinOf(certificate *x509.Certificate) string {
	sum := sha256.Sum256(certificate.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}
