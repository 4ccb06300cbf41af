package edge

import (
	"cmp"
	"context"
	"net"
	"runtime"
	"slices"
	"sync"
	"time"
)

const (
	measureEvery = 2 * time.Second
	historySize  = 300 // ten minutes
	// shownTunnels are those of the status that go into one answer, unless it is asked for others.
	shownTunnels    = 200
	maxShownTunnels = 10000
)

// CertificateStatus is what is known of one certificate that is obtained and renewed. Its fields are those of acme.Status.
type CertificateStatus struct {
	Name string `json:"name"`
	// Issuer is the directory of the CA, or empty while there is no certificate.
	Issuer    string    `json:"issuer,omitempty"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	// NextRenewal is when the next attempt is planned.
	NextRenewal time.Time `json:"next_renewal,omitzero"`
	// StapleUntil is zero without an OCSP staple.
	StapleUntil time.Time `json:"staple_until,omitzero"`
	// LastError is why the last attempt went wrong; empty when the last one went well.
	LastError string `json:"last_error,omitempty"`
	Hint      string `json:"hint,omitempty"`
}

// status is all that Admin tells.
type status struct {
	Version  string    `json:"version"`
	Go       string    `json:"go"`
	Started  time.Time `json:"started"`
	Now      time.Time `json:"now"`
	Ready    bool      `json:"ready"`
	Problems []string  `json:"problems"`

	Connections      int `json:"connections"`
	ConnectionsLimit int `json:"connections_limit"` // 0: none

	Listeners    []listenerStatus    `json:"listeners"`
	Sites        []siteStatus        `json:"sites"`
	Certificates []CertificateStatus `json:"certificates"`
	Total        trafficStatus       `json:"total"`
	Tunnels      []tunnelStatus      `json:"tunnels"` // the busiest, the oldest first
	Log          []LogEntry          `json:"log"`     // warnings and errors, the newest first
	History      history             `json:"history"`
}

type listenerStatus struct {
	Address string `json:"address"`
	Plain   bool   `json:"plain"`
	Proxy   bool   `json:"proxy_header"`
	Open    bool   `json:"open"`
}

type siteStatus struct {
	Label  string        `json:"label"`
	Names  []string      `json:"names"`
	Routes []routeStatus `json:"routes"`
}

type routeStatus struct {
	Label  string `json:"label"`
	Target string `json:"target"`
	Limit  int    `json:"limit"` // 0: none
	trafficStatus
}

type trafficStatus struct {
	Open     int   `json:"open"`
	Opened   int64 `json:"opened"`
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
	// Bytes a second; of routes they are not told.
	SendRate    int64 `json:"send_rate"`
	ReceiveRate int64 `json:"receive_rate"`
}

type tunnelStatus struct {
	Site        string    `json:"site"`
	Route       string    `json:"route"`
	Target      string    `json:"target,omitempty"` // chosen by the client
	User        string    `json:"user,omitempty"`
	Client      string    `json:"client"`
	Begin       time.Time `json:"begin"`
	Sent        int64     `json:"sent"`
	Received    int64     `json:"received"`
	SendRate    int64     `json:"send_rate"`
	ReceiveRate int64     `json:"receive_rate"`
}

// status tells of at most limit tunnels.
func (a *Admin) status(ctx context.Context, limit int) *status {
	s := &status{
		Version: a.Version, Go: runtime.Version(), Started: a.started, Now: time.Now(), Problems: a.problems(ctx),
		Connections: a.Server.room.count(), Listeners: []listenerStatus{}, Sites: []siteStatus{},
		Certificates: a.certificates(), Log: a.Recent.Entries(), History: a.history.recent(),
	}
	s.Ready = len(s.Problems) == 0
	if s.Certificates == nil {
		s.Certificates = []CertificateStatus{}
	}
	routes := make(map[labels]trafficStatus)
	for _, t := range a.Server.Traffic() {
		r := trafficStatus{Open: t.Open, Opened: t.Opened, Sent: t.Sent, Received: t.Received}
		routes[labels{t.Site, t.Route}] = r
		s.Total.Open += r.Open
		s.Total.Opened += r.Opened
		s.Total.Sent += r.Sent
		s.Total.Received += r.Received
	}
	s.Total.SendRate, s.Total.ReceiveRate = s.History.latest()
	s.Tunnels = busiest(a.Server.Tunnels(), limit)
	if c := a.Server.Config(); c != nil {
		s.tellConfig(c, a.Server.Listeners(), routes)
	}
	return s
}

func (s *status) tellConfig(c *Config, open map[string]net.Listener, routes map[labels]trafficStatus) {
	s.ConnectionsLimit = c.Limits.Connections
	for _, l := range c.Listeners {
		s.Listeners = append(s.Listeners, listenerStatus{l.Address, l.Plain, len(l.ProxyFrom) > 0, open[l.Address] != nil})
	}
	for _, site := range c.Sites {
		told := siteStatus{Label: site.label(), Names: slices.Clone(site.Names), Routes: []routeStatus{}}
		add := func(label, target string, limit int) {
			traffic := routes[labels{printable(told.Label), printable(label)}]
			told.Routes = append(told.Routes, routeStatus{Label: label, Target: target, Limit: limit, trafficStatus: traffic})
		}
		switch {
		case site.Pass != "":
			add(passLabel, site.Pass, 0)
		case site.Raw != nil:
			add(site.Raw.label(), site.Raw.Target, site.Raw.Limit)
		default:
			for _, r := range site.Routes {
				add(r.label(), r.Target, r.Limit)
			}
		}
		s.Sites = append(s.Sites, told)
	}
}

// busiest are those of all, which are sorted by age, that carry most at present.
func busiest(all []Tunnel, limit int) []tunnelStatus {
	if len(all) > limit {
		slices.SortStableFunc(all, func(a, b Tunnel) int {
			return cmp.Compare(b.SendRate+b.ReceiveRate, a.SendRate+a.ReceiveRate)
		})
		all = all[:limit]
		slices.SortFunc(all, func(a, b Tunnel) int { return a.Begin.Compare(b.Begin) })
	}
	told := make([]tunnelStatus, 0, len(all))
	for _, t := range all {
		client := "unix"
		if t.Client != nil && t.Client.String() != "" {
			client = t.Client.String()
		}
		told = append(told, tunnelStatus{t.Site, t.Route, t.Target, t.User, client, t.Begin, t.Sent, t.Received, t.SendRate, t.ReceiveRate})
	}
	return told
}

// history is what the edge was like of late.
type history struct {
	Interval int      `json:"interval"` // seconds between samples
	Samples  []sample `json:"samples"`  // the oldest first
}

type sample struct {
	Time        time.Time `json:"time"`
	SendRate    int64     `json:"send_rate"`
	ReceiveRate int64     `json:"receive_rate"`
	Tunnels     int       `json:"tunnels"`
}

func (h *history) latest() (sendRate, receiveRate int64) {
	if len(h.Samples) == 0 {
		return 0, 0
	}
	last := h.Samples[len(h.Samples)-1]
	return last.SendRate, last.ReceiveRate
}

// recorder makes the history. The zero value is ready.
type recorder struct {
	mu      sync.Mutex
	samples []sample
	at      time.Time // of the last measurement; zero: none yet
	// sums of all tunnels then
	sent, received int64
}

// record measures s.
func (r *recorder) record(s *Server, now time.Time) {
	s.traffic.measure(now)
	var sent, received int64
	tunnels := 0
	for _, t := range s.Traffic() {
		sent += t.Sent
		received += t.Received
		tunnels += t.Open
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if passed := now.Sub(r.at).Seconds(); !r.at.IsZero() && passed > 0 {
		if len(r.samples) >= historySize {
			r.samples = slices.Delete(r.samples, 0, 1)
		}
		r.samples = append(r.samples, sample{now, int64(float64(sent-r.sent) / passed), int64(float64(received-r.received) / passed), tunnels})
	}
	r.at, r.sent, r.received = now, sent, received
}

func (r *recorder) recent() history {
	r.mu.Lock()
	defer r.mu.Unlock()
	return history{Interval: int(measureEvery.Seconds()), Samples: append([]sample{}, r.samples...)}
}

// run records until ctx ends.
func (r *recorder) run(ctx context.Context, s *Server) {
	ticker := time.NewTicker(measureEvery)
	defer ticker.Stop()
	r.record(s, time.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			r.record(s, now)
		}
	}
}
