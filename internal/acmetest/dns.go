package acmetest

import (
	"errors"
	"log"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// DNS is a name server for all names: each has the address 127.0.0.1 until told otherwise. It answers A,
// AAAA, CNAME, TXT, and SOA and NS as if every name's last two labels were a zone.
type DNS struct {
	// Address is where it listens, over UDP and TCP, as host:port.
	Address string

	log     *log.Logger
	servers []*dns.Server
	ended   chan error

	mu        sync.Mutex
	txt       map[string][]string
	addresses map[string][]net.IP
	aliases   map[string]string
	broken    map[string]bool
	queries   map[dns.Question]int
}

// dnsTries is how often a free port is looked for: that of TCP may be taken for UDP.
const dnsTries = 20

func startDNS(logger *log.Logger) (*DNS, error) {
	for try := 1; ; try++ {
		d, err := listenDNS(logger)
		if err == nil || try == dnsTries {
			return d, err
		}
	}
}

// dnsPatience is how long a question may take to come: on a busy machine that is seconds after the connection.
const dnsPatience = 10 * time.Second

func listenDNS(logger *log.Logger) (*DNS, error) {
	stream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	address := stream.Addr().String()
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		return nil, errors.Join(err, stream.Close())
	}
	d := &DNS{
		Address:   address,
		log:       logger,
		ended:     make(chan error, 2),
		txt:       map[string][]string{},
		addresses: map[string][]net.IP{},
		aliases:   map[string]string{},
		broken:    map[string]bool{},
		queries:   map[dns.Question]int{},
	}
	started := make(chan struct{}, 2)
	for _, s := range []*dns.Server{{Listener: stream}, {PacketConn: packets}} {
		s.Handler, s.ReadTimeout, s.WriteTimeout = dns.HandlerFunc(d.serve), dnsPatience, dnsPatience
		s.NotifyStartedFunc = func() { started <- struct{}{} }
		d.servers = append(d.servers, s)
		go func() { d.ended <- s.ActivateAndServe() }()
	}
	// A server that has not begun yet cannot be shut down.
	for range d.servers {
		<-started
	}
	logger.Printf("DNS listens on %s", address)
	return d, nil
}

func (d *DNS) close() error {
	var errs []error
	for _, s := range d.servers {
		errs = append(errs, s.Shutdown())
	}
	for range d.servers {
		errs = append(errs, <-d.ended)
	}
	return errors.Join(errs...)
}

// SetTXT adds a TXT record to those of host.
func (d *DNS) SetTXT(host, value string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	host = dns.CanonicalName(host)
	d.txt[host] = append(d.txt[host], value)
}

// ClearTXT takes away the TXT records of host.
func (d *DNS) ClearTXT(host string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.txt, dns.CanonicalName(host))
}

// TXT returns the TXT records of host.
func (d *DNS) TXT(host string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.txt[dns.CanonicalName(host)])
}

// SetAddresses replaces the addresses of host, IPv4 or IPv6. With none, host has none; Pebble takes the
// first, IPv6 before IPv4.
func (d *DNS) SetAddresses(host string, addresses ...net.IP) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addresses[dns.CanonicalName(host)] = slices.Clone(addresses)
}

// SetAlias makes host a CNAME of target; an empty target ends that.
func (d *DNS) SetAlias(host, target string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.aliases, dns.CanonicalName(host))
	if target != "" {
		d.aliases[dns.CanonicalName(host)] = dns.CanonicalName(target)
	}
}

// SetBroken answers queries for host with SERVFAIL, or no longer.
func (d *DNS) SetBroken(host string, broken bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken[dns.CanonicalName(host)] = broken
}

// Queries is how many questions came for host and a type such as "TXT".
func (d *DNS) Queries(host, recordType string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.queries[dns.Question{
		Name: dns.CanonicalName(host), Qtype: dns.StringToType[recordType], Qclass: dns.ClassINET,
	}]
}

func (d *DNS) serve(w dns.ResponseWriter, query *dns.Msg) {
	reply := new(dns.Msg).SetReply(query)
	reply.Authoritative, reply.RecursionAvailable = true, true
	if len(query.Question) != 1 {
		reply.Rcode = dns.RcodeFormatError
	} else {
		d.answer(query.Question[0], reply)
	}
	if err := w.WriteMsg(reply); err != nil {
		d.log.Printf("DNS: answer %v: %v", query.Question, err)
	}
}

// maxAliases ends a circle of CNAMEs.
const maxAliases = 8

func (d *DNS) answer(question dns.Question, reply *dns.Msg) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := dns.CanonicalName(question.Name)
	d.queries[dns.Question{Name: name, Qtype: question.Qtype, Qclass: question.Qclass}]++

	for range maxAliases {
		if d.broken[name] {
			reply.Rcode = dns.RcodeServerFailure
			return
		}
		target, aliased := d.aliases[name]
		if !aliased {
			break
		}
		reply.Answer = append(reply.Answer, &dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: target})
		if question.Qtype == dns.TypeCNAME {
			return
		}
		name = target
	}
	reply.Answer = append(reply.Answer, d.records(name, question.Qtype)...)
	if len(reply.Answer) == 0 {
		reply.Ns = append(reply.Ns, soa(zone(name)))
	}
}

func (d *DNS) records(name string, recordType uint16) (records []dns.RR) {
	switch recordType {
	case dns.TypeTXT:
		for _, value := range d.txt[name] {
			records = append(records, &dns.TXT{Hdr: header(name, recordType), Txt: pieces(value)})
		}
	case dns.TypeA:
		for _, ip := range d.addressesOf(name) {
			if ip.To4() != nil {
				records = append(records, &dns.A{Hdr: header(name, recordType), A: ip})
			}
		}
	case dns.TypeAAAA:
		for _, ip := range d.addressesOf(name) {
			if ip.To4() == nil {
				records = append(records, &dns.AAAA{Hdr: header(name, recordType), AAAA: ip})
			}
		}
	case dns.TypeSOA:
		if name == zone(name) {
			records = append(records, soa(name))
		}
	case dns.TypeNS:
		if name == zone(name) {
			records = append(records, &dns.NS{Hdr: header(name, recordType), Ns: below("ns", name)})
		}
	}
	return records
}

func (d *DNS) addressesOf(name string) []net.IP {
	if addresses, ok := d.addresses[name]; ok {
		return addresses
	}
	return []net.IP{net.IPv4(127, 0, 0, 1)}
}

func header(name string, recordType uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: recordType, Class: dns.ClassINET}
}

func soa(zone string) *dns.SOA {
	return &dns.SOA{Hdr: header(zone, dns.TypeSOA), Ns: below("ns", zone), Mbox: below("hostmaster", zone), Serial: 1}
}

func below(label, zone string) string { return label + "." + strings.TrimPrefix(zone, ".") }

func zone(name string) string {
	labels := dns.SplitDomainName(name)
	return dns.Fqdn(strings.Join(labels[max(0, len(labels)-2):], "."))
}

// pieces cuts a text into the strings of at most 255 bytes that a TXT record holds (RFC 1035, section 3.3.14).
func pieces(text string) []string {
	const most = 255
	var cut []string
	for len(text) > most {
		cut, text = append(cut, text[:most]), text[most:]
	}
	return append(cut, text)
}
