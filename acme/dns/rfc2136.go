package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/libdns/libdns"
	"github.com/miekg/dns"
)

const (
	defaultTTL  = 60  // seconds
	maxTTL      = 900 // seconds; more would only keep old answers alive
	aliasLimit  = 8   // CNAMEs in a row
	serverLimit = 30 * time.Second
	othersLimit = 2 * time.Minute
)

// server changes records by dynamic updates (RFC 2136), signed with TSIG (RFC 8945), on the primary server of a zone.
//
// The server itself is asked for the zone, unless the spec names it, so that zones unknown to public resolvers work. A CNAME at
// the name is followed, as the CA does: with "_acme-challenge.example.com CNAME example.com.acme.example.net", the record is
// written below acme.example.net, and the zone example.com may be anywhere.
type server struct {
	address string        // host:port
	zone    string        // ends with a dot; empty: ask the server
	key     *key          // nil: updates are not signed
	ttl     uint32        // seconds
	spread  time.Duration // how long the zone's other name servers may take; zero: they are not asked
	log     *slog.Logger

	// Only tests set these otherwise.
	resolvers []string      // of the system, host:port
	port      string        // of other name servers
	interval  time.Duration // between questions
}

// openServer reads [keyname:secret@]server[:port]/[zone][?settings]. It is split by hand, as a base64 secret may hold slashes
// and net/url would put it into its errors.
func openServer(spec string, log *slog.Logger) (*server, error) {
	fail := func(text, hint string) (*server, error) { return nil, problem("rfc2136: "+text, hint) }
	const form = "write rfc2136://server:53/?key-file=/etc/bind/raimon.key; a zone may follow the /"
	rest, ok := strings.CutPrefix(spec, "//")
	if !ok {
		return fail("no // before the server", form)
	}
	rest, settings, _ := strings.Cut(rest, "?")
	set, err := query(settings, "key-file", "algorithm", "ttl", "wait")
	if err != nil {
		return nil, prefix("rfc2136", err)
	}
	s := &server{log: log, ttl: defaultTTL, port: "53", interval: time.Second, resolvers: systemResolvers()}
	at := strings.LastIndex(rest, "@")
	if at >= 0 {
		s.key, err = keyFromSpec(rest[:at], set["algorithm"])
	} else if set["key-file"] != "" {
		s.key, err = keyFromFile(set["key-file"])
	}
	if err != nil {
		return nil, prefix("rfc2136", err)
	}
	if at >= 0 && set["key-file"] != "" {
		return fail("a key stands before the @, and key-file is given too", "keep key-file: other users of this machine can read a command line")
	}
	if at < 0 && set["algorithm"] != "" {
		return fail("algorithm without a key before the @", "a key file names its algorithm itself: leave algorithm out")
	}
	address, zone, _ := strings.Cut(rest[at+1:], "/")
	if s.address, ok = serverAddress(address); !ok {
		return fail("the server is not host, host:port or [IPv6]:port", form)
	}
	if zone = strings.TrimSuffix(zone, "."); zone != "" {
		if !isHostName(zone) {
			return fail("the zone is not a domain name", form)
		}
		s.zone = dns.CanonicalName(zone)
	}
	if set["ttl"] != "" {
		ttl, err := strconv.ParseUint(set["ttl"], 10, 32)
		if err != nil || ttl > maxTTL {
			return fail(fmt.Sprintf("ttl is not a number of seconds from 0 to %d", maxTTL), "write ttl=60, or leave it out")
		}
		s.ttl = uint32(ttl)
	}
	if s.spread, err = waitTime(set["wait"], othersLimit); err != nil {
		return nil, prefix("rfc2136", err)
	}
	if s.key == nil {
		log.Warn("dns updates are not signed: the server has to trust this machine's address", "server", s.address)
	}
	return s, nil
}

// serverAddress adds the port where it is missing.
func serverAddress(s string) (string, bool) {
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return net.JoinHostPort(ip.String(), "53"), true
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, "53"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", false
	}
	if _, err := netip.ParseAddr(host); err != nil && !isHostName(strings.TrimSuffix(host, ".")) {
		return "", false
	}
	return net.JoinHostPort(host, port), true
}

// systemResolvers are those of resolv.conf; none on a system without this file.
func systemResolvers() []string {
	config, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return nil // on Windows, say: then a CNAME outside of the server's zones is not followed, and the error says so
	}
	var all []string
	for _, host := range config.Servers {
		all = append(all, net.JoinHostPort(host, config.Port))
	}
	return all
}

// place finds the zone that fqdn is in, behind its CNAMEs if there are any.
func (s *server) place(ctx context.Context, fqdn string) (place, error) {
	name := fqdn
	for range aliasLimit {
		answer, err := s.ask(ctx, name, dns.TypeSOA)
		var refusal *refusal
		if err != nil && (!errors.As(err, &refusal) || refusal.tsig != 0) {
			return place{}, err
		}
		if err != nil || !answer.Authoritative {
			if s.zone != "" && dns.IsSubDomain(s.zone, name) {
				return place{s.zone, name}, nil // a server may take updates and answer no questions
			}
			target := s.publicAlias(ctx, name)
			if target == "" {
				return place{}, s.stranger(name, err)
			}
			name = target
			continue
		}
		if target := alias(answer, name); target != "" && !s.fromWildcard(ctx, name, target) {
			name = target
			continue
		}
		// Below a wildcard CNAME, names that do not exist are aliases as well: the zone's name is further up.
		for up := name; alias(answer, up) != "" && up != "."; {
			up = parent(up)
			if answer, err = s.ask(ctx, up, dns.TypeSOA); err != nil {
				return place{}, err
			}
		}
		zone := s.zone
		if zone == "" {
			zone = apex(answer, name)
		}
		if zone == "" || !dns.IsSubDomain(zone, name) {
			return place{}, s.stranger(name, nil)
		}
		return place{zone, name}, nil
	}
	return place{}, problem(fmt.Sprintf("more than %d CNAMEs in a row, the last at %s", aliasLimit, name), "do they lead in a circle?")
}

// stranger is the error about a name in no zone of the server's; err may be what the server said.
func (s *server) stranger(name string, err error) error {
	text := fmt.Errorf("server %s has no zone for %s", s.address, name)
	if s.zone != "" {
		text = fmt.Errorf("%s is not in the zone %s", name, s.zone)
	}
	if err != nil {
		text = fmt.Errorf("%w: %w", text, err)
	}
	return &hinted{text, "name the primary server of the domain, and the zone behind the / if the server answers no questions about it; or point a CNAME from the name to one in a zone of the server"}
}

// publicAlias asks the system's resolvers for a CNAME; empty if there is none or nobody answers.
func (s *server) publicAlias(ctx context.Context, name string) string {
	for _, resolver := range s.resolvers {
		m := newQuestion(name, dns.TypeCNAME)
		m.RecursionDesired = true
		answer, err := exchangeUDP(ctx, resolver, m)
		if err != nil {
			s.log.Debug("resolver does not answer", "resolver", resolver, "name", name, "error", err)
			continue
		}
		return alias(answer, name)
	}
	return ""
}

// fromWildcard tells whether the CNAME at name is one of "*.example.com", which answers for all names that do not exist: a
// record of the name's own takes its place (RFC 4592, section 3.3.1), and following it would lead astray.
func (s *server) fromWildcard(ctx context.Context, name, target string) bool {
	for up := parent(name); up != "."; up = parent(up) {
		answer, err := s.ask(ctx, "*."+up, dns.TypeCNAME)
		if err != nil || !answer.Authoritative {
			return false // above the server's zones
		}
		if alias(answer, "*."+up) == target {
			return true
		}
	}
	return false
}

func (s *server) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return s.update(ctx, zone, records, (*dns.Msg).Insert)
}

// DeleteRecords removes records by name and value, whatever their TTL.
func (s *server) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return s.update(ctx, zone, records, (*dns.Msg).Remove)
}

func (s *server) update(ctx context.Context, zone string, records []libdns.Record, change func(*dns.Msg, []dns.RR)) ([]libdns.Record, error) {
	all, err := texts(zone, records)
	if err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	m.SetUpdate(dns.CanonicalName(zone))
	for _, r := range all {
		change(m, []dns.RR{&dns.TXT{
			Hdr: dns.RR_Header{Name: r.fqdn, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: s.ttl},
			Txt: []string{strings.ReplaceAll(r.value, `\`, `\\`)}, // the library reads it as in a zone file
		}})
	}
	if _, err := exchangeTCP(ctx, s.address, m, s.key); err != nil {
		return nil, fmt.Errorf("update zone %s: %w", zone, err)
	}
	return records, nil
}

// ask puts a question to the server itself, signed, since views and access lists may depend on the key.
func (s *server) ask(ctx context.Context, name string, kind uint16) (*dns.Msg, error) {
	return exchangeTCP(ctx, s.address, newQuestion(name, kind), s.key)
}

// wait returns once the server and then the zone's other name servers, as far as they answer at all, have the record.
func (s *server) wait(ctx context.Context, at place, value string) error {
	err := s.waitForServer(ctx, at, value)
	var refusal *refusal
	if errors.As(err, &refusal) {
		s.log.Debug("dns server answers no questions: not checking", "server", s.address, "name", at.name, "error", err)
		return nil
	}
	if err != nil || s.spread == 0 {
		return err
	}
	return s.waitForOthers(ctx, at, value)
}

// waitForServer asks the server for what it has just been told. A *refusal ends it at once.
func (s *server) waitForServer(ctx context.Context, at place, value string) error {
	ctx, cancel := context.WithTimeout(ctx, serverLimit)
	defer cancel()
	for {
		answer, err := s.ask(ctx, at.name, dns.TypeTXT)
		if err == nil && holds(answer, value) {
			return nil
		}
		var refusal *refusal
		if errors.As(err, &refusal) {
			return err
		}
		if s.pause(ctx) {
			continue
		}
		if ctx.Err() == context.Canceled {
			return ctx.Err()
		}
		if err == nil || errors.Is(err, ctx.Err()) {
			return &hinted{fmt.Errorf("server %s took the update but does not answer the record: %w", s.address, ctx.Err()),
				"is this the primary server of the zone, and is there no CNAME of the same name?"}
		}
		return fmt.Errorf("%w (and %w)", err, ctx.Err())
	}
}

// waitForOthers asks the zone's name servers until those that answer have the record. One that cannot be asked from here is
// left out: the CA may well reach it.
func (s *server) waitForOthers(ctx context.Context, at place, value string) error {
	ctx, cancel := context.WithTimeout(ctx, s.spread)
	defer cancel()
	behind := s.others(ctx, at.zone)
	for {
		behind = s.lagging(ctx, behind, at.name, value)
		if len(behind) == 0 {
			return nil
		}
		if !s.pause(ctx) {
			if ctx.Err() == context.Canceled {
				return ctx.Err()
			}
			return &hinted{fmt.Errorf("name servers %s of zone %s do not have it: %w", strings.Join(behind, ", "), at.zone, ctx.Err()),
				"do they get the zone from " + s.address + " at once (NOTIFY)? wait= allows more time, wait=0 does not look at them"}
		}
	}
}

// pause is false when ctx has ended.
func (s *server) pause(ctx context.Context) bool {
	t := time.NewTimer(s.interval)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
