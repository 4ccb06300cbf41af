package edge

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxAbsent bounds the addresses that are remembered for their rate alone, to some 10 MB. A flood from more of them
	// than that is no matter of a rate an address.
	maxAbsent = 1 << 16
	// sweepInterval is how often those are forgotten that need not be remembered.
	sweepInterval = 10 * time.Second
	// handshakeGrace is how old a connection that has not asked for anything has to be before another one from its
	// address may take its place.
	handshakeGrace = time.Second
)

// addresses counts the connections of each client address. The zero value is ready.
type addresses struct {
	mu     sync.Mutex
	all    map[netip.Prefix]*address
	absent int // of all: those that have nothing open
	swept  time.Time
}

type address struct {
	open int
	// paid is how far the connections of the address have used up its rate: each costs a part of a second, and as much as
	// makes two seconds may be owed. In the past: nothing is.
	paid time.Time
	// undecided are the guests that have not asked for anything yet, the oldest first.
	undecided list.List
}

// guest is a connection as its address counts it.
type guest struct {
	network netip.Prefix
	leaver  leaver // nil: nobody gets its place

	// The rest is guarded by addresses.mu.
	counted bool
	since   time.Time
	place   *list.Element // among address.undecided; nil: it is not there
}

// leaver gives its place to others. Its methods do not block.
type leaver interface {
	MayLeave() bool // at once; else it is asked again later on
	StopWaiting()   // it leaves
}

// handshake is how to end one: nobody who shakes hands has been promised anything.
type handshake func()

func (handshake) MayLeave() bool { return true }
func (h handshake) StopWaiting() { h() }

// patientLooks bounds how many are asked in turn whether they may leave.
const patientLooks = 16

// admit counts g, or says why not. The caller has leaving leave, unless that is nil: g has got the place of another
// guest, which has not asked for anything in handshakeGrace.
func (s *addresses) admit(g *guest, l Limits, now time.Time) (leaving leaver, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep(now)
	client := s.of(g.network)
	if !client.pay(l.Rate, now) {
		return nil, ErrRate
	}
	if l.PerAddress > 0 && client.open >= l.PerAddress {
		oldest := client.oldest(now)
		if oldest == nil {
			return nil, ErrPerAddress
		}
		s.drop(oldest, client)
		leaving = oldest.leaver
	}
	s.add(g, client, now)
	return leaving, nil
}

// settle notes that g has asked for something: nobody gets its place any more. It tells whether g still has it.
func (s *addresses) settle(g *guest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.place != nil {
		s.all[g.network].undecided.Remove(g.place)
		g.place, g.leaver = nil, nil // a tunnel has no use for what it holds
	}
	return g.counted
}

// unsettle notes that g has nothing to ask for at present: another one may get its place, and l leaves then.
func (s *addresses) unsettle(g *guest, l leaver, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.counted {
		g.leaver, g.since = l, now
		g.place = s.all[g.network].undecided.PushBack(g)
	}
}

// leave gives the place of g back, if it has one.
func (s *addresses) leave(g *guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !g.counted {
		return
	}
	client := s.all[g.network]
	s.drop(g, client)
	if client.open == 0 && !client.paid.After(time.Now()) {
		s.forget(g.network)
	}
}

// of is the client of a network. One that is new has nothing open.
func (s *addresses) of(network netip.Prefix) *address {
	client := s.all[network]
	if client == nil {
		client = &address{}
		if s.all == nil {
			s.all = make(map[netip.Prefix]*address)
		}
		s.all[network] = client
		s.absent++
	}
	return client
}

func (s *addresses) add(g *guest, client *address, now time.Time) {
	if client.open == 0 {
		s.absent--
	}
	client.open++
	g.counted, g.since = true, now
	if g.leaver != nil {
		g.place = client.undecided.PushBack(g)
	}
}

func (s *addresses) drop(g *guest, client *address) {
	if g.place != nil {
		client.undecided.Remove(g.place)
		g.place = nil
	}
	g.counted = false
	if client.open--; client.open == 0 {
		s.absent++
	}
}

// forget removes a client that has nothing open.
func (s *addresses) forget(network netip.Prefix) {
	delete(s.all, network)
	s.absent--
}

// sweep forgets the absent who owe nothing. Where they are too many it forgets as well what others owe, until half of
// maxAbsent are left, so that the next sweep is far away.
func (s *addresses) sweep(now time.Time) {
	if s.absent < maxAbsent && now.Sub(s.swept) < sweepInterval {
		return
	}
	s.swept = now
	crowded := s.absent >= maxAbsent
	for network, client := range s.all {
		if client.open == 0 && (!client.paid.After(now) || crowded && s.absent > maxAbsent/2) {
			s.forget(network)
		}
	}
}

// pay tells whether the client may come at rate, in connections a second; zero is any rate.
func (a *address) pay(rate int, now time.Time) bool {
	if rate <= 0 {
		return true
	}
	price := time.Second / time.Duration(rate)
	paid := a.paid
	if paid.Before(now) {
		paid = now
	}
	paid = paid.Add(price)
	if paid.Sub(now) > 2*time.Second {
		return false
	}
	a.paid = paid
	return true
}

// oldest is the guest that has not asked for anything for longest, and not just come, and may leave; nil: there is none. Those that
// may not are as if they had just come.
func (a *address) oldest(now time.Time) *guest {
	for range patientLooks {
		first := a.undecided.Front()
		if first == nil {
			return nil
		}
		g := first.Value.(*guest)
		if now.Sub(g.since) < handshakeGrace {
			return nil
		}
		if g.leaver.MayLeave() {
			return g
		}
		g.since = now
		a.undecided.MoveToBack(first)
	}
	return nil
}

// network is the address that counts for limits: of IPv6 the /64, which one person has. Clients on Unix
// sockets are all one.
func network(a net.Addr) netip.Prefix {
	ip := addressOf(a)
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// addressOf is the IP address of a client; not valid on Unix sockets.
func addressOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
