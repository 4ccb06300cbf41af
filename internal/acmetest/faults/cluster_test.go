//go:build unix

package faults

import (
	"fmt"
	"math/big"
	"path/filepath"
	"testing"
	"time"

	"raimon/internal/acmetest"
)

// agree waits until all edges serve the same certificate, another than old.
func agree(t testing.TB, name string, old *big.Int, edges ...*edge) *big.Int {
	t.Helper()
	var serial *big.Int
	eventually(t, func() error {
		serial = nil
		for i, e := range edges {
			leaf, err := e.serves(name)
			switch {
			case err != nil:
				return fmt.Errorf("edge %d: %w", i, err)
			case old != nil && leaf.SerialNumber.Cmp(old) == 0:
				return fmt.Errorf("edge %d still serves the old certificate", i)
			case serial != nil && leaf.SerialNumber.Cmp(serial) != 0:
				return fmt.Errorf("edge %d serves another certificate than the others", i)
			}
			serial = leaf.SerialNumber
		}
		return nil
	})
	return serial
}

func TestTwoStartAtOnce(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	s := setup{cas: []*acmetest.CA{ca}, storage: t.TempDir()}
	a, b := s.start(t), s.start(t)
	reachable(a, b) // half of each validation comes to the one that did not ask

	agree(t, name, nil, a, b)
	if n := ca.Accepted(acmetest.NewOrder); n != 1 {
		t.Errorf("%d orders, want one", n)
	}
	if n := len(ca.Accounts()); n != 1 {
		t.Errorf("%d accounts, want one", n)
	}
	a.noErrors(t)
	b.noErrors(t)
}

func TestTwoRenewOnce(t *testing.T) {
	t.Parallel()
	const validity, renewals = 12 * time.Second, 2
	for about, config := range map[string]acmetest.Config{
		"at half time": {Profiles: profile(validity).Profiles, RenewalWindow: func(_, notAfter time.Time) (start, end time.Time) {
			return notAfter.Add(time.Hour), notAfter.Add(2 * time.Hour)
		}},
		// Each draws a moment of its own in the window of RFC 9773.
		"within a window": {Profiles: profile(validity).Profiles, RenewalWindow: func(notBefore, _ time.Time) (start, end time.Time) {
			return notBefore.Add(2 * time.Second), notBefore.Add(5 * time.Second)
		}},
	} {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			ca := acmetest.New(t, config)
			s := setup{cas: []*acmetest.CA{ca}, storage: t.TempDir()}
			a, b := s.start(t), s.start(t)
			reachable(a, b)

			serial := agree(t, name, nil, a, b)
			for range renewals {
				serial = agree(t, name, serial, a, b)
			}
			orders := ca.Accepted(acmetest.NewOrder)
			issued := ca.Issued()
			if time.Since(issued[len(issued)-1].NotBefore) > 2*time.Second {
				t.Skip("too slow to tell: the next renewal may have begun")
			}
			if orders != 1+renewals {
				t.Errorf("%d orders for %d certificates", orders, 1+renewals)
			}
			eventually(t, func() error {
				const line = `"certificate loaded"`
				if n := a.Log.Count(line) + b.Log.Count(line); n < renewals {
					return fmt.Errorf("%d times one took up what the other had obtained, want %d", n, renewals)
				}
				return nil
			})
			a.noErrors(t)
			b.noErrors(t)
		})
	}
}

// The kernel frees the lock of who is killed.
func TestKilledWithLock(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, profile(time.Hour))
	ca.Fail(acmetest.Hang(), acmetest.NewOrder)
	s := setup{cas: []*acmetest.CA{ca}, storage: t.TempDir()}
	a := s.start(t)
	atLeast(t, 1, "orders", func() int { return ca.Requests(acmetest.NewOrder) })
	s.more = ";loglevel=debug"
	b := s.start(t)
	reachable(b)
	b.Log.Wait(t, `"certmagic: acquiring lock"`)
	ca.Mend()
	if len(ca.Issued()) > 0 {
		t.Fatal("there is a certificate already: nobody waits")
	}

	a.kill(t)
	begin := time.Now()
	b.servedSoon(t, name)
	if d := time.Since(begin); d > atOnce {
		t.Errorf("%v from the end of the holder of the lock to the certificate", d)
	}
	if n := ca.Requests(acmetest.NewOrder); n != 2 {
		t.Errorf("%d orders, want one of each", n)
	}
	b.noErrors(t)
}

// The CA comes to a process that did not ask, and does not know the name either.
func TestChallengeAnsweredByTheOther(t *testing.T) {
	t.Parallel()
	for about, s := range map[string]setup{
		"TLS-ALPN-01": {},
		// Without a TCP port there is nowhere to answer TLS-ALPN-01.
		"HTTP-01": {http: true, listen: "unix:"},
	} {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			ca := acmetest.New(t, acmetest.Config{})
			s.cas, s.storage = []*acmetest.CA{ca}, t.TempDir()
			start := func(name string) *edge {
				s := s
				s.names = []string{name}
				if s.listen != "" {
					s.listen += filepath.Join(t.TempDir(), "edge")
				}
				return s.start(t)
			}
			other := start("other.example")
			reachable(other)
			other.servedSoon(t, "other.example")

			asks := start(name) // and is not made reachable
			asks.servedSoon(t, name)
			asks.noErrors(t)
			other.noErrors(t)
		})
	}
}
