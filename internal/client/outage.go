package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"raimon/tunnel"
)

const (
	firstPause = 200 * time.Millisecond // between two attempts
	// longestPause is what a person still bears who has just opened the laptop.
	longestPause = 5 * time.Second
)

// outage is the time in which an edge cannot be reached. Those who wait for its end take turns at trying, with
// growing pauses, so that an edge that comes back is not met by all of them at once. The log has one line for
// its beginning and one for its end.
type outage struct {
	link *link

	mu      sync.Mutex
	since   time.Time // zero: there is none
	cause   error
	final   bool // cause is nothing that time heals
	trying  bool // somebody does
	backoff backoff
	changed chan struct{} // closed when any of this has changed; nil: nobody waits
	failed  int           // attempts
	reached time.Time     // when an attempt last went well

	cut      time.Time               // when attempts were last ended because addresses had changed
	network  context.Context         // ends when the network changes, and what is tried over the old one with it; nil: not used yet
	leave    context.CancelCauseFunc // ends network
	replaced bool                    // nothing is tried any more: the link has an heir
}

// errNetworkChanged ends an attempt over a network that is no more: the system would try for seconds.
var errNetworkChanged = errors.New("the network has changed")

// errReplaced says that a program that waits has to go on with the heir of its link.
var errReplaced = errors.New("another tunnel has taken this one's place")

// turn returns nil when an attempt may begin; at once where the deadline has passed already. It fails when ctx ends,
// or when deadline passes without the edge having come back.
func (o *outage) turn(ctx context.Context, deadline time.Time) error {
	for {
		o.mu.Lock()
		pause := time.Until(o.backoff.until)
		late := !time.Now().Before(deadline)
		if o.replaced {
			o.mu.Unlock()
			return errReplaced
		}
		if o.since.IsZero() || o.final || late || !o.trying && pause <= 0 {
			o.trying = !o.since.IsZero()
			o.mu.Unlock()
			return nil
		}
		changed, trying := o.change(), o.trying
		o.mu.Unlock()
		if left := time.Until(deadline); trying || left < pause {
			pause = left
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-changed:
			timer.Stop()
		case <-timer.C:
			if !time.Now().Before(deadline) {
				return o.over()
			}
		}
	}
}

// over is the error of those who have waited for too long.
func (o *outage) over() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cause == nil {
		return tunnel.ErrTimeout
	}
	return tunnel.Told{Err: o.cause}
}

// try makes an attempt, which ends with errNetworkChanged when the network changes, or with errReplaced, and notes how it went.
func (o *outage) try(ctx context.Context, attempt func(context.Context) error) error {
	o.mu.Lock()
	if o.replaced {
		o.mu.Unlock()
		return errReplaced
	}
	if o.network == nil {
		o.network, o.leave = context.WithCancelCause(context.Background())
	}
	network := o.network
	o.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(network, func() { cancel(context.Cause(network)) })()
	began := time.Now()
	err := attempt(ctx)
	if err != nil && ctx.Err() != nil {
		o.giveUp() // the time limit of an attempt is the attempt's own
		if cause := context.Cause(ctx); cause == errNetworkChanged || cause == errReplaced {
			return cause
		}
		return err
	}
	if isStarved(err) {
		o.giveUp()
		return err
	}
	return o.tell(began, err)
}

// straggler is why an attempt failed that says nothing of the edge, since a later one has reached it. The log does not know of it.
type straggler struct{ error }

func (e straggler) Unwrap() error { return e.error }

// giveUp notes the end of an attempt that says nothing of the edge.
func (o *outage) giveUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.trying = false
	o.broadcast()
}

// tell notes how an attempt went that began then. It returns err, as a straggler if it is one.
func (o *outage) tell(began time.Time, err error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.broadcast()
	o.trying = false
	log := o.link.log()
	switch {
	case err == nil:
		if !o.since.IsZero() {
			log.Info("the edge is reached again", "remote", o.link.Remote, "after", time.Since(o.since).Round(100*time.Millisecond).String(), "attempts", o.failed+1)
		}
		o.since, o.cause, o.final, o.backoff, o.failed = time.Time{}, nil, false, backoff{}, 0
		o.reached = time.Now()
	case began.Before(o.reached) && !isFinal(err):
		return straggler{err}
	case o.since.IsZero() || isFinal(err) && !o.final:
		patience := slog.Attr{}
		if o.link.Wait > 0 && !isFinal(err) {
			patience = slog.String("programs_wait", o.link.Wait.String())
		}
		level := slog.LevelWarn
		if o.link.client.Quiet && (isFinal(err) || o.link.Wait == 0) {
			level = slog.LevelDebug // the caller of Handle has it at once
		}
		log.Log(context.Background(), level, "the edge cannot be reached", "remote", o.link.Remote, "error", err, o.link.client.hint(err), patience)
		if o.since.IsZero() {
			o.since = time.Now()
		}
		o.failure(err)
	default:
		log.Debug("the edge still cannot be reached", "remote", o.link.Remote, "error", err)
		o.failure(err)
	}
	return err
}

// failure begins the pause after an attempt. The caller holds mu.
func (o *outage) failure(err error) {
	o.failed++
	o.cause, o.final = err, isFinal(err)
	o.backoff.grow(firstPause, longestPause)
}

// retry lets an attempt begin at once, because the network has changed. Those that are under way are over, for they go the old way:
// if it is only addresses that have changed, once in Timeout, since these may come and go all the time.
func (o *outage) retry(isOther bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !isOther && time.Since(o.cut) > o.link.timeout() {
		o.cut = time.Now()
		isOther = true
	}
	if isOther && o.leave != nil {
		o.leave(errNetworkChanged)
		o.network, o.leave = nil, nil
	}
	o.backoff = backoff{}
	o.broadcast()
}

// replace ends what is under way, and all who wait, with errReplaced.
func (o *outage) replace() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.replaced = true
	if o.leave != nil {
		o.leave(errReplaced)
	}
	o.broadcast()
}

// state is since when the edge cannot be reached, and why; zero: it can, as far as is known.
func (o *outage) state() (since time.Time, cause error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.since, o.cause
}

// watch is since when the edge cannot be reached, zero if it can, and a channel that is closed when more is known.
func (o *outage) watch() (since time.Time, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		return time.Time{}, nil
	}
	return o.since, o.change()
}

// change is closed when any of o has changed. The caller holds mu.
func (o *outage) change() <-chan struct{} {
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.changed
}

// broadcast wakes whoever waits for a change. The caller holds mu.
func (o *outage) broadcast() {
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
}

// isFinal tells whether err says that trying again would not help: the edge, or what stands before it, has said no.
func isFinal(err error) bool {
	var (
		upgrade   *tunnel.UpgradeError
		refusal   *tunnel.ProxyRefusal
		pin       *tunnel.PinError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		noTLS     tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &upgrade):
		return isNo(upgrade.Status)
	case errors.As(err, &refusal):
		return isNo(refusal.Status) && refusal.Status/100 != 3 // a network that wants a login soon has it
	case errors.As(err, &noTLS), errors.As(err, &pin), errors.As(err, &authority), errors.As(err, &hostname), errors.As(err, &invalid), errors.Is(err, tunnel.ErrToken), errors.Is(err, tunnel.ErrNoTargets):
		return true
	}
	return strings.Contains(err.Error(), "remote error: tls:")
}

// isNo tells whether the status of an HTTP answer will be the same the next time.
func isNo(status int) bool {
	return status < 500 && status != http.StatusTooManyRequests && status != http.StatusRequestTimeout
}

// isStarved tells whether err says that this program, or this machine, has no descriptor left: that tells nothing of
// the edge, and those who waited would keep the descriptors that they wait for.
func isStarved(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}
