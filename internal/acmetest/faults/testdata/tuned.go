package acme

import (
	"encoding/json"
	"os"
	"time"

	"github.com/caddyserver/certmagic"
)

// The tests of internal/acmetest/faults compile this file into raimons (go build -overlay); nobody else does.
var _ = tune(os.Getenv("RAIMONS_TUNING"))

// tune changes what RAIMONS_TUNING, an object in JSON, has; durations are in nanoseconds, zero leaves a
// constant as it is.
func tune(text string) error {
	if text == "" {
		return nil
	}
	var tuning struct {
		Ahead       time.Duration // how far the clock is ahead
		Look        time.Duration
		Pause       time.Duration // the first after a failure of any kind; the last is four times as long
		HTTPTimeout time.Duration // of each request to a CA
		Unlimited   bool          // certmagic limits no process to 10 orders in 10 s
	}
	if err := json.Unmarshal([]byte(text), &tuning); err != nil {
		panic(err)
	}
	if tuning.Ahead != 0 {
		standardClock.now = func() time.Time { return time.Now().Add(tuning.Ahead) }
	}
	if tuning.Look != 0 {
		standardClock.look = tuning.Look
	}
	if p := tuning.Pause; p != 0 {
		standardClock.unreached, standardClock.lastUnreached = p, 4*p
		standardClock.refused, standardClock.lastRefused = p, 4*p
		standardClock.staple = p
	}
	if tuning.HTTPTimeout != 0 {
		certmagic.HTTPTimeout = tuning.HTTPTimeout
	}
	if tuning.Unlimited {
		certmagic.RateLimitEvents = 1 << 20
	}
	return nil
}
