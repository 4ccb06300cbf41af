package resolve

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Server is a name server as users write it; [Parse] makes one.
type Server struct {
	text    string
	kind    kind
	address string // host:port to connect to; host is an IP address unless kind is overTLS or overHTTPS
	name    string // whom its certificate must name
	url     string // of overHTTPS
}

type kind string

// How a name server is asked: RFC 1035 (both), RFC 7858, RFC 8484.
const (
	overUDP   kind = "udp"
	overTCP   kind = "tcp"
	overTLS   kind = "tls"
	overHTTPS kind = "https"
)

var standardPort = map[kind]string{overUDP: "53", overTCP: "53", overTLS: "853", overHTTPS: "443"}

// Parse reads a name server:
//
//	9.9.9.9, 9.9.9.9:53, [2620:fe::fe]:53     over UDP, and TCP where an answer is too long for that
//	tcp://9.9.9.9                             over TCP
//	tls://9.9.9.9, tls://dns.quad9.net        over TLS
//	https://9.9.9.9/dns-query                 over HTTPS; without a path it is /dns-query
//
// Over TLS and HTTPS it may be a name, which the system's resolver finds, and name@address spares that.
// The certificate must have the name, or else the address. Errors hold nothing of text.
func Parse(text string) (*Server, error) {
	full := text
	if !strings.Contains(text, "://") {
		if strings.Count(text, ":") > 1 && !strings.HasPrefix(text, "[") {
			full = "[" + text + "]"
		}
		full = "udp://" + full
	}
	u, err := url.Parse(full)
	if err != nil || u.Host == "" || u.Fragment != "" {
		return nil, errors.New("it is neither an IP address nor a URL with a host")
	}
	s := &Server{text: text, kind: kind(u.Scheme)}
	if standardPort[s.kind] == "" {
		return nil, errors.New("no such way to ask a name server")
	}
	port := cmp.Or(u.Port(), standardPort[s.kind])
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return nil, errors.New("the port is not between 1 and 65535")
	}
	s.address = net.JoinHostPort(u.Hostname(), port)
	if s.kind != overHTTPS && (strings.Trim(u.Path, "/") != "" || u.RawQuery != "") {
		return nil, errors.New("something follows the host and port")
	}
	if err := s.setName(u); err != nil {
		return nil, err
	}
	if s.kind == overHTTPS {
		path := cmp.Or(strings.TrimSuffix(u.Path, "/"), "/dns-query")
		s.url = (&url.URL{Scheme: "https", Host: net.JoinHostPort(s.name, port), Path: path, RawQuery: u.RawQuery}).String()
	}
	return s, nil
}

// setName sets whom the certificate must name, and makes sure of an IP address where one is needed.
func (s *Server) setName(u *url.URL) error {
	_, err := netip.ParseAddr(u.Hostname())
	isName := err != nil
	if s.kind == overUDP || s.kind == overTCP {
		switch {
		case u.User != nil:
			return errors.New("there is no certificate that could have a name")
		case isName:
			return errors.New("it is not an IP address")
		}
		return nil
	}
	s.name = u.Hostname()
	if u.User != nil {
		if _, both := u.User.Password(); both || u.User.Username() == "" || isName {
			return errors.New("before the @ stands one name, behind it an IP address")
		}
		s.name = u.User.Username()
	}
	if s.name == "" || strings.ContainsFunc(s.name, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("/?#@[]<>\"", r) }) {
		return errors.New("its name is not one of the DNS")
	}
	return nil
}

// String returns what Parse was given.
func (s *Server) String() string { return s.text }
