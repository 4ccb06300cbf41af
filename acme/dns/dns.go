// Package dns solves DNS-01 challenges (RFC 8555, section 8.4): it puts the TXT record that a CA asks for where the CA looks,
// through a program, a dynamic DNS update or an acme-dns server.
//
// DNS-01 is the only way to a wildcard certificate, and needs no port that the CA can reach.
//
// A provider is one file: a type with the methods of provider, and a case in open. Any libdns provider becomes one when it is
// embedded in a struct that adds place and wait.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/libdns/libdns"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

const (
	// A program may wait for its record to spread, so this is generous.
	presentLimit = 10 * time.Minute
	waitLimit    = 10 * time.Minute
	cleanUpLimit = 2 * time.Minute
)

// Solver puts TXT records up and takes them down again. It is safe for use by many goroutines; challenges for example.com and
// *.example.com at once are two values under one name, and taking one down leaves the other alone.
//
// It stands in for certmagic.DNS01Solver, which asks the resolvers of the system, or else public ones, for the zone of every
// name, although a program and acme-dns need none and a private zone is known only to its own server; which does not follow a
// CNAME; which is content when one name server of several has the record; and which never takes down a record whose Present
// failed half-way, such as an update whose answer got lost.
type Solver struct {
	provider provider
	log      *slog.Logger

	mu sync.Mutex
	up map[question]place // what may be up: told to the provider and not yet taken down
}

var (
	_ acmez.Solver = (*Solver)(nil)
	_ acmez.Waiter = (*Solver)(nil)
)

// A provider puts records into the DNS. Its records are always TXT ones with a value, and all of its methods end with ctx.
type provider interface {
	libdns.RecordAppender
	libdns.RecordDeleter

	// place says into which record the answer for fqdn belongs. Both names end with a dot.
	place(ctx context.Context, fqdn string) (place, error)

	// wait returns nil as soon as the CA can see value, or if that cannot be found out.
	wait(ctx context.Context, at place, value string) error
}

// place is where a record is; both names end with a dot.
type place struct{ zone, name string }

func (p place) record(value string) []libdns.Record {
	return []libdns.Record{libdns.TXT{Name: libdns.RelativeName(p.name, p.zone), Text: value}}
}

// question is what a CA looks for: a TXT record with this value under this name, which ends with a dot.
type question struct{ fqdn, value string }

// Open makes a Solver from one of these specs. It sends nothing yet.
//
//	exec:/path/to/program argument "argument with blanks"
//	rfc2136://server[:port]/[zone]?key-file=/path[&ttl=60][&wait=2m]
//	rfc2136://keyname:base64secret@server[:port]/[zone][?algorithm=hmac-sha256]
//	acme-dns://server[:port][/path]?file=/path/to/accounts.json[&wait=10s]
//
// Whatever is wrong with the spec, the program or a file that it names is an error, with a Hint() string that says what to
// write instead; neither ever holds a secret. Nil for log means no log.
func Open(spec string, log *slog.Logger) (acmez.Solver, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p, err := open(spec, log)
	if err != nil {
		return nil, err
	}
	return newSolver(p, log), nil
}

func newSolver(p provider, log *slog.Logger) *Solver {
	return &Solver{provider: p, log: log, up: make(map[question]place)}
}

func open(spec string, log *slog.Logger) (provider, error) {
	kind, rest, _ := strings.Cut(spec, ":")
	switch kind {
	case "exec":
		return openHook(rest, log)
	case "rfc2136":
		return openServer(rest, log)
	case "acme-dns":
		return openAcmeDNS("https", rest, log)
	case "acme-dns+http":
		return openAcmeDNS("http", rest, log)
	}
	return nil, problem("no known way to change DNS records is named",
		"write exec:/path/to/program, rfc2136://server/?key-file=/path/to/key, or acme-dns://server/?file=/path/to/accounts.json")
}

// Present asks the provider to put the record up.
func (s *Solver) Present(ctx context.Context, c acme.Challenge) error {
	q, err := ask(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, presentLimit)
	defer cancel()
	at, err := s.provider.place(ctx, q.fqdn)
	if err != nil {
		return fmt.Errorf("place for TXT record %s: %w", q.fqdn, err)
	}
	s.mu.Lock()
	s.up[q] = at // before it is up: if the answer gets lost, the record may be up all the same
	s.mu.Unlock()
	if _, err := s.provider.AppendRecords(ctx, at.zone, at.record(q.value)); err != nil {
		return fmt.Errorf("add TXT record %s: %w", at.name, err)
	}
	s.log.Debug("challenge record added", "name", at.name, "zone", at.zone)
	return nil
}

// Wait returns as soon as the CA can see the record that Present put up, or if that cannot be found out. It ends with ctx and
// within 10 minutes; the providers' own limits are tighter.
func (s *Solver) Wait(ctx context.Context, c acme.Challenge) error {
	q, err := ask(c)
	if err != nil {
		return err
	}
	s.mu.Lock()
	at, ok := s.up[q]
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("wait for TXT record %s: it was not added", q.fqdn)
	}
	ctx, cancel := context.WithTimeout(ctx, waitLimit)
	defer cancel()
	if err := s.provider.wait(ctx, at, q.value); err != nil {
		return fmt.Errorf("wait for TXT record %s: %w", at.name, err)
	}
	return nil
}

// CleanUp takes the record down, even if ctx has ended or Present failed. It has a limit of its own, two minutes. A challenge
// that was never presented needs nothing and is no error.
func (s *Solver) CleanUp(ctx context.Context, c acme.Challenge) error {
	q, err := ask(c)
	if err != nil {
		return err
	}
	s.mu.Lock()
	at, ok := s.up[q]
	delete(s.up, q)
	s.mu.Unlock()
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpLimit)
	defer cancel()
	if _, err := s.provider.DeleteRecords(ctx, at.zone, at.record(q.value)); err != nil {
		return fmt.Errorf("remove TXT record %s: %w", at.name, err)
	}
	s.log.Debug("challenge record removed", "name", at.name, "zone", at.zone)
	return nil
}

// ask reads what the CA will look for. On-demand names come from strangers, so nothing but a host name passes.
func ask(c acme.Challenge) (question, error) {
	name := strings.ToLower(strings.TrimSuffix(c.Identifier.Value, "."))
	if c.Identifier.Type != "" && c.Identifier.Type != "dns" || !isHostName(name) {
		return question{}, fmt.Errorf("DNS challenge for %q: not a host name", c.Identifier.Value)
	}
	return question{challengeLabel + "." + name + ".", c.DNS01KeyAuthorization()}, nil
}

const challengeLabel = "_acme-challenge"

// isHostName tells whether name is made of letters, digits, hyphens, underscores and dots within the limits of RFC 1035,
// section 2.3.4, with room for challengeLabel. A dot at the end is not accepted.
func isHostName(name string) bool {
	if len(name) > 253-len(challengeLabel)-1 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' {
			return false
		}
		for _, b := range []byte(label) {
			if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '-' || b == '_') {
				return false
			}
		}
	}
	return true
}

// besideDomain is the place for providers that need no zone: the domain that the certificate is for counts as one.
func besideDomain(fqdn string) place {
	return place{zone: strings.TrimPrefix(fqdn, challengeLabel+"."), name: fqdn}
}

// texts returns the names and values of records, which must be TXT records with a value.
func texts(zone string, records []libdns.Record) ([]question, error) {
	var all []question
	for _, record := range records {
		rr := record.RR()
		name := strings.TrimSuffix(libdns.AbsoluteName(rr.Name, zone), ".") + "."
		if rr.Type != "TXT" || rr.Data == "" || len(rr.Data) > 255 {
			return nil, fmt.Errorf("record %s: not a TXT record of 1 to 255 bytes", name)
		}
		all = append(all, question{name, rr.Data})
	}
	return all, nil
}

// hinted is an error about which a person can do something.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// Hint says what to do about it.
func (h *hinted) Hint() string { return h.hint }

func problem(text, hint string) error { return &hinted{errors.New(text), hint} }
