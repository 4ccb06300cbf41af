package netwatch

import (
	"maps"
	"net/netip"
)

// snapshot is what Watch compares.
type snapshot struct {
	addresses map[netip.Addr]bool // that are good for more than the own link; nil: unknown
	routes    [2]route            // to the internet, over IPv4 and IPv6
}

// route is a way out; the zero value is none. A system fills in what it tells.
type route struct {
	device  int32  // number of the interface
	gateway string // as the kernel has it; "" behind a device that needs none
	down    bool   // the interface has no link: no cable, no access point

	// A temporary address (RFC 8981) gives way to the next each day, within the same /64.
	source netip.Prefix
}

// internet is an address of each family that stands for all that are not near: a.root-servers.net.
// Routes to it are looked up; nothing is sent there.
var internet = [2]netip.Addr{netip.MustParseAddr("198.41.0.4"), netip.MustParseAddr("2001:503:ba3e::2:30")}

// since is what has changed; what is unknown has not.
func (s snapshot) since(before snapshot) Change {
	known := s.addresses != nil && before.addresses != nil
	return Change{
		Addresses: known && !maps.Equal(s.addresses, before.addresses),
		Routes:    s.routes != before.routes,
	}
}

// or takes from before what is unknown.
func (s snapshot) or(before snapshot) snapshot {
	if s.addresses == nil {
		s.addresses = before.addresses
	}
	return s
}

// beyondLink is addresses without those of the own link or the machine itself.
func beyondLink(addresses map[netip.Addr]bool) map[netip.Addr]bool {
	maps.DeleteFunc(addresses, func(a netip.Addr, _ bool) bool { return !a.IsGlobalUnicast() })
	return addresses
}
