package acmetest_test

import (
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"raimon/internal/acmetest"
)

func TestDNS(t *testing.T) {
	t.Parallel()
	d := acmetest.New(t, acmetest.Config{}).DNS
	long := strings.Repeat("0123456789", 30)
	d.SetTXT("_acme-challenge.Example.com", "one")
	d.SetTXT("_acme-challenge.example.com.", long)
	d.SetTXT("gone.example.com", "x")
	d.ClearTXT("gone.example.com")
	d.SetAddresses("six.example.com", net.IPv6loopback)
	d.SetAddresses("none.example.com")
	d.SetAlias("alias.example.com", "_acme-challenge.example.com")
	d.SetAlias("round.example.com", "round.example.com")
	d.SetAlias("unset.example.com", "six.example.com")
	d.SetAlias("unset.example.com", "")
	d.SetBroken("broken.example.com", true)

	for _, test := range []struct {
		name  string
		of    uint16
		rcode int
		want  []string
	}{
		{"any.example.org.", dns.TypeA, dns.RcodeSuccess, []string{"127.0.0.1"}},
		{"any.example.org.", dns.TypeAAAA, dns.RcodeSuccess, nil},
		{"six.example.com.", dns.TypeAAAA, dns.RcodeSuccess, []string{"::1"}},
		{"six.example.com.", dns.TypeA, dns.RcodeSuccess, nil},
		{"none.example.com.", dns.TypeA, dns.RcodeSuccess, nil},
		{"unset.example.com.", dns.TypeA, dns.RcodeSuccess, []string{"127.0.0.1"}},
		{"_ACME-challenge.example.com.", dns.TypeTXT, dns.RcodeSuccess, []string{"one", long}},
		{"gone.example.com.", dns.TypeTXT, dns.RcodeSuccess, nil},
		{"alias.example.com.", dns.TypeTXT, dns.RcodeSuccess, []string{"CNAME _acme-challenge.example.com.", "one", long}},
		{"alias.example.com.", dns.TypeCNAME, dns.RcodeSuccess, []string{"CNAME _acme-challenge.example.com."}},
		{"broken.example.com.", dns.TypeTXT, dns.RcodeServerFailure, nil},
		{"example.com.", dns.TypeSOA, dns.RcodeSuccess, []string{"SOA example.com."}},
		{"www.example.com.", dns.TypeSOA, dns.RcodeSuccess, nil},
		{"example.com.", dns.TypeNS, dns.RcodeSuccess, []string{"NS ns.example.com."}},
		{"com.", dns.TypeSOA, dns.RcodeSuccess, []string{"SOA com."}},
		{".", dns.TypeSOA, dns.RcodeSuccess, []string{"SOA ."}},
	} {
		for _, network := range []string{"udp", "tcp"} {
			answer := lookUp(t, d, network, test.name, test.of)
			if got := texts(answer.Answer); answer.Rcode != test.rcode || !slices.Equal(got, test.want) {
				t.Errorf("%s %s %s: rcode %d, %q, want %d, %q", network, dns.TypeToString[test.of], test.name, answer.Rcode, got, test.rcode, test.want)
			}
			if none := len(answer.Answer) == 0 && answer.Rcode == dns.RcodeSuccess; none != (len(answer.Ns) == 1) {
				t.Errorf("%s %s: authority %v", network, test.name, answer.Ns)
			}
		}
	}
	if n := len(lookUp(t, d, "tcp", "round.example.com.", dns.TypeTXT).Answer); n == 0 || n > 10 {
		t.Errorf("a circle has %d aliases", n)
	}
	if n := d.Queries("ANY.example.org", "AAAA"); n != 2 {
		t.Errorf("%d queries counted, want 2", n)
	}
	if got := d.TXT("_acme-challenge.example.com"); !slices.Equal(got, []string{"one", long}) {
		t.Errorf("TXT: %q", got)
	}
}

func lookUp(t testing.TB, d *acmetest.DNS, network, name string, of uint16) *dns.Msg {
	t.Helper()
	query := new(dns.Msg).SetQuestion(name, of).SetEdns0(4096, false)
	answer, _, err := (&dns.Client{Net: network}).Exchange(query, d.Address)
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return answer
}

func texts(records []dns.RR) (texts []string) {
	for _, r := range records {
		switch r := r.(type) {
		case *dns.A:
			texts = append(texts, r.A.String())
		case *dns.AAAA:
			texts = append(texts, r.AAAA.String())
		case *dns.CNAME:
			texts = append(texts, "CNAME "+r.Target)
		case *dns.TXT:
			texts = append(texts, strings.Join(r.Txt, ""))
		case *dns.SOA:
			texts = append(texts, "SOA "+r.Hdr.Name)
		case *dns.NS:
			texts = append(texts, "NS "+r.Ns)
		}
	}
	return texts
}
