package acme

import (
	"context"
	"time"

	"github.com/caddyserver/certmagic"
)

const (
	windowTimeout = 15 * time.Second
	// pulledAgain is how long a CA that wants a renewal at once waits for the next.
	pulledAgain = time.Hour
)

// window is when a CA wants a certificate to be renewed (RFC 9773).
type window struct {
	renew   time.Time // zero: the CA has no opinion
	refresh time.Time // ask again
}

// windowDue is when to ask the CA again about h; never when that is over.
func (k *keeper) windowDue(h *held) time.Time {
	if now := k.clock.now(); h.leaf().NotAfter.Before(now) {
		return now.Add(forever)
	}
	return k.window.refresh
}

// refreshWindow asks the CA when it wants h to be renewed.
func (k *keeper) refreshWindow(ctx context.Context, h *held) {
	now := k.clock.now()
	if k.windowDue(h).After(now) {
		return
	}
	limited, cancel := context.WithTimeout(ctx, windowTimeout)
	defer cancel()
	info, err := h.from.issuer.GetRenewalInfo(limited, certmagic.Certificate{Certificate: *h.certificate})
	k.window.refresh = now.Add(6 * time.Hour)
	if err != nil {
		// Old CAs have no such thing; then the lifetime decides.
		k.log.Debug("no renewal information", "name", k.name, "error", err)
		k.window.refresh = now.Add(time.Hour)
		return
	}
	if info.RetryAfter != nil {
		// RFC 9773, section 4.3.2: within sensible limits.
		k.window.refresh = earlier(later(*info.RetryAfter, now.Add(time.Minute)), now.Add(24*time.Hour))
	}
	if !info.HasWindow() {
		return
	}
	// The time was drawn when the window was first heard of; a new draw must not put it off.
	before := k.due(h)
	if w := info.SuggestedWindow; k.window.renew.IsZero() || k.window.renew.Before(w.Start) || k.window.renew.After(w.End) {
		k.window.renew = info.SelectedTime
	}
	if due := k.due(h); due.Before(before.Add(-lifetime(h) / 20)) {
		attrs := []any{"name", k.name, "next_renewal", second(due)}
		if info.ExplanationURL != "" {
			attrs = append(attrs, "explanation", info.ExplanationURL)
		}
		k.log.Info("the CA wants an early renewal", attrs...)
	}
}
