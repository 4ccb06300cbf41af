package dns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	tcpLimit   = 10 * time.Second
	udpLimit   = 2 * time.Second
	udpTries   = 2
	udpPayload = 1232 // bytes, fit into a packet on every path
)

func newQuestion(name string, kind uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(dns.CanonicalName(name), kind)
	m.RecursionDesired = false
	m.SetEdns0(udpPayload, false)
	return m
}

// exchangeTCP sends m over TCP, which every server must speak (RFC 7766, section 5) and a stranger can hardly forge. With a
// key, m is signed and so must be the answer, unless it is a *refusal.
func exchangeTCP(ctx context.Context, server string, m *dns.Msg, key *key) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tcpLimit)
	defer cancel()
	answer, err := exchange(ctx, "tcp", server, m, key)
	if err != nil {
		return nil, fmt.Errorf("server %s: %w", server, err)
	}
	return answer, nil
}

// exchangeUDP sends m over UDP, as resolvers do, and over TCP if the answer does not fit.
func exchangeUDP(ctx context.Context, server string, m *dns.Msg) (*dns.Msg, error) {
	var answer *dns.Msg
	var err error
	for range udpTries {
		if answer, err = exchangeOnceUDP(ctx, server, m); !errors.Is(err, context.DeadlineExceeded) || ended(ctx) != nil {
			break
		}
	}
	if err == nil && answer.Truncated {
		return exchangeTCP(ctx, server, m, nil)
	}
	return answer, err
}

func exchangeOnceUDP(ctx context.Context, server string, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, udpLimit)
	defer cancel()
	return exchange(ctx, "udp", server, m, nil)
}

// exchange ends with ctx. Its answer is of the kinds NOERROR and NXDOMAIN; others are a *refusal.
func exchange(ctx context.Context, network, server string, m *dns.Msg, key *key) (*dns.Msg, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, server)
	if err != nil {
		return nil, cmp.Or(ended(ctx), err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn := &dns.Conn{Conn: c, UDPSize: udpPayload}
	if key != nil {
		m.SetTsig(key.name, key.algorithm, fudge, time.Now().Unix())
		conn.TsigSecret = map[string]string{key.name: key.secret}
	}
	answer, err := send(conn, m, network == "udp")
	if answer == nil {
		return nil, cmp.Or(ended(ctx), err)
	}
	return check(answer, err, m, key)
}

// ended is ctx.Err without the moment between a deadline, which a socket keeps as well, and the timer that tells ctx.
func ended(ctx context.Context) error {
	deadline, ok := ctx.Deadline()
	if err := ctx.Err(); err != nil || !ok || time.Now().Before(deadline) {
		return err
	}
	return context.DeadlineExceeded
}

// send returns no answer when none has come. With one, the error is about its form or its signature.
func send(conn *dns.Conn, m *dns.Msg, packets bool) (*dns.Msg, error) {
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	for {
		answer, err := conn.ReadMsg()
		// Over UDP, what belongs to another question may be late or forged.
		if packets && answer != nil && !answers(answer, m) {
			continue
		}
		return answer, err
	}
}

func answers(answer, m *dns.Msg) bool {
	return answer.Id == m.Id && answer.Response && answer.Opcode == m.Opcode && (len(answer.Question) == 0 ||
		strings.EqualFold(answer.Question[0].Name, m.Question[0].Name) && answer.Question[0].Qtype == m.Question[0].Qtype)
}

// check looks at an answer whose reading gave err.
func check(answer *dns.Msg, err error, m *dns.Msg, key *key) (*dns.Msg, error) {
	if !answers(answer, m) {
		return nil, errors.New("the answer is to another question")
	}
	if answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
		return nil, newRefusal(answer, m)
	}
	if errors.Is(err, dns.ErrTime) {
		return nil, newRefusal(answer, m)
	}
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if key != nil && answer.IsTsig() == nil {
		return nil, problem("the answer is not signed", "does something between here and the server change answers, or does the server not know TSIG?")
	}
	return answer, nil
}

// refusal is an answer that says no.
type refusal struct {
	rcode  int
	tsig   uint16 // error in the answer's signature (RFC 8945, section 5.3.2); zero: none
	update bool   // an update was refused, not a question
}

func newRefusal(answer, m *dns.Msg) *refusal {
	r := &refusal{rcode: answer.Rcode, update: m.Opcode == dns.OpcodeUpdate}
	if t := answer.IsTsig(); t != nil {
		r.tsig = t.Error
	}
	return r
}

func (r *refusal) Error() string {
	text := rcodeName(r.rcode)
	if r.tsig != 0 {
		text += " (" + rcodeName(int(r.tsig)) + ")"
	}
	return "the answer is " + text
}

func rcodeName(code int) string {
	// 16 is BADVERS in an answer, but BADSIG in a signature; only the latter can come here.
	if code == dns.RcodeBadSig {
		return "BADSIG"
	}
	if name, ok := dns.RcodeToString[code]; ok {
		return name
	}
	return fmt.Sprintf("RCODE %d", code)
}

// Hint says what to do about it.
func (r *refusal) Hint() string {
	switch int(r.tsig) {
	case dns.RcodeBadKey:
		return "the server does not know a key of this name and algorithm: compare them with its configuration"
	case dns.RcodeBadSig:
		return "the server knows the key by another secret: compare it with the server's configuration"
	case dns.RcodeBadTime:
		return "the clocks of this machine and of the server are more than 5 minutes apart: set them"
	}
	switch r.rcode {
	case dns.RcodeNotAuth, dns.RcodeNotZone:
		return "the server is not the primary of this zone, or does not know the key: name the primary, and the zone behind the / if it is another"
	case dns.RcodeRefused:
		if r.update {
			return "the server does not let this key change the record: allow it (in BIND with update-policy { grant KEY name _acme-challenge.example.com. txt; };)"
		}
		return "the server has no such zone, or does not let this key ask"
	case dns.RcodeNotImplemented:
		return "the server does not know dynamic updates: name the primary, or use exec: or acme-dns:"
	case dns.RcodeServerFailure:
		return "the server's log says why (often it may not write into the folder of its zone files)"
	}
	return "the server's log says why"
}
