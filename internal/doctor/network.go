package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"raimon/tunnel"
)

// maxAddresses is how many addresses of a name are tried.
const maxAddresses = 16

// lookAtProxy says through which proxy connections go, and who has said so.
func (e *examination) lookAtProxy() bool {
	if e.unix {
		return true
	}
	via, err := e.Tunnel.Dialer.Proxy(e.name)
	if err != nil {
		return e.fail("proxy", err, 0)
	}
	e.via = via
	variable := tunnel.ProxyVariable(e.Getenv)
	switch {
	case e.Options.Proxy != "" && via == nil:
		return e.ok("proxy", "none, as option proxy says", 0)
	case e.Options.Proxy != "":
		return e.ok("proxy", e.proxyName()+", from option proxy", 0)
	case via != nil:
		return e.ok("proxy", e.proxyName()+", from "+variable+" in the environment", 0)
	case variable != "":
		return e.ok("proxy", "none: "+variable+" is set, and does not hold for this address", 0)
	case e.Options.ProxyAuth != "":
		return e.warn("proxy", "none, while option proxy-auth is for one", "name the proxy with proxy=, or leave proxy-auth away", 0)
	}
	return e.ok("proxy", "none", 0)
}

// proxyName is kind and address, without user and password.
func (e *examination) proxyName() string {
	return e.via.Scheme + "://" + e.Tunnel.Dialer.Via(e.Tunnel.Remote)
}

// lookAtNetwork looks for the way to the edge, or to the proxy.
func (e *examination) lookAtNetwork(ctx context.Context) bool {
	if e.unix {
		return true
	}
	name := cmp.Or(e.Tunnel.Dialer.Via(e.Tunnel.Remote), e.name)
	host, service, err := net.SplitHostPort(name)
	if err != nil {
		return e.fail("dns", err, 0)
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return e.fail("dns", err, 0)
	}
	addresses, ok := e.lookUp(ctx, host)
	if !ok {
		return false
	}
	var all []netip.AddrPort
	for _, address := range addresses[:min(len(addresses), maxAddresses)] {
		all = append(all, netip.AddrPortFrom(address, uint16(port)))
	}
	return e.lookAtAddresses(ctx, all)
}

// lookUp says which addresses host has.
func (e *examination) lookUp(ctx context.Context, host string) (addresses []netip.Addr, ok bool) {
	if address, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{address}, true
	}
	if host == "" {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, true
	}
	begin := time.Now()
	addresses, err := e.ask(ctx, host)
	took := time.Since(begin)
	if len(addresses) == 0 {
		return nil, e.failWith("dns", err.Error(), e.dnsAdvice(err), took)
	}
	for i, a := range addresses {
		addresses[i] = a.Unmap()
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	addresses = slices.Compact(addresses)
	by := "the system's resolver"
	if e.Options.Resolver != nil {
		by = e.Options.Resolver.String() + ", as option dns says"
	}
	found := fmt.Sprintf("%s is %s, says %s", host, list(addresses), by)
	if err != nil {
		return addresses, e.warn("dns", found+"; but "+err.Error(), "programs get through with these, and may have to wait: another name server, as in dns=9.9.9.9, would answer", took)
	}
	return addresses, e.ok("dns", found, took)
}

// ask looks up the IPv4 and the IPv6 addresses of host side by side, as a tunnel does: some name servers answer one of the
// questions only. It returns what there is, and an error beside it where a question got no answer.
func (e *examination) ask(ctx context.Context, host string) ([]netip.Addr, error) {
	kinds := []string{"ip4", "ip6"}
	found, errs := make([][]netip.Addr, len(kinds)), make([]error, len(kinds))
	var asking sync.WaitGroup
	for i, kind := range kinds {
		asking.Go(func() {
			errs[i] = e.limited(ctx, func(ctx context.Context) (err error) {
				found[i], err = e.resolver().LookupNetIP(ctx, kind, host)
				return err
			})
		})
	}
	asking.Wait()
	addresses := slices.Concat(found...)
	var failed, none error
	for _, err := range errs {
		var dns *net.DNSError
		var unsuitable *net.AddrError // package net's word for a name that has addresses of the other kind in a file
		switch isDNS := errors.As(err, &dns); {
		case err == nil:
		case errors.As(err, &unsuitable), isDNS && dns.IsNotFound:
			none = err
		case isDNS:
			failed = dns // without what says that connecting took too long
		default:
			failed = err
		}
	}
	if len(addresses) == 0 && failed == nil {
		failed = cmp.Or(none, error(&net.DNSError{Err: "it has no address", Name: host, IsNotFound: true}))
	}
	return addresses, failed
}

// dnsAdvice is what to do where a name was not found.
func (e *examination) dnsAdvice(err error) string {
	var dns *net.DNSError
	if e.Options.Resolver != nil && !(errors.As(err, &dns) && dns.IsNotFound) {
		return "the name server is that of option dns: is it right, and can it be reached from here?"
	}
	return e.advice(err)
}

func (e *examination) resolver() tunnel.Resolver {
	if r := e.Tunnel.Dialer.Resolver; r != nil {
		return r
	}
	return net.DefaultResolver
}

// list is all of the addresses, or how many there are more.
func list(addresses []netip.Addr) string {
	var texts []string
	for _, a := range addresses[:min(len(addresses), maxAddresses)] {
		texts = append(texts, a.String())
	}
	if more := len(addresses) - len(texts); more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(texts, ", ")
}

// knock is an attempt to connect to one address.
type knock struct {
	address netip.AddrPort
	took    time.Duration
	err     error
}

// lookAtAddresses tries each address on its own, all at once.
func (e *examination) lookAtAddresses(ctx context.Context, addresses []netip.AddrPort) bool {
	knocks := make([]knock, len(addresses))
	var trying sync.WaitGroup
	for i, address := range addresses {
		trying.Go(func() { knocks[i] = e.knock(ctx, address) })
	}
	trying.Wait()
	slices.SortStableFunc(knocks, func(a, b knock) int {
		return cmp.Or(cmp.Compare(word(a.err), word(b.err)), cmp.Compare(a.took, b.took))
	})
	var texts []string
	for i, k := range knocks {
		text := k.address.String()
		switch {
		case k.err != nil:
			text += ": " + cause(k.err)
		case i == 0 && len(knocks) > 1:
			text += " in " + show(k.took) + ", the fastest"
		case len(knocks) > 1:
			text += " in " + show(k.took)
		}
		texts = append(texts, text)
	}
	found, fastest := strings.Join(texts, "; "), knocks[0]
	lost := slices.IndexFunc(knocks, func(k knock) bool { return k.err != nil && !noSuchNetwork(k) })
	switch {
	case fastest.err != nil:
		return e.failWith("tcp", found, e.advice(e.behind(fastest.err)), fastest.took)
	case lost >= 0:
		return e.warn("tcp", found, "programs lose time with "+knocks[lost].address.Addr().String()+
			": take it out of the DNS, or have something listen there; here only the others work", fastest.took)
	}
	return e.ok("tcp", found, fastest.took)
}

func (e *examination) knock(ctx context.Context, address netip.AddrPort) knock {
	begin := time.Now()
	err := e.limited(ctx, func(ctx context.Context) error {
		c, err := e.Direct.Dial(ctx, address.String())
		if err != nil {
			return err
		}
		return c.Close()
	})
	return knock{address, time.Since(begin), err}
}

// behind makes of an error of the way to the proxy one that says so.
func (e *examination) behind(err error) error {
	if e.via == nil {
		return err
	}
	return &tunnel.ProxyError{Proxy: e.Tunnel.Dialer.Via(e.Tunnel.Remote), Err: err}
}

// noSuchNetwork tells of an address of a kind, IPv6 most of the time, that this machine has no network for. That costs nothing.
func noSuchNetwork(k knock) bool { return tunnel.Reason(k.err) == tunnel.ReasonUnreachable }

func word(err error) string { return tunnel.Reason(err) }

// cause is what the system says, without the address, which stands next to it.
func cause(err error) string {
	var system *os.SyscallError
	if errors.As(err, &system) && !errors.Is(err, tunnel.ErrTimeout) {
		return system.Err.Error()
	}
	if errors.Is(err, tunnel.ErrTimeout) {
		return "no answer"
	}
	return err.Error()
}
