// Package client keeps tunnels to edges: it listens for programs of this machine and carries each of their connections
// to an edge, over networks that come and go.
//
// Read in this order: Client accepts, link.open (open.go) gives a connection its other end, from the pool (pool.go) or
// anew (link.go), and waits where the edge cannot be reached (outage.go). Guard (guard.go) ends what a network has
// forgotten.
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"raimon/internal/netwatch"
	"raimon/tunnel"
)

// Tunnel says what is carried where. It does not change once a Client has it.
type Tunnel struct {
	// Name is what logs and the status call it.
	Name string
	// Key tells whether two Tunnels of one name are the same: a Client keeps what belongs to the old one then.
	Key string

	// Listen are addresses in the form of tunnel.ParseAddress.
	Listen []string
	// Accept is spoken by the programs that connect; empty is plain tcp.
	Accept tunnel.Transport
	// Chooses says that Accept has programs name their target, always.
	Chooses bool

	// Remote is the address of the edge, and Dialer how it is reached.
	Remote string
	Dialer *tunnel.Dialer
	// Transport is spoken with the edge.
	Transport tunnel.Transport
	// Pool is how many connections to the edge are kept ready.
	Pool int
	// Reuse is how long a connection to the edge is kept when its tunnel has ended, for the next one; zero: not at all. It
	// takes a Transport that has agreed on it with the edge (tunnel.WebSocket).
	Reuse time.Duration
	// Wait is how long a connection waits for an edge that cannot be reached; zero: not at all.
	Wait time.Duration
	// Timeout limits one attempt to reach the edge; see tunnel.Forwarder for it, and for Linger and Drain.
	Timeout, Linger, Drain time.Duration
	// ListenConfig opens the listeners; Log and Have in it are not used.
	ListenConfig tunnel.ListenConfig
}

// Client carries the connections of programs through its tunnels.
type Client struct {
	// Log takes a line for each connection, and for each outage. Nil discards them.
	Log *slog.Logger
	// Hint says what a user can do about an error, for the log. Nil says nothing.
	Hint func(error) string
	// Alone means that there is one tunnel, whose name says nothing.
	Alone bool
	// Quiet leaves the lines about connections away, for a caller of Handle that tells of its error itself.
	Quiet bool

	mu    sync.Mutex
	links []*link          // in the order of Apply
	doors map[string]*door // by address
	run   *lifetime        // nil: Run has not been called, or has ended

	sessions sync.WaitGroup
	serving  sync.WaitGroup // listeners, and what keeps links
	guard    guard
}

// lifetime is what Run gives to those whom it starts.
type lifetime struct {
	draining, cut context.Context
	fail          context.CancelCauseFunc
}

// door is a listener that is open.
type door struct {
	net.Listener
	link  atomic.Pointer[link]
	close context.CancelFunc // ends its accepting; nil: it is not accepting yet
}

// Apply makes tunnels what the client does. Tunnels that it had already, with the same Key, are not touched; open
// connections of others go on, and programs that wait for their edge go on with the tunnel that has the same name now,
// or the same address. Where an address cannot be listened on the error says why, and nothing has changed.
// Before Run it only opens the listeners; connections wait in their queues.
func (c *Client) Apply(ctx context.Context, tunnels []*Tunnel) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	next, err := c.plan(ctx, tunnels)
	if errors.Is(err, syscall.EADDRINUSE) {
		if aside := c.stepAside(tunnels); len(aside) > 0 {
			if next, err = c.plan(ctx, tunnels); err != nil {
				c.stepBack(ctx, aside)
			}
		}
	}
	if err != nil {
		return err
	}
	for address, d := range next.doors {
		d.link.Store(next.owners[address])
	}
	for address, d := range c.doors {
		if next.doors[address] == nil {
			d.shut()
		}
	}
	for _, l := range c.links {
		if !slices.Contains(next.links, l) {
			l.stop()
			l.leaveTo(next.heir(l))
		}
	}
	c.links, c.doors = next.links, next.doors
	if c.run != nil {
		c.start()
	}
	return nil
}

// plan is what a Client is about to do.
type plan struct {
	links  []*link
	doors  map[string]*door // by address
	owners map[string]*link // of doors
}

// heir is the link that has the name of l, or else one of its addresses; nil: none has.
func (p *plan) heir(l *link) *link {
	for _, heir := range p.links {
		if heir.Name == l.Name {
			return heir
		}
	}
	for _, address := range l.Listen {
		if heir := p.owners[address]; heir != nil {
			return heir
		}
	}
	return nil
}

// plan opens what tunnels listen on and is not open yet. Its error is a *ListenError. The caller holds mu.
func (c *Client) plan(ctx context.Context, tunnels []*Tunnel) (*plan, error) {
	next := &plan{doors: make(map[string]*door), owners: make(map[string]*link)}
	var fresh []*door
	for _, t := range tunnels {
		l := c.kept(t)
		next.links = append(next.links, l)
		opened, err := c.listen(ctx, t)
		if err != nil {
			for _, d := range fresh {
				d.Listener.Close()
			}
			return nil, &ListenError{Tunnel: t.Name, Err: err}
		}
		for address, listener := range opened {
			d := c.doors[address]
			if d == nil {
				d = &door{Listener: listener}
				fresh = append(fresh, d)
			}
			next.doors[address], next.owners[address] = d, l
		}
	}
	return next, nil
}

// stepAside shuts the doors that tunnels have no more, on ports that they listen on otherwise: 127.0.0.1:2222 is in
// the way of :2222. The caller holds mu.
func (c *Client) stepAside(tunnels []*Tunnel) (aside []*door) {
	var addresses []string
	ports := make(map[string]bool)
	for _, t := range tunnels {
		for _, address := range t.Listen {
			addresses = append(addresses, address)
			if _, port, err := net.SplitHostPort(address); err == nil {
				ports[port] = true
			}
		}
	}
	for address, d := range c.doors {
		at, isTCP := d.Addr().(*net.TCPAddr)
		if isTCP && ports[strconv.Itoa(at.Port)] && !slices.Contains(addresses, address) {
			d.shut()
			delete(c.doors, address)
			aside = append(aside, d)
		}
	}
	return aside
}

// stepBack opens again what stepAside has shut. The caller holds mu.
func (c *Client) stepBack(ctx context.Context, aside []*door) {
	for _, old := range aside {
		l := old.link.Load()
		opened, err := c.listen(ctx, l.Tunnel)
		if err != nil {
			c.log().Error("an address could not be opened again", "address", old.Addr().String(), "error", err, c.hint(err), l.label())
			continue
		}
		for address, listener := range opened {
			if c.doors[address] == nil {
				d := &door{Listener: listener}
				d.link.Store(l)
				c.doors[address] = d
			}
		}
	}
	if c.run != nil {
		c.start()
	}
}

// ListenError says that a tunnel cannot listen.
type ListenError struct {
	Tunnel string // its name
	Err    error
}

func (e *ListenError) Error() string { return e.Err.Error() }
func (e *ListenError) Unwrap() error { return e.Err }

// kept is the link for t, which may be there already. The caller holds mu.
func (c *Client) kept(t *Tunnel) *link {
	for _, l := range c.links {
		if l.Name == t.Name && l.Key == t.Key {
			return l
		}
	}
	return newLink(c, t)
}

// listen opens the listeners of t, or takes those that are open. The caller holds mu.
func (c *Client) listen(ctx context.Context, t *Tunnel) (map[string]net.Listener, error) {
	if len(t.Listen) == 0 {
		return nil, nil
	}
	config := t.ListenConfig
	config.Log = c.log()
	config.Have = func(address string) net.Listener {
		if d := c.doors[address]; d != nil {
			return d.Listener
		}
		return nil
	}
	return config.Open(ctx, t.Listen...)
}

// start begins to accept, and to keep links, where that has not begun. The caller holds mu.
func (c *Client) start() {
	for _, l := range c.links {
		l.start(c.run.draining)
	}
	for _, l := range c.links {
		for _, address := range l.Listen {
			if d := c.doors[address]; d != nil { // left out where there is no IPv6
				c.accept(d)
			}
		}
	}
}

// Run serves until ctx ends. Open connections then go on for the Drain of their tunnels, the rest is cut, and Run
// returns when every goroutine of the client has ended.
func (c *Client) Run(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	cut, stop := tunnel.DrainAfter(ctx, c.drain)
	defer stop()
	c.mu.Lock()
	c.run = &lifetime{draining: ctx, cut: cut, fail: fail}
	c.start()
	c.mu.Unlock()
	var watching sync.WaitGroup
	defer watching.Wait()
	watching.Go(func() { netwatch.Watch(ctx, c.networkChanged) })
	watching.Go(func() { c.guard.run(ctx) })

	<-ctx.Done()
	c.mu.Lock()
	c.run = nil
	for _, d := range c.doors {
		d.shut()
	}
	for _, l := range c.links {
		l.stop()
	}
	c.mu.Unlock()
	c.serving.Wait()
	c.sessions.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// drain is the longest of all tunnels.
func (c *Client) drain() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	longest := time.Duration(-1)
	for _, l := range c.links {
		longest = max(longest, l.Drain)
	}
	return longest
}

// Close closes the listeners, for those who do not come to call Run.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.doors {
		d.shut()
	}
	c.doors = nil
}

// Handle carries one connection through the only tunnel, in place of Run. It returns when that has ended, or at once
// when ctx ends.
func (c *Client) Handle(ctx context.Context, local tunnel.Conn) error {
	c.mu.Lock()
	l := c.links[0]
	c.mu.Unlock()
	guarding, stop := context.WithCancel(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer stop()
	watching.Go(func() { netwatch.Watch(guarding, c.networkChanged) })
	watching.Go(func() { c.guard.run(guarding) })
	ended := make(chan error, 1)
	l.serve(ctx, ctx, local, func(err error) { ended <- err })
	return <-ended
}

// acceptCalm is the time without an error of a listener after which the next one is news: out of descriptors, each
// program that leaves lets another one in.
const acceptCalm = time.Minute

// accept takes what comes to d, unless that has begun. The caller holds mu.
func (c *Client) accept(d *door) {
	if d.close != nil {
		return
	}
	run, l := c.run, d.link.Load()
	c.log().Info("listening", "address", d.Addr().String(), "remote", l.Remote, "transport", l.Transport.String(), l.label())
	ctx, cancel := context.WithCancel(run.draining)
	d.close = cancel
	var failed time.Time
	c.serving.Go(func() {
		defer cancel()
		err := tunnel.Accept(ctx, d.Listener, func(local tunnel.Conn) {
			c.sessions.Add(1)
			d.link.Load().serve(run.cut, run.draining, local, func(error) { c.sessions.Done() })
		}, func(err error, pause time.Duration) {
			level := slog.LevelError
			if time.Since(failed) < acceptCalm {
				level = slog.LevelDebug
			}
			failed = time.Now()
			c.log().Log(ctx, level, "accept", "error", err, c.hint(err), "retry_in", pause.String())
		})
		if err != nil && ctx.Err() == nil {
			run.fail(fmt.Errorf("%s: %w", d.Addr(), err))
		}
	})
}

// networkChanged gives every link another chance.
func (c *Client) networkChanged(change netwatch.Change) {
	c.log().Debug("the network has changed", "addresses", change.Addresses, "routes", change.Routes, "slept", change.Slept.String())
	c.mu.Lock()
	links := slices.Clone(c.links)
	c.mu.Unlock()
	for _, l := range links {
		l.networkChanged(change)
	}
	c.guard.networkChanged()
}

// shut closes the listener.
func (d *door) shut() {
	if d.close != nil {
		d.close()
	}
	d.Listener.Close()
}

func (c *Client) log() *slog.Logger {
	if c.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Log
}

// hint is what a user can do about err, for the end of a log line.
func (c *Client) hint(err error) slog.Attr {
	if c.Hint != nil {
		if hint := c.Hint(err); hint != "" {
			return slog.String("hint", hint)
		}
	}
	return slog.Attr{}
}
