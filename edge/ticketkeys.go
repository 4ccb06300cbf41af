package edge

import (
	"cmp"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"log/slog"
	"slices"
	"sync"
	"time"
	"weak"
)

const (
	// ticketLook is how often Run looks at the wall clock: timers stand still while a machine sleeps,
	// and do not notice that a clock was set.
	ticketLook = time.Minute

	// ticketLeave is how long Run waits for a storage that does not notice the end of ctx.
	ticketLeave = 5 * time.Second
)

// TicketKeys gives TLS configs keys for session tickets (RFC 5077; RFC 8446, section 4.6.1) that are
// new every day, that outlive a restart where there is a storage, and that no two sites share: crypto/tls
// by itself forgets them at the end, and lets a ticket of one config open every other config that
// comes from the same GetConfigForClient.
//
// Set the fields, Bind the configs, then call Run beside the listeners. Edges with one storage read
// each other's tickets. To make tickets worthless, delete the value "ticket-keys" from the storage: within
// the hour every edge has new keys. Only tickets from while an edge was without its storage outlive that,
// until the edge ends.
type TicketKeys struct {
	// Storage keeps the secrets that keys are derived from; nil means that they end with the process.
	Storage KeyStorage
	// Log gets a line when the storage begins to fail, and one when it works again; nil means slog.Default.
	Log *slog.Logger

	mu      sync.Mutex
	stored  ticketSecrets  // what Storage held when it was last read
	local   ticketSecrets  // of this process alone
	inUse   []ticketSecret // the first encrypts, all of them decrypt
	bound   map[weak.Pointer[tls.Config]]ticketUse
	failing bool
}

// ticketUse is what a key is for.
type ticketUse struct{ site, policy string }

// Bind gives config keys of its own, now and at each rotation, for as long as it is in use somewhere. A
// ticket is good for the same site and policy only, in whichever process: policy names what a client had to
// show, such as a digest of the CAs for client certificates. Both are compared byte by byte. A
// config with SessionTicketsDisabled is left alone. After Bind, config is not to be changed.
//
// Bind what a handshake ends up with. A config that GetConfigForClient returns uses the keys of the
// config it came from, rotation included, if it was not bound itself and is no clone of a bound one: a
// clone keeps the keys of the moment forever. So bind every config that GetConfigForClient chooses by site.
func (k *TicketKeys) Bind(config *tls.Config, site, policy string) {
	if config.SessionTicketsDisabled {
		return
	}
	k.update(time.Now())
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.bound == nil {
		k.bound = make(map[weak.Pointer[tls.Config]]ticketUse)
	}
	use := ticketUse{site, policy}
	k.bound[weak.Make(config)] = use
	config.SetSessionTicketKeys(use.keys(k.inUse))
}

// Run rotates the keys until ctx ends, and keeps them in step with Storage. Nobody waits for the
// storage: until it has answered, and for as long as it holds no secret of the day, tickets are encrypted
// with keys of this process alone. A storage that ignores the end of ctx is left behind after 5 seconds.
func (k *TicketKeys) Run(ctx context.Context) {
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		if k.Storage != nil {
			k.follow(ctx)
		}
	}()

	timer := time.NewTimer(0)
	defer timer.Stop()
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-timer.C:
			now := time.Now()
			timer.Reset(min(k.update(now).Sub(now), ticketLook))
		}
	}

	timer.Reset(ticketLeave)
	select {
	case <-followed:
	case <-timer.C:
		k.log().Warn("storage of session ticket keys does not answer, left behind")
	}
}

// update chooses the secrets for now, gives their keys to all configs if they have changed, and
// returns when they change next.
func (k *TicketKeys) update(now time.Time) time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	stored := k.stored.kept(now)
	k.local = k.local.kept(now)
	front, ok := stored.current(now)
	if !ok {
		front, ok = k.local.current(now)
	}
	if !ok {
		front = newTicketSecret(now)
		k.local = k.local.with(front)
	}

	inUse := []ticketSecret{front}
	for _, list := range []ticketSecrets{stored, k.local} {
		for _, s := range slices.Backward(list) {
			if s != front {
				inUse = append(inUse, s)
			}
		}
	}
	changed := !slices.Equal(inUse, k.inUse)
	k.inUse = inUse
	for p, use := range k.bound {
		switch config := p.Value(); {
		case config == nil:
			delete(k.bound, p)
		case changed:
			config.SetSessionTicketKeys(use.keys(inUse)) // safe beside handshakes
		}
	}

	next := front.end()
	for _, s := range inUse {
		for _, t := range []time.Time{s.begin(), s.end(), s.expiry()} {
			if t.After(now) && t.Before(next) {
				next = t
			}
		}
	}
	return next
}

// adopt takes up what the storage holds.
func (k *TicketKeys) adopt(stored ticketSecrets) {
	k.mu.Lock()
	k.stored = stored
	k.mu.Unlock()
	k.update(time.Now())
}

// keys derives a key from each secret.
func (u ticketUse) keys(secrets []ticketSecret) [][32]byte {
	// The lengths keep site "a" with policy "bc" apart from "ab" with "c".
	info := []byte("raimon session ticket key 1")
	for _, part := range []string{u.site, u.policy} {
		info = binary.BigEndian.AppendUint64(info, uint64(len(part)))
		info = append(info, part...)
	}
	keys := make([][32]byte, len(secrets))
	for i, s := range secrets {
		key, err := hkdf.Key(sha256.New, s.secret[:], nil, string(info), len(keys[i]))
		if err != nil {
			panic(err) // the lengths are constant, and fine
		}
		keys[i] = [32]byte(key)
	}
	return keys
}

func (k *TicketKeys) log() *slog.Logger { return cmp.Or(k.Log, slog.Default()) }
