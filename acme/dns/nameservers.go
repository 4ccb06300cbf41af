package dns

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	lookUpLimit = 10 * time.Second // for the addresses of all name servers
	othersMax   = 16               // addresses that are asked
)

// others returns the addresses of the zone's name servers, as far as the server or the system's resolvers know them.
func (s *server) others(ctx context.Context, zone string) []string {
	ctx, cancel := context.WithTimeout(ctx, lookUpLimit)
	defer cancel()
	answer, err := s.ask(ctx, zone, dns.TypeNS)
	if err != nil {
		s.log.Debug("dns server does not name the zone's name servers", "zone", zone, "error", err)
		return nil
	}
	var all []string
	for _, rr := range answer.Answer {
		ns, ok := rr.(*dns.NS)
		if !ok || len(all) >= othersMax {
			continue
		}
		for _, ip := range s.addresses(ctx, ns.Ns) {
			if address := net.JoinHostPort(ip.String(), s.port); address != s.address && !slices.Contains(all, address) {
				all = append(all, address)
			}
		}
	}
	return all[:min(len(all), othersMax)]
}

// addresses asks the server, which knows the hosts in its own zones, and then the system.
func (s *server) addresses(ctx context.Context, host string) []netip.Addr {
	var all []netip.Addr
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		answer, err := s.ask(ctx, host, kind)
		if err != nil || !answer.Authoritative {
			continue
		}
		for _, rr := range answer.Answer {
			var ip net.IP
			switch rr := rr.(type) {
			case *dns.A:
				ip = rr.A
			case *dns.AAAA:
				ip = rr.AAAA
			}
			if addr, ok := netip.AddrFromSlice(ip); ok {
				all = append(all, addr.Unmap())
			}
		}
	}
	if len(all) > 0 {
		return all
	}
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		s.log.Debug("name server has no address", "host", host, "error", err)
	}
	for i := range all {
		all[i] = all[i].Unmap()
	}
	return all
}

// lagging returns those of servers that answer for name, but without value.
func (s *server) lagging(ctx context.Context, servers []string, name, value string) []string {
	behind := make([]string, len(servers))
	var asked sync.WaitGroup
	for i, address := range servers {
		asked.Go(func() {
			answer, err := exchangeUDP(ctx, address, newQuestion(name, dns.TypeTXT))
			switch {
			case err == nil && answer.Authoritative && !holds(answer, value):
				behind[i] = address
			case err != nil && ended(ctx) != nil:
				behind[i] = address // not heard out
			case err != nil || !answer.Authoritative:
				s.log.Debug("name server does not answer: not waiting for it", "server", address, "name", name, "error", err)
			}
		})
	}
	asked.Wait()
	return slices.DeleteFunc(behind, func(s string) bool { return s == "" })
}

// holds tells whether answer has a TXT record with value.
func holds(answer *dns.Msg, value string) bool {
	for _, rr := range answer.Answer {
		if txt, ok := rr.(*dns.TXT); ok && strings.Join(txt.Txt, "") == value {
			return true
		}
	}
	return false
}

// alias returns the target of the CNAME at name; empty if there is none.
func alias(answer *dns.Msg, name string) string {
	for _, rr := range answer.Answer {
		if cname, ok := rr.(*dns.CNAME); ok && dns.CanonicalName(cname.Hdr.Name) == dns.CanonicalName(name) {
			return dns.CanonicalName(cname.Target)
		}
	}
	return ""
}

// apex returns the zone of name: the owner of the SOA record that comes with the answer, or with its absence (RFC 2308, section 3).
func apex(answer *dns.Msg, name string) string {
	for _, rr := range slices.Concat(answer.Answer, answer.Ns) {
		if soa, ok := rr.(*dns.SOA); ok && dns.IsSubDomain(soa.Hdr.Name, name) {
			return dns.CanonicalName(soa.Hdr.Name)
		}
	}
	return ""
}

// parent is name without its first label; "." in the end.
func parent(name string) string {
	i, end := dns.NextLabel(name, 0)
	if end {
		return "."
	}
	return name[i:]
}
