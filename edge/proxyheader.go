package edge

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/pires/go-proxyproto"

	"raimon/tunnel"
)

const (
	// maxProxyLine is the longest header of version 1, with its CR LF.
	maxProxyLine = 107
	// proxyPrefix is what a header of version 2 has before the part whose length it tells.
	proxyPrefix = 16
	// maxProxyPart bounds that part. A client certificate of 2 KiB, which some proxies send along, fits.
	maxProxyPart = 4096
	// proxyRead is what the first read may bring: most headers, and little memory while it waits.
	proxyRead = 256
)

// ProxyHeaderError says that a connection from one of Listener.ProxyFrom does not begin with a PROXY header that
// makes sense.
type ProxyHeaderError struct{ Err error }

func (e *ProxyHeaderError) Error() string {
	return "proxy header: " + strings.TrimPrefix(e.Err.Error(), "proxyproto: ")
}

func (e *ProxyHeaderError) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *ProxyHeaderError) Hint() string {
	return "what connects from the networks of proxy-from has to send a PROXY header first: turn that on there (send-proxy in haproxy, proxy_protocol on in nginx), or take its address out of proxy-from"
}

var (
	errNoProxyHeader   = errors.New("there is none")
	errProxyHeaderEnds = errors.New("the connection ends in the middle of it")
	errProxyHeaderLong = errors.New("it is longer than 4 KiB")
	errProxyDatagram   = errors.New("it is about datagrams")
)

// readProxyHeader reads the PROXY header, v1 or v2, that c has to begin with, and notes in the visit what it tells.
func (v *visit) readProxyHeader(ctx context.Context, c tunnel.Conn) (tunnel.Conn, error) {
	ctx, stop := v.info.WhileShakingHands(ctx)
	defer stop()
	wake := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	header, ahead, err := takeProxyHeader(c)
	if !wake() {
		return nil, fmt.Errorf("proxy header: %w", context.Cause(ctx))
	}
	if err == nil {
		err = v.heed(header)
	}
	var misfit *ProxyHeaderError
	if errors.As(err, &misfit) {
		v.entrance.snapshot.server.misfit(v, err)
	}
	if err != nil {
		return nil, err
	}
	return tunnel.ReadAhead(c, ahead), nil
}

// takeProxyHeader reads a header from r, and returns what came together with it. It reads no more than proxyRead
// bytes before it knows how long the header is. Where nothing comes at all, as of those who only try whether the port
// is open, the error is that of r.
func takeProxyHeader(r io.Reader) (header *proxyproto.Header, ahead []byte, err error) {
	b := make([]byte, 0, proxyRead)
	for {
		end, err := proxyHeaderEnd(b)
		if err != nil {
			return nil, nil, &ProxyHeaderError{err}
		}
		if end > 0 && len(b) >= end {
			header, err := parseProxyHeader(b[:end])
			if err != nil {
				return nil, nil, &ProxyHeaderError{err}
			}
			return header, b[end:], nil
		}
		b = slices.Grow(b, max(0, end-len(b)))
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case n > 0 || err == nil:
		case len(b) == 0:
			return nil, nil, fmt.Errorf("proxy header: %w", err)
		case err == io.EOF:
			return nil, nil, &ProxyHeaderError{errProxyHeaderEnds}
		default:
			return nil, nil, &ProxyHeaderError{err}
		}
	}
}

// proxyHeaderEnd is how long the header is that b begins with; 0: that is not known yet.
func proxyHeaderEnd(b []byte) (int, error) {
	begins := func(signature []byte) bool {
		n := min(len(b), len(signature))
		return bytes.Equal(b[:n], signature[:n])
	}
	switch {
	case begins(proxyproto.SIGV1):
		line := b[:min(len(b), maxProxyLine)]
		end := bytes.IndexByte(line, '\n') + 1
		if end == 0 && len(line) == maxProxyLine {
			return 0, proxyproto.ErrVersion1HeaderTooLong
		}
		return end, nil
	case begins(proxyproto.SIGV2):
		if len(b) < proxyPrefix {
			return 0, nil
		}
		part := int(binary.BigEndian.Uint16(b[proxyPrefix-2:]))
		if part > maxProxyPart {
			return 0, errProxyHeaderLong
		}
		return proxyPrefix + part, nil
	}
	return 0, errNoProxyHeader
}

// parseProxyHeader parses b, which is all of a header. It goes through package proxyproto in one piece, because that
// takes a line of version 1 only if a single read has brought it.
func parseProxyHeader(b []byte) (*proxyproto.Header, error) {
	const command, family = 12, 13 // where they are in version 2
	if b[0] == proxyproto.SIGV2[0] && b[command] == byte(proxyproto.PROXY) && b[family] == byte(proxyproto.UNSPEC) {
		// On behalf of somebody of whom it says nothing: that is what version 1 calls UNKNOWN.
		b[command] = byte(proxyproto.LOCAL)
	}
	return proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(b), len(b)))
}

// heed makes the client and the address that it has connected to those of header, if it tells them.
func (v *visit) heed(header *proxyproto.Header) error {
	if !header.Command.IsProxy() {
		return nil
	}
	switch header.TransportProtocol {
	case proxyproto.TCPv4, proxyproto.TCPv6, proxyproto.UnixStream:
		v.info.Client, v.local = header.SourceAddr, header.DestinationAddr
		return nil
	}
	return &ProxyHeaderError{errProxyDatagram}
}

// writeProxyHeader tells a target, in one write, who the client is.
func (v *visit) writeProxyHeader(ctx context.Context, c tunnel.Conn, version int) error {
	b, err := v.proxyHeader(version)
	if err != nil {
		return fmt.Errorf("proxy header: %w", err)
	}
	wake := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	_, err = c.Write(b)
	if !wake() {
		return fmt.Errorf("proxy header: %w", context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("proxy header: %w", err)
	}
	return nil
}

// proxyHeader has the addresses that the client sees; of a client on a Unix socket it says that they are unknown.
func (v *visit) proxyHeader(version int) ([]byte, error) {
	header := &proxyproto.Header{Version: byte(version), Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	client, isTCP := v.info.Client.(*net.TCPAddr)
	local, isLocalTCP := v.local.(*net.TCPAddr)
	if isTCP && isLocalTCP {
		header = proxyproto.HeaderProxyFromAddrs(byte(version), client, local)
	}
	if version == 2 {
		if err := v.noteDetails(); err != nil {
			return nil, err
		}
		if err := header.SetTLVs(v.proxy); err != nil {
			return nil, err
		}
	}
	return header.Format()
}

// noteDetails keeps what a header says of the TLS handshake.
func (v *visit) noteDetails() (err error) {
	if v.proxy == nil {
		v.proxy, err = proxyDetails(v.info)
	}
	return err
}
