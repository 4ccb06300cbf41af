package tunnel

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	maxRememberedNames     = 64
	maxRememberedAddresses = 4 // of one name
	// doubtTime is how long an address comes after the others of its name if nobody has shaken hands there.
	doubtTime = time.Minute
)

// memory knows which addresses of a name have worked, and which have only seemed to. The zero value is empty.
type memory struct {
	mu    sync.Mutex
	names []rememberedName // the one used last comes first
}

type rememberedName struct {
	name      string       // host:port
	addresses []netip.Addr // the one that worked last comes first
	proven    time.Time    // when a connection last came about with that one
	current   bool         // it has worked since the network changed
	living    []netip.Addr // it had these when it was last dialed, and none of them failed
	doubts    []doubt      // the latest first
}

// doubt is an address that takes connections on which nothing comes about.
type doubt struct {
	address netip.Addr
	until   time.Time
}

// isDoubted tells whether a comes after the others.
func (n *rememberedName) isDoubted(a netip.Addr) bool {
	return slices.ContainsFunc(n.doubts, func(d doubt) bool { return d.address == a && time.Now().Before(d.until) })
}

// of returns what is known of name; without addresses, nothing is.
func (m *memory) of(name string) rememberedName {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.take(name)
	m.put(n)
	n.addresses, n.doubts = slices.Clone(n.addresses), slices.Clone(n.doubts)
	return n
}

// worked notes a connection to a, one of those that have not failed. It is not proven where fast open has only promised one.
func (m *memory) worked(name string, a netip.Addr, proven bool, living []netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.take(name)
	if !slices.Contains(n.addresses, a) || n.addresses[0] != a {
		n.proven = time.Time{}
	}
	if proven {
		n.proven = time.Now()
	}
	n.name, n.current, n.living = name, true, living
	n.addresses = slices.DeleteFunc(n.addresses, func(b netip.Addr) bool { return a == b })
	n.addresses = slices.Insert(n.addresses, 0, a)
	n.addresses = n.addresses[:min(len(n.addresses), maxRememberedAddresses)]
	m.put(n)
}

// failed forgets a.
func (m *memory) failed(name string, a netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.take(name)
	n.forget(a)
	m.put(n)
}

// doubt notes that a connection to a was there, and came to nothing. It tells whether another address may do better.
func (m *memory) doubt(name string, a netip.Addr) (hasOther bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.take(name)
	n.name = name
	if slices.Contains(n.addresses, a) { // where lookups fail it is still better than none
		n.forget(a)
		n.addresses = append(n.addresses, a)
	}
	n.doubts = slices.DeleteFunc(n.doubts, func(d doubt) bool { return d.address == a })
	n.doubts = slices.Insert(n.doubts, 0, doubt{a, time.Now().Add(doubtTime)})
	n.doubts = n.doubts[:min(len(n.doubts), 2*maxAddresses)]
	m.put(n)
	return slices.ContainsFunc(n.living, func(b netip.Addr) bool { return !n.isDoubted(b) })
}

// trust takes a doubt back.
func (m *memory) trust(name string, a netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.take(name)
	n.doubts = slices.DeleteFunc(n.doubts, func(d doubt) bool { return d.address == a })
	m.put(n)
}

func (n *rememberedName) forget(a netip.Addr) {
	if len(n.addresses) > 0 && n.addresses[0] == a {
		n.proven = time.Time{}
	}
	n.addresses = slices.DeleteFunc(n.addresses, func(b netip.Addr) bool { return a == b })
}

// outdate leaves the addresses for when a lookup fails, but not the order in which to try them.
func (m *memory) outdate() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.names {
		m.names[i].current, m.names[i].proven, m.names[i].doubts = false, time.Time{}, nil
	}
}

// take removes what is known of name and returns it.
func (m *memory) take(name string) (n rememberedName) {
	i := slices.IndexFunc(m.names, func(n rememberedName) bool { return n.name == name })
	if i < 0 {
		return n
	}
	n = m.names[i]
	m.names = slices.Delete(m.names, i, i+1)
	return n
}

// put makes n the one used last, at the cost of the one that was not used for the longest time. Where nothing is known of n it does nothing.
func (m *memory) put(n rememberedName) {
	if len(n.addresses)+len(n.living)+len(n.doubts) == 0 {
		return
	}
	m.names = slices.Insert(m.names, 0, n)
	m.names = m.names[:min(len(m.names), maxRememberedNames)]
}
