package netwatch

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// Addresses are the machine's own addresses now, IPv4 ones as such (not ::ffff:…), link-local ones
// without a zone: look an address up as a.Unmap().WithZone(""). On Linux, addresses that cannot be used
// (their interface is down, nobody knows yet whether a neighbour has them too) are left out.
//
// An error means that the system does not tell (Android, seccomp): any address may be one of the machine.
func Addresses() (map[netip.Addr]bool, error) {
	addresses, err := systemAddresses()
	if err != nil {
		addresses, err = portableAddresses()
	}
	if err != nil {
		return nil, fmt.Errorf("own addresses: %w", err)
	}
	return addresses, nil
}

// portableLook knows no more of a route than the source address of packets.
func portableLook() (s snapshot, err error) {
	if addresses, err := portableAddresses(); err == nil { // else unknown: Android refuses
		s.addresses = beyondLink(addresses)
	}
	for i, destination := range internet {
		if s.routes[i].source, err = sourceFor(destination); err != nil {
			return snapshot{}, err
		}
	}
	return s, nil
}

func portableAddresses() (map[netip.Addr]bool, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	addresses := make(map[netip.Addr]bool, len(list))
	for _, item := range list {
		if n, ok := item.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(n.IP); ok {
				addresses[a.Unmap()] = true
			}
		}
	}
	return addresses, nil
}

// sourceFor is the network that packets to destination come from; the zero value if there is no way there.
func sourceFor(destination netip.Addr) (netip.Prefix, error) {
	source, err := Source(destination)
	if err != nil || !source.IsValid() {
		return netip.Prefix{}, err
	}
	return source.Prefix(min(source.BitLen(), 64))
}

// Source is the address that packets to destination come from; the zero value if there is no way there. An error
// means that nothing could be learnt. To connect a UDP socket looks up the route and sends nothing.
func Source(destination netip.Addr) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(destination, 53)))
	for _, lack := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, lack) { // of descriptors or memory
			return netip.Addr{}, fmt.Errorf("route to %v: %w", destination, err)
		}
	}
	if err != nil {
		return netip.Addr{}, nil
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone(""), nil
}
