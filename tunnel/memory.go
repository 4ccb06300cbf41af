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
)

// memory knows which addresses of a name have worked. The zero value is empty.
type memory struct {
	mu    sync.Mutex
	names []rememberedName // the one used last comes first
}

type rememberedName struct {
	name      string       // host:port
	addresses []netip.Addr // the one that worked last comes first; never empty
	proven    time.Time    // when a handshake last came about with that one
	current   bool         // it has worked since the network changed
}

// of returns what is known of name; without addresses, nothing is.
func (m *memory) of(name string) rememberedName {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.take(name)
	if n.addresses != nil {
		m.put(n)
	}
	n.addresses = slices.Clone(n.addresses)
	return n
}

// worked notes a connection to a. It is not proven where fast open has only promised one.
func (m *memory) worked(name string, a netip.Addr, proven bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.take(name)
	if !slices.Contains(n.addresses, a) || n.addresses[0] != a {
		n.proven = time.Time{}
	}
	if proven {
		n.proven = time.Now()
	}
	n.name, n.current = name, true
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
	if len(n.addresses) > 0 && n.addresses[0] == a {
		n.proven = time.Time{}
	}
	n.addresses = slices.DeleteFunc(n.addresses, func(b netip.Addr) bool { return a == b })
	if len(n.addresses) > 0 {
		m.put(n)
	}
}

// outdate leaves the addresses for when a lookup fails, but not the order in which to try them.
func (m *memory) outdate() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.names {
		m.names[i].current, m.names[i].proven = false, time.Time{}
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

// put makes n the one used last, at the cost of the one that was not used for the longest time.
func (m *memory) put(n rememberedName) {
	m.names = slices.Insert(m.names, 0, n)
	m.names = m.names[:min(len(m.names), maxRememberedNames)]
}
