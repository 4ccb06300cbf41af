package client

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"raimon/tunnel"
)

// Status is what is known of a tunnel.
type Status struct {
	Name      string   `json:"name"`
	Listen    []string `json:"listen"`
	Remote    string   `json:"remote"`
	Transport string   `json:"transport"`

	// Since is when the edge was last found out of reach, and Error why; zero and empty while it is reached.
	Since time.Time `json:"since,omitzero"`
	Error string    `json:"error,omitempty"`
	// Reached is when a connection to the edge was last made; zero: never.
	Reached time.Time `json:"reached,omitzero"`
	// RoundTrip is that of one of the last connections, in nanoseconds; zero: not known.
	RoundTrip time.Duration `json:"round_trip,omitzero"`

	// Pool is how many connections are kept ready, Ready how many are.
	Pool  int `json:"pool"`
	Ready int `json:"ready"`
	// Open counts connections of programs, Total those that there ever were.
	Open  int   `json:"open"`
	Total int64 `json:"total"`
	// Sent and Received are bytes, of connections that have ended too.
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
	// LastError is why the last connection failed that did, at LastErrorAt; a reset is no failure.
	LastError   string    `json:"last_error,omitempty"`
	LastErrorAt time.Time `json:"last_error_at,omitzero"`
}

// Status tells of all tunnels, in the order of Apply.
func (c *Client) Status() []Status {
	c.mu.Lock()
	links := slices.Clone(c.links)
	c.mu.Unlock()
	all := make([]Status, 0, len(links))
	for _, l := range links {
		s := Status{Name: l.Name, Listen: l.Listen, Remote: l.Remote, Transport: l.Transport.String(), Pool: l.Pool, Ready: l.pool.size()}
		since, cause := l.outage.state()
		if s.Since = since; cause != nil {
			s.Error = cause.Error()
		}
		s.Sent, s.Received = c.guard.traffic(l)
		l.stats.fill(&s)
		all = append(all, s)
	}
	return all
}

// stats are the numbers of a link.
type stats struct {
	mu             sync.Mutex
	open           int // connections of programs
	total          atomic.Int64
	sent, received int64
	reachedAt      time.Time
	roundTrip      time.Duration
	measuredAt     time.Time // roundTrip was
	failure        error
	failedAt       time.Time
}

func (s *stats) began() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open++
	s.total.Add(1)
}

// ended is told of each connection, tunnel or not.
func (s *stats) ended(session *tunnel.Session, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open--
	s.sent += session.Sent()
	s.received += session.Received()
	if err != nil && !errors.Is(err, errLeft) && !(session.Open() && tunnel.IsReset(err)) {
		s.failure, s.failedAt = err, time.Now()
	}
}

// roundTripAge is how long a round-trip time is not asked for again: with many connections that costs more than it tells.
const roundTripAge = time.Second

// reached is told of each connection to the edge.
func (s *stats) reached(c tunnel.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.reachedAt = now
	if now.Sub(s.measuredAt) >= roundTripAge {
		s.roundTrip, s.measuredAt = tunnel.HealthOf(c).RoundTrip, now
	}
}

func (s *stats) fill(to *Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	to.Open, to.Total = s.open, s.total.Load()
	to.Sent, to.Received = to.Sent+s.sent, to.Received+s.received
	to.Reached, to.RoundTrip = s.reachedAt, s.roundTrip
	if s.failure != nil {
		to.LastError, to.LastErrorAt = s.failure.Error(), s.failedAt
	}
}
