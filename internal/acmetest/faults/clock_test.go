//go:build unix

package faults

import (
	"crypto/tls"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"raimon/internal/acmetest"
)

const day = 24 * time.Hour

// The clock of the edge is wrong: the CA's certificates are not valid yet, or have less time left, or are
// over when they come. Clients have the right time. (It is raimons's own clock that is changed: what Go's
// TLS and certmagic look at stays right.)
func TestClockADayOff(t *testing.T) {
	t.Parallel()
	for about, test := range map[string]struct {
		ahead, validity time.Duration
		over            bool // the certificate is over, or due, when it comes
	}{
		"behind":                         {-day, 90 * day, false},
		"behind, short-lived":            {-day, 6 * time.Hour, false},
		"ahead":                          {day, 90 * day, false},
		"ahead, six days":                {day, 6 * day, false},
		"ahead, due when it comes":       {day, 30 * time.Hour, true},
		"ahead, over when it comes":      {day, 6 * time.Hour, true},
		"far behind, as without battery": {-20000 * day, 90 * day, false},
	} {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			ca := acmetest.New(t, profile(test.validity))
			dir := t.TempDir()
			s := setup{cas: []*acmetest.CA{ca}, storage: dir, tuning: &tuning{Ahead: test.ahead, Look: 100 * time.Millisecond}}
			e := s.start(t)
			reachable(e)
			e.servedSoon(t, name)
			// The keeper looks around many times.
			for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); {
				if _, err := e.serves(name); err != nil {
					t.Fatal(err)
				}
			}
			if n := ca.Accepted(acmetest.NewOrder); n > 2 {
				t.Errorf("%d orders within seconds", n)
			}
			if n := e.Log.Count(`"hint":"[^"]*clock`); test.over && n == 0 {
				t.Errorf("no word about the clock of this machine:\n%s", e.Log)
			}
			e.kill(t)

			again := s.start(t)
			reachable(again)
			if _, err := again.serves(name); err != nil {
				t.Errorf("after a restart: %v", err)
			}
		})
	}
}

// A certificate from the storage is over, but says a clock that is a day ahead: it goes on being served
// until there is another.
func TestClockAheadWithoutCA(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, profile(6*time.Hour))
	dir, leaf := prepared(t, ca, "")
	if err := ca.Down(); err != nil {
		t.Fatal(err)
	}

	e := setup{cas: []*acmetest.CA{ca}, storage: dir, tuning: &tuning{Ahead: day}}.start(t)
	if got, err := e.serves(name); err != nil || !got.Equal(leaf) {
		t.Errorf("%v; want the certificate that was there", err)
	}
}

// What the responder says is from tomorrow: clients would refuse it.
func TestStapleFromTomorrow(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{OCSP: true})
	ca.OCSP.SetAhead(day)
	e := setup{cas: []*acmetest.CA{ca}, storage: t.TempDir(), tuning: &tuning{Pause: 200 * time.Millisecond, Look: 200 * time.Millisecond}}.start(t)
	reachable(e)

	e.servedSoon(t, name)
	atLeast(t, 3, "requests for staples", func() int { return ca.OCSP.Requests() })
	state, err := handshake(e.Address, name)
	if err != nil {
		t.Fatal(err)
	}
	if len(state.OCSPResponse) > 0 {
		t.Error("a staple from tomorrow is served")
	}
	e.noErrors(t)

	ca.OCSP.SetAhead(0)
	eventually(t, func() error {
		state, err = handshake(e.Address, name)
		if err != nil {
			return err
		}
		return goodStaple(state, ca)
	})
}

func goodStaple(state *tls.ConnectionState, ca *acmetest.CA) error {
	_, err := ocsp.ParseResponseForCert(state.OCSPResponse, state.PeerCertificates[0], ca.Issuer())
	return err
}
