package doctor

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"raimon/internal/staple"
	"raimon/tunnel"
)

// lookAtEdge opens a connection as far as TLS, and says whom it leads to. Nil: it does not come about.
func (e *examination) lookAtEdge(ctx context.Context) *line {
	l, err := e.open(ctx)
	var at *stepError
	if errors.As(err, &at) && at.step == "tls" && e.via != nil {
		e.ok("connect", "a connection to "+e.Tunnel.Remote, 0)
	}
	if err != nil {
		e.failOpen(err)
		return nil
	}
	if e.via != nil || e.unix {
		e.ok("connect", "a connection to "+e.Tunnel.Remote, l.took-l.handshake)
	}
	state, ok := stateOf(l)
	if !ok {
		return l
	}
	protocol := "no ALPN"
	if state.NegotiatedProtocol != "" {
		protocol = "ALPN " + state.NegotiatedProtocol
	}
	e.ok("tls", fmt.Sprintf("%s, %s, %s, %s", tls.VersionName(state.Version), state.CurveID, tls.CipherSuiteName(state.CipherSuite), protocol), l.handshake)
	e.lookAtCertificate(state)
	e.lookAtStaple(state)
	return l
}

// stateOf is what TLS has agreed on; not ok: there is no TLS.
func stateOf(l *line) (state tls.ConnectionState, ok bool) {
	conn, ok := l.conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return state, false
	}
	state = conn.ConnectionState()
	return state, len(state.PeerCertificates) > 0
}

// lookAtCertificate says whose certificate it is, for how long, and why it is trusted.
func (e *examination) lookAtCertificate(state tls.ConnectionState) {
	leaf := state.PeerCertificates[0]
	left, life := time.Until(leaf.NotAfter), leaf.NotAfter.Sub(leaf.NotBefore)
	found := fmt.Sprintf("%s, issued by %s, %s, trusted by %s", names(leaf), issuer(leaf), validity(left), e.trust())
	switch {
	case e.Options.Insecure:
		e.warn("certificate", found, "whoever is on the way can pass for the edge: in place of insecure, write pin="+tunnel.PinOf(leaf)+" if that is the edge's pin", 0)
	case e.tls.ClientConfig.InsecureSkipVerify: // a pin: its dates do not count
		e.ok("certificate", found, 0)
	case left < life/6:
		e.warn("certificate", found, "it should have been renewed by now: the edge's log says why it has not", 0)
	default:
		e.ok("certificate", found, 0)
	}
}

// trust says why the certificate counts.
func (e *examination) trust() string {
	var by []string
	if len(e.Options.Pins) > 0 {
		by = append(by, "its pin")
	}
	switch {
	case e.Options.Insecure:
		return "nothing (option insecure)"
	case e.Options.CA != "":
		by = append(by, "the CA of "+e.Options.CA)
	case e.Options.CAPEM != nil:
		by = append(by, "the system's CAs and that of certRaw")
	case len(by) == 0:
		by = append(by, "the system's CAs")
	}
	return strings.Join(by, " and ")
}

// names are those that a certificate is for, or some of them.
func names(c *x509.Certificate) string {
	all := c.DNSNames
	for _, ip := range c.IPAddresses {
		all = append(all[:len(all):len(all)], ip.String())
	}
	switch {
	case len(all) == 0:
		return "no name"
	case len(all) > 3:
		return fmt.Sprintf("%s and %d more names", plain(strings.Join(all[:3], ", "), 160), len(all)-3)
	}
	return plain(strings.Join(all, ", "), 160)
}

func issuer(c *x509.Certificate) string {
	if bytes.Equal(c.RawIssuer, c.RawSubject) {
		return "itself"
	}
	return tunnel.IssuerName(c)
}

func validity(left time.Duration) string {
	days := int(left / (24 * time.Hour))
	switch {
	case left < 0:
		return "expired"
	case days == 0:
		return "less than a day left"
	case days == 1:
		return "1 day left"
	}
	return fmt.Sprintf("%d days left", days)
}

// lookAtStaple says what the CA has said of the certificate lately (RFC 6960).
func (e *examination) lookAtStaple(state tls.ConnectionState) {
	if len(state.OCSPResponse) == 0 {
		e.ok("staple", "none", 0)
		return
	}
	chain := state.PeerCertificates
	if len(state.VerifiedChains) > 0 {
		chain = state.VerifiedChains[0]
	}
	s, err := staple.Parse(state.OCSPResponse, chain)
	switch {
	case errors.Is(err, staple.ErrRevoked):
		e.failWith("staple", err.Error(), "the edge needs another certificate, with another key", 0)
		return
	case err != nil:
		e.warn("staple", "of no use: "+plain(err.Error(), 100), "clients may refuse the edge for that: its ocsp=, if it has that, names a file that does not fit its certificate", 0)
		return
	}
	now := time.Now()
	found := "good, from " + now.Sub(s.From).Round(time.Minute).String() + " ago"
	if err := s.Check(now); err != nil {
		e.warn("staple", found+", but "+err.Error(), "the edge has not got another one: its log says why; or this machine's clock is wrong", 0)
		return
	}
	e.ok("staple", found, 0)
}

// lookAtResumption opens a second connection, which TLS makes faster where the edge has given a ticket. Nil: it does not
// come about.
func (e *examination) lookAtResumption(ctx context.Context) *line {
	l, err := e.open(ctx)
	if err != nil {
		e.failOpen(err)
		return nil
	}
	if state, ok := stateOf(l); ok {
		found := "no: the edge gives no tickets, so that each connection costs a whole handshake"
		if state.DidResume {
			found = "the second connection takes up the session of the first"
		}
		e.ok("resumption", found, l.handshake)
	}
	return l
}
