package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"raimon/internal/staple"
)

// clock has the times that tests shorten.
type clock struct {
	now func() time.Time
	// look is how often a keeper looks around at least: clocks are set, machines sleep.
	look time.Duration
	// unreached is the first pause after a CA or the storage could not be reached, refused that after
	// a CA said no; both grow up to their last.
	unreached, lastUnreached time.Duration
	refused, lastRefused     time.Duration
	// staple is the pause after a responder gave no staple.
	staple time.Duration
}

var standardClock = clock{
	now:           time.Now,
	look:          time.Minute,
	unreached:     5 * time.Second,
	lastUnreached: 15 * time.Minute,
	// Let's Encrypt bears five failures an hour for each name and account
	// (https://letsencrypt.org/docs/rate-limits/).
	refused:     2 * time.Minute,
	lastRefused: 4 * time.Hour,
	staple:      15 * time.Minute,
}

// keeper keeps the certificate of one name, in one goroutine.
type keeper struct {
	*Manager
	name     string
	orders   chan order
	ready    chan struct{} // closed when there is something to tell: a certificate or a failure
	demanded bool          // not one of Config.Names
	gone     chan struct{} // closed when it is not kept any more
	leave    func()        // ends run; nil before it

	// Of the goroutine alone.
	failures   int
	mayTry     time.Time               // no attempt before
	putOff     map[*authority]*Failure // of CAs that have said when to come again
	lastLogged string
	loggedAt   time.Time
	mayStaple  time.Time // no request to the responder before
	window     window
	pulled     time.Time // when the CA's window last made us renew
	revoked    bool      // the certificate in use has been revoked: replace it
	dismissed  bool      // the name is not allowed any more, and nothing is left to serve

	mu      sync.Mutex
	current *held // what handshakes get; nil at first
	failure *Failure
	next    time.Time // next attempt
	told    bool      // ready is closed
}

// held is a certificate in use. It is never changed.
type held struct {
	*pair
	from   *authority
	served *tls.Certificate
	staple *staple.Staple // nil if there is none
}

// order is what a person wants done at once.
type order struct {
	revoke, reload bool // neither: renew
	done           chan error
}

func (m *Manager) newKeeper(name string) *keeper {
	return &keeper{Manager: m, name: name, orders: make(chan order), ready: make(chan struct{}), gone: make(chan struct{}), putOff: make(map[*authority]*Failure)}
}

// get waits for the first certificate only where nothing is known yet, as when the program has just
// been started.
func (k *keeper) get(ctx context.Context) (*tls.Certificate, error) {
	if cert := k.serve(); cert != nil {
		return cert, nil
	}
	select {
	case <-k.ready:
	case <-ctx.Done():
	}
	if cert := k.serve(); cert != nil {
		return cert, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failure != nil {
		return nil, fmt.Errorf("no certificate for %s yet: %w", k.name, k.failure)
	}
	return nil, fmt.Errorf("no certificate for %s yet", k.name)
}

func (k *keeper) serve() *tls.Certificate {
	h := k.held()
	if h == nil {
		return nil
	}
	if h.staple != nil && h.staple.Check(k.clock.now()) == nil {
		return h.served
	}
	return h.certificate
}

func (k *keeper) held() *held {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.current
}

func (k *keeper) run(ctx context.Context) {
	for {
		pause := min(k.step(ctx), k.clock.look)
		if k.dismissed {
			k.letGo(k)
			return
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case o := <-k.orders:
			timer.Stop()
			o.done <- k.obey(ctx, o)
		}
	}
}

// step does what is due and returns how long to wait for what comes next.
func (k *keeper) step(ctx context.Context) time.Duration {
	now := k.clock.now()
	if k.held() == nil || k.held().leaf().NotAfter.Before(now) {
		k.load(ctx)
	}
	h := k.held()
	if h != nil {
		k.tell(nil, k.due(h)) // from now on it is served
		k.storage.save(ctx, pairName(h.from.issuer, k.name))
	}
	switch now = k.clock.now(); {
	case !k.due(h).After(now) && !k.mayTry.After(now):
		k.renew(ctx, k.needed)
	case h != nil:
		k.refreshStaple(ctx, h)
		k.refreshWindow(ctx, k.held())
	}
	due := k.due(k.held())
	next := later(due, k.mayTry)
	k.mu.Lock()
	k.next = next
	h = k.current
	k.mu.Unlock()
	if h != nil {
		if k.storage.isUnsaved(pairName(h.from.issuer, k.name)) {
			next = earlier(next, k.clock.now().Add(k.clock.unreached)) // a crash would lose it
		}
		next = earlier(next, k.stapleDue(h))
		next = earlier(next, k.windowDue(h))
	}
	return max(next.Sub(k.clock.now()), 10*time.Millisecond)
}

// due is when h has to be replaced: when a third of its lifetime is left, or half of a lifetime of less
// than 10 days, or before that when its CA says so (RFC 9773, section 4.2).
func (k *keeper) due(h *held) time.Time {
	if h == nil || k.revoked {
		return time.Time{}
	}
	left := lifetime(h) / 3
	if lifetime(h) < 10*24*time.Hour {
		left = lifetime(h) / 2
	}
	due := h.leaf().NotAfter.Add(-left)
	if !k.window.renew.IsZero() {
		return earlier(due, later(k.window.renew, k.pulled.Add(pulledAgain))) // a CA may err; it is not asked in a loop
	}
	return due
}

func lifetime(h *held) time.Duration { return h.leaf().NotAfter.Sub(h.leaf().NotBefore) }

// load takes the newest certificate that the storage has for the name.
func (k *keeper) load(ctx context.Context) {
	var newest *held
	var problem error
	for _, a := range k.authorities {
		p, err := k.storage.loadPair(ctx, pairName(a.issuer, k.name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			problem = err
		case newest == nil || p.leaf().NotBefore.After(newest.leaf().NotBefore):
			newest = &held{pair: p, from: a}
		}
	}
	switch old := k.held(); {
	case newest != nil && old != nil && newest.leaf().Equal(old.leaf()):
	case newest != nil:
		k.use(ctx, newest)
		k.log.Info("certificate loaded", "name", k.name, "issuer", newest.from.Directory, "not_after", second(newest.leaf().NotAfter), "next_renewal", second(k.due(newest)))
	case problem != nil:
		k.failed(&Failure{Reason: fmt.Sprintf("the storage (%v): %s", k.storage, innermost(problem)), Fix: storageFix(problem), err: problem}, false)
	}
}

// use serves h from now on.
func (k *keeper) use(ctx context.Context, h *held) {
	if now := k.clock.now(); !k.window.renew.IsZero() && !k.window.renew.After(now) {
		k.pulled = now
	}
	k.revoked, k.window, k.mayStaple = false, window{}, time.Time{}
	k.loadStaple(ctx, h)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.current = h
}

// needed is asked under the lock of the name. Another process may have renewed while we waited for it.
func (k *keeper) needed(ctx context.Context) error {
	before := k.held()
	k.load(ctx)
	if h := k.held(); h != nil && h != before && k.due(h).After(k.clock.now()) {
		return errRenewed
	}
	return nil
}

// errRenewed says that another process was faster.
var errRenewed = errors.New("renewed by another process")

// accept keeps a certificate of no use from taking the place of a good one.
func (k *keeper) accept(p *pair) error {
	if err := isFor(p, k.name); err != nil {
		return err
	}
	now, h := k.clock.now(), k.held()
	if h == nil || now.Before(h.leaf().NotBefore) || now.After(h.leaf().NotAfter) {
		return nil // nothing is lost
	}
	switch fix := "is the clock of this machine right, and that of the CA? the certificate in use stays"; {
	case now.After(p.leaf().NotAfter):
		return &Failure{Reason: "the new certificate is over already", Fix: fix, refused: true}
	case p.leaf().NotBefore.After(h.leaf().NotAfter):
		// One that begins sooner is taken: rather is our clock behind, which clients do not care about.
		return &Failure{Reason: "the new certificate is not valid yet when the one in use ends", Fix: fix, refused: true}
	}
	return nil
}

// isFor tells whether p is a certificate of name, which may be a wildcard.
func isFor(p *pair, name string) error {
	if slices.Contains(p.leaf().DNSNames, name) || !strings.HasPrefix(name, "*.") && p.leaf().VerifyHostname(name) == nil {
		return nil
	}
	return &Failure{Reason: "the new certificate is not for " + name, Fix: faultOfCA, refused: true}
}

// always is a renewal that a person has asked for.
func always(context.Context) error { return nil }

// renew tries all CAs once, and leaves a line in the log.
func (k *keeper) renew(ctx context.Context, needed func(context.Context) error) error {
	if err := k.checkDemand(ctx); err != nil {
		h := k.held()
		k.dismissed = errors.Is(err, ErrNotAllowed) && (h == nil || h.leaf().NotAfter.Before(k.clock.now()))
		return k.failed(explain(ctx, k.name, nil, err), true)
	}
	select {
	case k.attempts <- struct{}{}:
		defer func() { <-k.attempts }()
	case <-ctx.Done():
		return ctx.Err()
	}
	var all []*Failure
	for _, a := range k.authorities {
		if f := k.putOff[a]; f != nil && f.RetryAfter.After(k.clock.now()) {
			all = append(all, f)
			continue
		}
		err := a.issue(ctx, k.name, k.failures == 0, wish{k.swept(k.name, needed), k.accept})
		if errors.Is(err, errRenewed) {
			k.load(ctx)
			return k.succeeded()
		}
		if err == nil {
			if err = k.takeUp(ctx, a); err == nil {
				return k.succeeded()
			}
		}
		if ctx.Err() != nil {
			return ctx.Err() // shutting down is no failure
		}
		f := explain(ctx, k.name, a, err)
		if k.putOff[a] = nil; !f.RetryAfter.IsZero() {
			k.putOff[a] = f
		}
		all = append(all, f)
	}
	return k.failed(joinFailures(all), true)
}

// takeUp serves what a has just issued.
func (k *keeper) takeUp(ctx context.Context, a *authority) error {
	p, err := k.storage.loadPair(ctx, pairName(a.issuer, k.name))
	if err != nil {
		return err
	}
	old := k.held()
	if old != nil && old.leaf().Equal(p.leaf()) {
		return errors.New("the CA has sent the certificate that is in use")
	}
	k.use(ctx, &held{pair: p, from: a})
	text := "certificate obtained"
	if old != nil {
		text = "certificate renewed"
	}
	k.log.Info(text, "name", k.name, "issuer", a.Directory, "not_after", second(p.leaf().NotAfter), "next_renewal", second(k.due(k.held())))
	return nil
}

// succeeded is a failure all the same where the new certificate would be renewed at once: that goes round
// in circles until the CA has had enough.
func (k *keeper) succeeded() error {
	h := k.held()
	if h == nil {
		return k.failed(&Failure{Reason: "the certificate that another process has obtained is gone"}, true)
	}
	now := k.clock.now()
	if due := k.due(h); !due.After(now) {
		f := &Failure{Reason: "the new certificate is due for renewal already", Fix: "is the clock of this machine right?", refused: true}
		if h.leaf().NotAfter.Before(now) {
			f.Reason = "the new certificate is over already"
		}
		return k.failed(f, true)
	}
	k.failures, k.mayTry, k.lastLogged = 0, time.Time{}, ""
	k.tell(nil, k.due(h))
	return nil
}

// second is t as a log line has it.
func second(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// failed plans the next attempt, if pause, and logs each reason once in a while.
func (k *keeper) failed(f *Failure, pause bool) error {
	now := k.clock.now()
	if pause {
		first, last := k.clock.unreached, k.clock.lastUnreached
		if f.refused {
			first, last = k.clock.refused, k.clock.lastRefused
		}
		wait := first << min(k.failures, 20)
		if wait > last || wait <= 0 {
			wait = last
		}
		if h := k.held(); h != nil {
			wait = min(wait, max(lifetime(h)/20, time.Second)) // a short-lived certificate cannot wait for hours
		}
		k.failures++
		wait += time.Duration(rand.Int64N(int64(wait)/5 + 1))
		k.mayTry = later(now.Add(wait), f.RetryAfter)
	} else if k.mayTry.Before(now) {
		k.mayTry = now.Add(k.clock.unreached)
	}
	if !f.same(k.lastLogged) || now.Sub(k.loggedAt) > sameReasonAgain {
		k.lastLogged, k.loggedAt = f.Reason, now
		attrs := []any{"name", k.name, "error", f.Reason}
		if f.Fix != "" {
			attrs = append(attrs, "hint", f.Fix)
		}
		attrs = append(attrs, "retry_at", second(k.mayTry))
		text := "no certificate yet"
		if h := k.held(); h != nil {
			text = "certificate not renewed"
			attrs = append(attrs, "not_after", second(h.leaf().NotAfter))
		}
		k.log.Error(text, attrs...)
	}
	k.tell(f, k.mayTry)
	return f
}

// sameReasonAgain is after how long the same reason is worth another line.
const sameReasonAgain = 6 * time.Hour

// tell is what handshakes and Status hear.
func (k *keeper) tell(f *Failure, next time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f != nil || k.current != nil {
		if !k.told {
			close(k.ready)
			k.told = true
		}
	}
	if f != nil || k.failures == 0 {
		k.failure = f
	}
	k.next = next
}

// obey does what a person has asked for.
func (k *keeper) obey(ctx context.Context, o order) error {
	k.load(ctx)
	if o.reload {
		return nil
	}
	h := k.held()
	if o.revoke {
		if h == nil {
			return &ConfigError{Problem: "there is no certificate of " + k.name + " to revoke"}
		}
		if err := h.from.revoke(ctx, h.pair); err != nil {
			return explainRevocation(ctx, k.name, h.from, err)
		}
		k.log.Warn("certificate revoked", "name", k.name, "serial", fmt.Sprintf("%x", h.leaf().SerialNumber))
		k.revoked = true
		// Served it is until there is another, but not after a restart.
		if err := k.forget(ctx, h); err != nil {
			k.log.Error("the revoked certificate is still in the storage", "name", k.name, "error", err, "hint", storageFix(err))
		}
	}
	err := k.renew(ctx, always)
	if err != nil && o.revoke {
		return fmt.Errorf("revoked, but not replaced yet: %w", err)
	}
	return err
}

// forget removes h from the storage. Whoever renews it just now is let finish: what he stores is another.
func (k *keeper) forget(ctx context.Context, h *held) error {
	limited, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	lock := issueLock(k.name)
	if err := k.storage.Lock(limited, lock); err != nil {
		return err
	}
	defer k.storage.Unlock(context.WithoutCancel(ctx), lock)
	name := pairName(h.from.issuer, k.name)
	p, err := k.storage.loadPair(limited, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !p.leaf().Equal(h.leaf()) {
		return err
	}
	return k.storage.remove(limited, name)
}

// leaf is the certificate itself.
func (p *pair) leaf() *x509.Certificate { return p.chain[0] }

func (k *keeper) report() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := Status{Name: k.name, NextRenewal: k.next}
	if h := k.current; h != nil {
		s.Issuer, s.NotBefore, s.NotAfter = h.from.Directory, h.leaf().NotBefore, h.leaf().NotAfter
		if h.staple != nil {
			s.StapleUntil = h.staple.Until
		}
	}
	if k.failure != nil {
		s.LastError, s.Hint = k.failure.Reason, k.failure.Fix
	}
	return s
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
