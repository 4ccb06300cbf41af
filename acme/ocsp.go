package acme

import (
	"context"
	"errors"
	"time"

	"github.com/caddyserver/certmagic"

	"raimon/internal/staple"
)

// refreshStaple asks the CA's responder when half of the staple's validity has passed.
func (k *keeper) refreshStaple(ctx context.Context, h *held) {
	if k.stapleDue(h).After(k.clock.now()) {
		return
	}
	s, err := staple.Fetch(ctx, nil, h.chain)
	switch {
	case errors.Is(err, staple.ErrRevoked):
		if !k.revoked {
			k.log.Error("certificate was revoked by its CA: it is replaced", "name", k.name, "error", err)
		}
		k.revoked = true
		k.mayStaple = k.clock.now().Add(k.clock.staple)
		return
	case err != nil:
		k.mayStaple = k.clock.now().Add(k.clock.staple)
		k.log.Debug("no new OCSP staple", "name", k.name, "error", err)
		if h.staple != nil && h.staple.Lapsed(k.clock.now()) && ctx.Err() == nil {
			k.log.Warn("OCSP staple dropped: the responder has no newer one", "name", k.name, "error", err)
			k.serveStaple(h, nil)
		}
		return
	}
	k.mayStaple = time.Time{}
	k.serveStaple(h, s)
	if err := k.storage.store(ctx, stapleKey(h, k.name), s.DER); err != nil {
		k.log.Debug("OCSP staple not stored", "name", k.name, "error", err)
	}
}

// loadStaple takes the staple that was stored for h, so that a responder that is away does not matter.
func (k *keeper) loadStaple(ctx context.Context, h *held) {
	if len(h.leaf().OCSPServer) == 0 {
		return
	}
	der, err := k.storage.load(ctx, stapleKey(h, k.name), plausible)
	if err != nil {
		return // it is asked for
	}
	// One that belongs to the previous certificate is overwritten by the next.
	if s, err := staple.Parse(der, h.chain); err == nil && s.Check(k.clock.now()) == nil {
		h.setStaple(s)
	}
}

func stapleKey(h *held, name string) string {
	return "ocsp/" + certmagic.StorageKeys.Safe(h.from.issuer.IssuerKey()) + "/" + certmagic.StorageKeys.Safe(name)
}

func (h *held) setStaple(s *staple.Staple) {
	h.staple, h.served = s, nil
	if s != nil {
		stapled := *h.certificate
		stapled.OCSPStaple = s.DER
		h.served = &stapled
	}
}

func (k *keeper) serveStaple(h *held, s *staple.Staple) {
	next := *h
	next.setStaple(s)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.current = &next
}

// stapleDue is when to ask the responder; never for a certificate that names none, or that is over.
func (k *keeper) stapleDue(h *held) time.Time {
	if len(h.leaf().OCSPServer) == 0 || h.leaf().NotAfter.Before(k.clock.now()) {
		return k.clock.now().Add(forever)
	}
	if h.staple == nil {
		return k.mayStaple
	}
	return later(h.staple.Refresh(), k.mayStaple)
}
