package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"raimon/tunnel"
)

// TargetRule says which targets clients may choose. The zero value is no target's; ParseTargetRule makes others.
type TargetRule struct {
	prefix      netip.Prefix // addresses; not valid: the rule is about names
	name        string       // in lower case; empty with below: every host
	below       bool         // all that ends with a dot and name, and not name itself
	first, last uint16       // ports
}

const targetRuleHint = `write "10.0.0.0/8:22", "[2001:db8::]/32:443", "db.example.com:5432" or "*.example.com:8000-8100"; a port may be *`

// ParseTargetRule reads a host and, behind a colon, a port, a range of ports as in 8000-8100, or * for any.
//
// The host is an IP address or a prefix, of IPv6 with the address in brackets; or a name; or "*." and a name, for all names below it at any
// depth; or "*", for all names and addresses. Errors have a Hint.
func ParseTargetRule(s string) (TargetRule, error) {
	wrong := func(problem string) (TargetRule, error) {
		return TargetRule{}, &hintedError{fmt.Errorf("target rule %q: %s", s, problem), targetRuleHint}
	}
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 || strings.Contains(s[colon:], "]") {
		return wrong("the port is missing")
	}
	host := s[:colon]
	first, last, ok := parsePorts(s[colon+1:])
	if !ok {
		return wrong(fmt.Sprintf("%q is no port, and no range of them", s[colon+1:]))
	}
	rule := TargetRule{first: first, last: last}
	if parent, found := strings.CutPrefix(host, "*."); found {
		rule.below, host = true, parent
	} else if host == "*" {
		rule.below = true
		return rule, nil
	}
	if prefix, isIP, err := parseTargetPrefix(host); isIP {
		if err == nil && rule.below {
			err = errors.New("a star goes with names")
		}
		if err != nil {
			return wrong(err.Error())
		}
		rule.prefix = prefix
		return rule, nil
	}
	if rule.name, ok = targetName(host); !ok {
		return wrong(fmt.Sprintf("%q is neither a name nor an address", host))
	}
	return rule, nil
}

// parsePorts reads 22, 8000-8100 or *.
func parsePorts(text string) (first, last uint16, ok bool) {
	if text == "*" {
		return 1, 65535, true
	}
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	first, ok = parsePort(from)
	last, okLast := parsePort(to)
	return first, last, ok && okLast && first <= last
}

// parsePort reads a number from 1 to 65535 in the one form that it has.
func parsePort(text string) (uint16, bool) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil && n > 0 && text == strconv.FormatUint(n, 10)
}

// parseTargetPrefix reads 10.0.0.0/8, 10.0.0.1, [2001:db8::]/32 and [2001:db8::1], and tells whether host means to be one of those.
func parseTargetPrefix(host string) (p netip.Prefix, isIP bool, err error) {
	text, bits, hasBits := strings.Cut(host, "/")
	inner, bracket := strings.CutPrefix(text, "[")
	if bracket {
		if inner, bracket = strings.CutSuffix(inner, "]"); !bracket {
			return p, true, errors.New("a bracket is missing")
		}
	}
	ip, err := netip.ParseAddr(inner)
	switch {
	case err != nil && !bracket && !hasBits:
		return p, false, nil
	case err != nil:
		return p, true, fmt.Errorf("%q is no address", inner)
	case bracket != ip.Is6():
		return p, true, errors.New("IPv6 addresses, and no others, stand in brackets")
	case ip.Zone() != "" || ip.Is4In6():
		return p, true, errors.New("neither a zone nor IPv4 in IPv6 goes here: leave the zone away, or write the IPv4 address")
	case !hasBits && ip.IsUnspecified():
		return p, true, fmt.Errorf("nobody is at %s: for every address write /0 behind it", ip)
	case !hasBits:
		return netip.PrefixFrom(ip, ip.BitLen()), true, nil
	}
	n, err := strconv.Atoi(bits)
	p = netip.PrefixFrom(ip, n)
	switch {
	case err != nil || !p.IsValid() || bits != strconv.Itoa(n):
		return p, true, fmt.Errorf("%q is no length of a prefix", bits)
	case p != p.Masked():
		return p, true, fmt.Errorf("%s is in the middle of %s", ip, p.Masked())
	}
	return p, true, nil
}

// targetName is host as a name in lower case, without the dot that a full name may end with. Not ok is what is no name, and what
// some systems take for an address although it does not look like one: 0177.1, 2130706433 and 0x7f000001 are 127.0.0.1 to them.
func targetName(host string) (name string, ok bool) {
	name = strings.ToLower(strings.TrimSuffix(host, "."))
	if len(name) > 253 {
		return "", false
	}
	label := ""
	for label = range strings.SplitSeq(name, ".") {
		strange := func(r rune) bool { return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_') }
		if label == "" || len(label) > 63 || label[0] == '-' || strings.IndexFunc(label, strange) >= 0 {
			return "", false
		}
	}
	digits, hex := strings.CutPrefix(label, "0x")
	numeric := strings.Trim(digits, "0123456789") == "" || hex && strings.Trim(digits, "0123456789abcdef") == ""
	return name, !numeric
}

// chosenTarget is what a client has named.
type chosenTarget struct {
	ip   netip.Addr // not valid: it is a name
	name string
	port uint16
}

// parseChosenTarget reads what tunnel.IsTarget takes. Not ok is what no rule can allow.
func parseChosenTarget(target string) (c chosenTarget, ok bool) {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return c, false
	}
	if c.port, ok = parsePort(port); !ok {
		return c, false
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		c.ip = ip.Unmap()
		return c, ip.Zone() == "" && !c.ip.IsUnspecified()
	}
	c.name, ok = targetName(host)
	return c, ok
}

// address is for a dial.
func (c chosenTarget) address() string {
	if c.ip.IsValid() {
		return netip.AddrPortFrom(c.ip, c.port).String()
	}
	return net.JoinHostPort(c.name, strconv.Itoa(int(c.port)))
}

// mayBe tells whether rule may turn out to allow c, whose addresses are not known yet.
func (rule TargetRule) mayBe(c chosenTarget) bool {
	switch {
	case c.port < rule.first || c.port > rule.last:
		return false
	case c.ip.IsValid():
		return rule.allows(c, c.ip)
	}
	return rule.prefix.IsValid() || rule.has(c.name)
}

// allows tells whether rule lets clients have c at ip, which is its address, or one of them.
//
// Addresses that mean this machine or its link to whoever dials them are had by rules for just those, and by the name
// if the rule has it in full: who owns a name below one, or is anywhere, is not to lead clients there.
func (rule TargetRule) allows(c chosenTarget, ip netip.Addr) bool {
	ip = ip.Unmap()
	switch {
	case c.port < rule.first || c.port > rule.last || ip.IsUnspecified() || ip.Zone() != "":
		return false
	case rule.prefix.IsValid():
		return rule.prefix.Contains(ip) && (!isNear(ip) || isNear(rule.prefix.Addr()))
	case rule.below && isNear(ip):
		return false
	case c.ip.IsValid():
		return rule.below && rule.name == ""
	}
	return rule.has(c.name)
}

// has tells whether a rule about names has name.
func (rule TargetRule) has(name string) bool {
	switch {
	case rule.prefix.IsValid():
		return false
	case rule.below && rule.name != "":
		return strings.HasSuffix(name, "."+rule.name)
	case rule.below:
		return true
	}
	return rule.name != "" && name == rule.name
}

// isNear tells of addresses that mean something else on each machine.
func isNear(ip netip.Addr) bool {
	return ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsMulticast()
}

// errNoOwnTarget is for clients that name no target where they have to.
var errNoOwnTarget = &tunnel.TargetError{Reason: tunnel.ReasonForbidden, Err: &hintedError{
	errors.New("the client has named no target, and the route has none of its own"), "give the route a target for such clients, or let them name one"}}

// forbidden is why a client does not get a target.
func forbidden(target, because string) error {
	return &tunnel.TargetError{Reason: tunnel.ReasonForbidden, Err: &hintedError{
		fmt.Errorf("target %q: %s", target, because), fmt.Sprintf("if clients of this route may go there, add %q to its targets", target)}}
}

// dialChosen reaches the target that a client has named, if rules allow it. A name is looked up by the dial itself, which connects to no address
// but one that was found to be allowed.
func dialChosen(ctx context.Context, config *Config, rules []TargetRule, target string) (tunnel.Conn, error) {
	c, ok := parseChosenTarget(target)
	if !ok {
		return nil, &tunnel.TargetError{Reason: tunnel.ReasonForbidden, Err: &hintedError{
			fmt.Errorf("target %q: it is neither a name nor an address that one can connect to", target), "addresses have no other form than 192.0.2.1 and [2001:db8::1] here"}}
	}
	rules = slices.Clone(rules)
	rules = slices.DeleteFunc(rules, func(rule TargetRule) bool { return !rule.mayBe(c) })
	if len(rules) == 0 {
		return nil, forbidden(target, "no rule of the route allows it")
	}
	reach := config.DialAllowed
	if reach == nil {
		reach = new(tunnel.Dialer).DialAllowed
	}
	return reach(ctx, c.address(), func(at netip.AddrPort) error {
		if slices.ContainsFunc(rules, func(rule TargetRule) bool { return rule.allows(c, at.Addr()) }) {
			return nil
		}
		return forbidden(at.String(), fmt.Sprintf("%s is there, and no rule of the route allows that address", target))
	})
}
