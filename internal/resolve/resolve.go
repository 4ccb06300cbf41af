// Package resolve looks up names with a name server of the user's choice: over UDP, TCP, TLS or HTTPS.
//
// The protocol is package net's, which also reads /etc/hosts; what is here carries its questions. They
// go past any proxy.
package resolve

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"raimon/tunnel"
)

// keptTime is how long a connection that was kept may take for an answer before a new one is made:
// it may be one to a network that this machine has left.
const keptTime = 2 * time.Second

// dialTime limits connecting, which may go on for a while when nobody waits any more.
const dialTime = 5 * time.Second

// Resolver is a tunnel.Resolver. Make it with [Server.Resolver].
type Resolver struct {
	server *Server
	via    *tunnel.Dialer
	asker  asker
	net    *net.Resolver
}

// asker carries questions to a name server.
type asker interface {
	// ask returns the answer to a query: DNS messages, of at most 65535 bytes.
	ask(ctx context.Context, query []byte) (answer []byte, err error)
	// forget closes the connections that are kept for further questions.
	forget()
}

// Resolver returns one that asks s, on connections that via dials. If s is known by name, it is via that
// looks it up, and remembers the address.
func (s *Server) Resolver(via *tunnel.Dialer) *Resolver { return s.resolver(via, nil) }

// resolver trusts other roots than the system's in tests.
func (s *Server) resolver(via *tunnel.Dialer, roots *x509.CertPool) *Resolver {
	r := &Resolver{server: s, via: via}
	config := &tls.Config{ServerName: s.name, RootCAs: roots, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	switch s.kind {
	case overHTTPS:
		r.asker = newWeb(s, via, config)
	case overTLS:
		r.asker = &stream{dial: func(ctx context.Context) (net.Conn, error) {
			bare, err := via.Dial(ctx, s.address)
			if err != nil {
				return nil, err
			}
			c := tls.Client(bare, config)
			if err := c.HandshakeContext(ctx); err != nil {
				bare.Close()
				return nil, err
			}
			return c, nil
		}}
	default:
		r.asker = &stream{dial: func(ctx context.Context) (net.Conn, error) { return via.Dial(ctx, s.address) }}
	}
	r.net = &net.Resolver{PreferGo: true, Dial: r.open}
	return r
}

// LookupNetIP is that of net.Resolver, but a name with a dot in it is meant as it is: the search list
// belongs to the network that this machine happens to be in.
func (r *Resolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	name := host
	if strings.Contains(strings.TrimSuffix(host, "."), ".") {
		name = strings.TrimSuffix(host, ".") + "."
	}
	addresses, err := r.net.LookupNetIP(ctx, network, name)
	var dns *net.DNSError
	if errors.As(err, &dns) {
		// It names the server that the system would have asked.
		told := *dns
		told.Name, told.Server = host, r.server.text
		return nil, &told
	}
	return addresses, err
}

// Forget closes connections that are kept for further questions, after a change of the network.
func (r *Resolver) Forget() {
	r.via.Forget()
	r.asker.forget()
}

// open is asked for a connection to the system's name server, for one question.
func (r *Resolver) open(ctx context.Context, network, _ string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.server.kind != overUDP || strings.HasPrefix(network, "tcp") {
		return &call{ctx: ctx, asker: r.asker}, nil
	}
	address, err := netip.ParseAddrPort(r.server.address)
	if err != nil {
		return nil, err
	}
	c, err := r.via.DialUDP(ctx, address)
	if err != nil {
		return nil, err
	}
	// Package net does not look at ctx while it waits.
	return packets{c, context.AfterFunc(ctx, func() { c.Close() })}, nil
}

// packets is a UDP socket that ends with a context.
type packets struct {
	*net.UDPConn
	stop func() bool
}

func (c packets) Close() error {
	c.stop()
	return c.UDPConn.Close()
}

// call is the connection of one question. Package net writes it, its length before it (RFC 1035,
// section 4.2.2), and then reads the answer.
type call struct {
	ctx    context.Context // its deadline is the one that SetDeadline gets
	asker  asker
	answer []byte // what is not read yet
}

func (c *call) Write(p []byte) (int, error) {
	if len(p) < 2 {
		return 0, io.ErrShortWrite
	}
	answer, err := c.asker.ask(c.ctx, p[2:])
	if err != nil {
		return 0, err
	}
	c.answer = append([]byte{byte(len(answer) >> 8), byte(len(answer))}, answer...)
	return len(p), nil
}

func (c *call) Read(p []byte) (int, error) {
	if len(c.answer) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.answer)
	c.answer = c.answer[n:]
	return n, nil
}

func (c *call) Close() error                     { return nil }
func (c *call) LocalAddr() net.Addr              { return nil }
func (c *call) RemoteAddr() net.Addr             { return nil }
func (c *call) SetDeadline(time.Time) error      { return nil }
func (c *call) SetReadDeadline(time.Time) error  { return nil }
func (c *call) SetWriteDeadline(time.Time) error { return nil }

const maxMessage = 1<<16 - 1

// errNoMessage is about what is no answer to the query; package net looks at the rest of it.
var errNoMessage = errors.New("what came back is no answer to the question")

func answers(answer, query []byte) bool {
	const header = 12 // RFC 1035, section 4.1.1: it begins with an id
	return len(answer) >= header && len(query) >= header && answer[0] == query[0] && answer[1] == query[1]
}
