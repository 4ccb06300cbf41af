package edge

import (
	"cmp"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"raimon/tunnel"
)

// Tunnel is one that is open.
type Tunnel struct {
	Site, Route string
	Target      string // that the client has chosen; empty: that of the route
	User        string // whose token or certificate opened it; empty: nobody's
	Client      net.Addr
	Begin       time.Time
	Sent        int64 // bytes of the client
	Received    int64 // bytes for the client
	// SendRate and ReceiveRate are bytes a second of late. Zero unless an Admin measures.
	SendRate, ReceiveRate int64
}

// Traffic is what the tunnels of a route carry, the ended ones too.
type Traffic struct {
	Site, Route    string
	Open           int   // at present
	Opened         int64 // since the start
	Sent, Received int64 // bytes of clients and for clients, since the start
}

// traffic knows the tunnels that are open, and what all that ever were have carried. No sum of it ever
// falls: a tunnel goes from the open ones to the ended ones under the lock. The zero value is ready.
type traffic struct {
	mu       sync.Mutex
	routes   map[labels]*routeTraffic
	measured time.Time
}

// labels are what logs and metrics call a route. They are valid UTF-8.
type labels struct{ site, route string }

func (v *visit) labels() labels {
	return labels{printable(v.siteLabel()), printable(v.routeLabel())}
}

// printable is text as valid UTF-8, which labels of metrics have to be.
func printable(text string) string { return strings.ToValidUTF8(text, "\uFFFD") }

// routeTraffic is guarded by traffic.mu.
type routeTraffic struct {
	live           []*liveTunnel
	opened         int64
	sent, received int64 // bytes of those that have ended
}

// liveTunnel is a tunnel that is open. It is guarded by traffic.mu.
type liveTunnel struct {
	*tunnel.Session
	route *routeTraffic
	place int // in route.live
	// sent and received are how many bytes there were when they were last measured.
	sent, received        int64
	sendRate, receiveRate int64 // bytes a second
}

func (t *traffic) opened(v *visit, s *tunnel.Session) {
	l := v.labels()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.routes == nil {
		t.routes = make(map[labels]*routeTraffic)
	}
	r := t.routes[l]
	if r == nil {
		r = new(routeTraffic)
		t.routes[l] = r
	}
	v.live = &liveTunnel{Session: s, route: r, place: len(r.live)}
	r.live = append(r.live, v.live)
	r.opened++
}

// ended is told of each connection; of those that were no tunnel there is nothing to do.
func (t *traffic) ended(v *visit) {
	if v.live == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	r, place := v.live.route, v.live.place
	r.sent += v.live.Sent()
	r.received += v.live.Received()
	last := len(r.live) - 1
	r.live[place] = r.live[last]
	r.live[place].place = place
	r.live[last] = nil
	r.live = r.live[:last]
}

// measure finds out how fast each tunnel has been since the last time.
func (t *traffic) measure(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	passed := now.Sub(t.measured).Seconds()
	if t.measured.IsZero() || passed <= 0 {
		passed = 1
	}
	t.measured = now
	for _, r := range t.routes {
		for _, l := range r.live {
			sent, received := l.Sent(), l.Received()
			l.sendRate = int64(float64(sent-l.sent) / passed)
			l.receiveRate = int64(float64(received-l.received) / passed)
			l.sent, l.received = sent, received
		}
	}
}

// Traffic is what each route has carried that ever had a tunnel, sorted by site and route.
func (s *Server) Traffic() []Traffic {
	t := &s.traffic
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]Traffic, 0, len(t.routes))
	for l, r := range t.routes {
		sum := Traffic{Site: l.site, Route: l.route, Open: len(r.live), Opened: r.opened, Sent: r.sent, Received: r.received}
		for _, live := range r.live {
			sum.Sent += live.Sent()
			sum.Received += live.Received()
		}
		all = append(all, sum)
	}
	slices.SortFunc(all, func(a, b Traffic) int {
		return cmp.Or(strings.Compare(a.Site, b.Site), strings.Compare(a.Route, b.Route))
	})
	return all
}

// Tunnels are all that are open, the oldest first.
func (s *Server) Tunnels() []Tunnel {
	t := &s.traffic
	t.mu.Lock()
	all := []Tunnel{}
	for l, r := range t.routes {
		for _, live := range r.live {
			all = append(all, Tunnel{
				Site: l.site, Route: l.route, Target: live.Info().Target, User: visitOf(live.Info()).user, Client: live.Info().Client,
				Begin: live.Begin(), Sent: live.Sent(), Received: live.Received(),
				SendRate: live.sendRate, ReceiveRate: live.receiveRate,
			})
		}
	}
	t.mu.Unlock()
	slices.SortFunc(all, func(a, b Tunnel) int { return a.Begin.Compare(b.Begin) })
	return all
}
