package dns

import (
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// nameServer is a DNS server on real sockets that takes dynamic updates.
type nameServer struct {
	address string
	zones   []string

	mu        sync.Mutex
	records   []dns.RR
	signed    int                          // questions and updates with a good signature
	deny      func(m *dns.Msg) (rcode int) // not zero: the answer
	unsigned  bool                         // answers are not signed
	forge     func(m *dns.Msg)             // changes an answer after everything else
	tampered  bool                         // signatures of answers are wrong in one bit
	hang      bool                         // no answers
	truncates bool                         // over UDP
	updates   []string                     // as text
	overUDP   int                          // questions
	slowly    func(records int) (n int)    // how many of the TXT records are shown
}

const testKey = "raimon."

// serveDNS runs a server for the zones until the test ends; records are in zone file form.
func serveDNS(t testing.TB, zones []string, records ...string) *nameServer {
	t.Helper()
	return serveDNSAt(t, "127.0.0.1:0", zones, records...)
}

func serveDNSAt(t testing.TB, address string, zones []string, records ...string) *nameServer {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	p, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{address: l.Addr().String(), zones: zones}
	for _, zone := range zones {
		records = append(records, zone+" 60 IN SOA ns."+zone+" admin."+zone+" 1 60 60 60 60")
	}
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		s.records = append(s.records, rr)
	}
	for _, server := range []*dns.Server{{Listener: l}, {PacketConn: p}} {
		server.Handler = s
		server.TsigSecret = map[string]string{testKey: secret}
		server.MsgAcceptFunc = func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept }
		started, ended := make(chan struct{}), make(chan error, 1)
		server.NotifyStartedFunc = func() { close(started) }
		go func() { ended <- server.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			server.Shutdown()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	return s
}

func (s *nameServer) ServeDNS(w dns.ResponseWriter, m *dns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hang {
		return
	}
	_, udp := w.RemoteAddr().(*net.UDPAddr)
	answer := new(dns.Msg)
	answer.SetReply(m)
	tsig := m.IsTsig()
	switch {
	case tsig != nil && w.TsigStatus() != nil:
		answer.Rcode = dns.RcodeNotAuth
		code := uint16(dns.RcodeBadSig)
		if w.TsigStatus() == dns.ErrSecret {
			code = dns.RcodeBadKey
		}
		answer.SetTsig(tsig.Hdr.Name, tsig.Algorithm, 300, int64(tsig.TimeSigned))
		answer.IsTsig().Error = code
	case s.deny != nil && s.deny(m) != 0:
		answer.Rcode = s.deny(m)
	case m.Opcode == dns.OpcodeUpdate:
		s.update(m)
	default:
		s.answer(m, answer)
		if udp {
			s.overUDP++
			if s.truncates {
				answer.Truncated, answer.Answer = true, nil
			}
		}
	}
	if tsig != nil && w.TsigStatus() == nil {
		s.signed++
		if !s.unsigned {
			answer.SetTsig(tsig.Hdr.Name, tsig.Algorithm, 300, int64(tsig.TimeSigned))
		}
	}
	if s.forge != nil {
		s.forge(answer)
	}
	if s.tampered && tsig != nil {
		raw, _, err := dns.TsigGenerate(answer, secret, tsig.MAC, false)
		if err != nil {
			panic(err)
		}
		raw[len(raw)-8] ^= 1 // behind the MAC come 6 bytes
		w.Write(raw)
		return
	}
	w.WriteMsg(answer)
}

// zone returns the zone of name, the longest one.
func (s *nameServer) zone(name string) string {
	best := ""
	for _, zone := range s.zones {
		if dns.IsSubDomain(zone, name) && len(zone) > len(best) {
			best = zone
		}
	}
	return best
}

func (s *nameServer) answer(m, answer *dns.Msg) {
	q := m.Question[0]
	zone := s.zone(q.Name)
	if zone == "" {
		answer.Rcode = dns.RcodeRefused
		return
	}
	answer.Authoritative = true
	exists := false
	at := func(owner string) {
		for _, rr := range s.records {
			if !strings.EqualFold(rr.Header().Name, owner) {
				continue
			}
			exists = true
			if kind := rr.Header().Rrtype; kind == q.Qtype || kind == dns.TypeCNAME {
				rr = dns.Copy(rr)
				rr.Header().Name = q.Name
				answer.Answer = append(answer.Answer, rr)
			}
		}
	}
	at(q.Name)
	for up := parent(q.Name); !exists && dns.IsSubDomain(zone, up); up = parent(up) {
		at("*." + up)
	}
	if s.slowly != nil && q.Qtype == dns.TypeTXT {
		answer.Answer = answer.Answer[:s.slowly(len(answer.Answer))]
	}
	if len(answer.Answer) > 0 {
		return
	}
	for _, rr := range s.records {
		if rr.Header().Rrtype == dns.TypeSOA && rr.Header().Name == zone {
			answer.Ns = append(answer.Ns, rr)
		}
	}
	if !exists {
		answer.Rcode = dns.RcodeNameError
	}
}

func (s *nameServer) update(m *dns.Msg) {
	for _, rr := range m.Ns {
		h := rr.Header()
		s.updates = append(s.updates, m.Question[0].Name+": "+rr.String())
		if h.Class == dns.ClassNONE { // delete it (RFC 2136, section 2.5.4)
			s.records = slices.DeleteFunc(s.records, func(old dns.RR) bool {
				gone := dns.Copy(rr)
				gone.Header().Class = dns.ClassINET
				return dns.IsDuplicate(old, gone)
			})
			continue
		}
		s.records = append(s.records, rr)
	}
}

// texts returns the values at name.
func (s *nameServer) texts(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var values []string
	for _, rr := range s.records {
		if txt, ok := rr.(*dns.TXT); ok && txt.Hdr.Name == name {
			values = append(values, strings.Join(txt.Txt, ""))
		}
	}
	return values
}

// set changes the server while it runs.
func (s *nameServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *nameServer) add(t testing.TB, record string) {
	t.Helper()
	rr, err := dns.NewRR(record)
	if err != nil {
		t.Fatal(err)
	}
	s.set(func() { s.records = append(s.records, rr) })
}
