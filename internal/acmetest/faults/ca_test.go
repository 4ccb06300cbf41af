//go:build unix

package faults

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"raimon/internal/acmetest"
)

// atOnce is far less than any pause or time limit that a start could run into.
const atOnce = 4 * time.Second

func TestCADownWithCertificate(t *testing.T) {
	t.Parallel()
	for about, fault := range map[string]func(*acmetest.CA) error{
		"refused": (*acmetest.CA).Down,
		"hangs":   func(ca *acmetest.CA) error { ca.Fail(acmetest.Hang()); return nil },
	} {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			ca := acmetest.New(t, acmetest.Config{})
			dir, leaf := prepared(t, ca, "")
			if err := fault(ca); err != nil {
				t.Fatal(err)
			}

			begin := time.Now()
			e := setup{cas: []*acmetest.CA{ca}, storage: dir}.start(t)
			got, err := e.serves(name)
			if err != nil || !got.Equal(leaf) {
				t.Fatalf("got %v; want the certificate that was there", err)
			}
			if d := time.Since(begin); d > atOnce {
				t.Errorf("the first handshake was over %v after the start: it has waited for the CA", d)
			}
			e.noErrors(t)
		})
	}
}

func TestCADownWithoutCertificate(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	if err := ca.Down(); err != nil {
		t.Fatal(err)
	}

	e := setup{cas: []*acmetest.CA{ca}, storage: t.TempDir()}.start(t)
	reachable(e)
	c, err := net.DialTimeout("tcp", e.Address, atOnce)
	if err != nil {
		t.Fatalf("the port is not open: %v", err)
	}
	c.Close()
	e.Log.Wait(t, `"no certificate yet".*cannot be reached.*"hint":"is the CA up`)
	begin := time.Now()
	if _, err := e.shown(name); err == nil {
		t.Error("a certificate is shown, though there is none")
	}
	if d := time.Since(begin); d > atOnce {
		t.Errorf("a handshake took %v to fail", d)
	}

	if err := ca.Up(); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	e.servedSoon(t, name)
	// The pause before the second attempt is 6 s at most.
	if d := time.Since(begin); d > 6*time.Second+atOnce {
		t.Errorf("%v from the return of the CA to the certificate", d)
	}
	if n := e.Log.Count(`"level":"ERROR"`); n != 1 {
		t.Errorf("%d error lines, want one:\n%s", n, e.Log)
	}
}

// arrivals notes when requests come.
type arrivals struct {
	mu    sync.Mutex
	times []time.Time
}

// with answers as answer does.
func (a *arrivals) with(answer acmetest.Fault) acmetest.Fault {
	return func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.times = append(a.times, time.Now())
		a.mu.Unlock()
		answer(w, r)
	}
}

// all is when requests came, the oldest first. Acmez makes up to three of one that is answered with 5xx.
func (a *arrivals) all() []time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.times)
}

func (a *arrivals) count() int { return len(a.all()) }

func TestPausesGrow(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	var a arrivals
	ca.Fail(a.with(acmetest.Plain(http.StatusBadGateway, 0)), acmetest.Directory) // one request for each attempt

	const pause = time.Second
	setup{cas: []*acmetest.CA{ca}, storage: t.TempDir(), tuning: &tuning{Pause: pause}}.start(t)
	atLeast(t, 4, "attempts", a.count)

	attempts := a.all()
	for i, want := range []time.Duration{pause, 2 * pause, 4 * pause} {
		if d := attempts[i+1].Sub(attempts[i]); d < want {
			t.Errorf("%v between attempts %d and %d, want %v at least", d, i+1, i+2, want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	const asked = 4 * time.Second
	for about, fault := range map[string]acmetest.Fault{
		"429 problem": acmetest.RateLimited(asked),
		"503 problem": acmetest.Problem(http.StatusServiceUnavailable, "serverInternal", asked),
		"429 plain":   acmetest.Plain(http.StatusTooManyRequests, asked),
		"503 plain":   acmetest.Plain(http.StatusServiceUnavailable, asked),
	} {
		for _, resource := range []string{acmetest.Directory, acmetest.NewOrder} {
			t.Run(about+" "+resource, func(t *testing.T) {
				t.Parallel()
				ca := acmetest.New(t, acmetest.Config{})
				var a arrivals
				ca.Fail(a.with(fault), resource)
				// Our own pauses would hide whether the CA's is kept.
				e := setup{cas: []*acmetest.CA{ca}, storage: t.TempDir(), tuning: &tuning{Pause: 10 * time.Millisecond}}.start(t)
				reachable(e)

				found, err := e.Log.Find(regexp.MustCompile(`"time":"([^"]+)".*rate-limited until ([0-9T:-]+Z)`))
				if err != nil {
					t.Fatal(err)
				}
				logged, err := time.Parse(time.RFC3339Nano, found[1])
				if err != nil {
					t.Fatal(err)
				}
				// Those of the first attempt came before it was logged.
				firsts := func() int { return len(slices.DeleteFunc(a.all(), logged.Before)) }
				atLeast(t, 1, "requests after the first attempt", func() int { return a.count() - firsts() })
				last, next := a.all()[firsts()-1], a.all()[firsts()]
				if until, err := time.Parse(time.RFC3339, found[2]); err != nil || until.Before(last.Add(asked-time.Second)) || until.After(logged.Add(asked)) {
					t.Errorf("the log says until %s, %v; the CA was asked at %v and wants %v", found[2], err, last, asked)
				}
				if d := next.Sub(last); d < asked {
					t.Errorf("the next attempt came after %v, the CA has asked for %v", d, asked)
				}
				if n := firsts(); n > 3 {
					t.Errorf("%d requests of the first attempt: the CA wants none for now", n)
				}
				ca.Mend()
				e.servedSoon(t, name)
			})
		}
	}
}

// Each name that a CA puts off is put off as long as the CA says, though the answers come all at once.
func TestRetryAfterForManyNames(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	ca.Fail(acmetest.RateLimited(time.Hour), acmetest.NewOrder)
	var names []string
	for i := range 7 {
		names = append(names, fmt.Sprintf("n%d.example", i))
	}
	begin := time.Now()
	e := setup{names: names, cas: []*acmetest.CA{ca}, storage: t.TempDir()}.start(t)

	for _, n := range names {
		found, err := e.Log.Find(regexp.MustCompile(`"no certificate yet","name":"` + n + `".*"retry_at":"([^"]+)"`))
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339Nano, found[1])
		if err != nil || at.Before(begin.Add(time.Hour-time.Second)) {
			t.Errorf("%s: the next attempt is planned for %s, %v; the CA wants it after %v", n, found[1], err, begin.Add(time.Hour))
		}
	}
}

// While one CA does not want to be asked, the next one issues and renews.
func TestSecondCAIssuesMeanwhile(t *testing.T) {
	t.Parallel()
	for about, tt := range map[string]struct {
		fault    acmetest.Fault
		requests int // of one attempt
	}{
		"429": {acmetest.RateLimited(5 * time.Minute), 1},
		"503": {acmetest.Plain(http.StatusServiceUnavailable, 5*time.Minute), 3},
	} {
		t.Run(about, func(t *testing.T) {
			t.Parallel()
			first, second := acmetest.New(t, profile(time.Hour)), acmetest.New(t, profile(6*time.Second))
			var a arrivals
			first.Fail(a.with(tt.fault), acmetest.NewOrder)
			e := setup{cas: []*acmetest.CA{first, second}, storage: t.TempDir()}.start(t)
			reachable(e)

			leaf := e.servedSoon(t, name)
			if err := verify([]*x509.Certificate{leaf, second.Issuer()}, name, time.Now(), second); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				leaf = e.replacedSoon(t, name, leaf)
			}
			if n := a.count(); n != tt.requests {
				t.Errorf("%d requests to the first CA, want the %d of one attempt: it wants none for now", n, tt.requests)
			}
		})
	}
}

// A CA that cannot be reached does not have to wait for another's Retry-After, nor the other way round.
func TestEachCAHasItsOwnTime(t *testing.T) {
	t.Parallel()
	for _, limitedFirst := range []bool{true, false} {
		t.Run(fmt.Sprintf("limited first %t", limitedFirst), func(t *testing.T) {
			t.Parallel()
			limited, down := acmetest.New(t, acmetest.Config{}), acmetest.New(t, acmetest.Config{})
			var a arrivals
			limited.Fail(a.with(acmetest.RateLimited(5*time.Minute)), acmetest.NewOrder)
			if err := down.Down(); err != nil {
				t.Fatal(err)
			}
			cas := []*acmetest.CA{limited, down}
			if !limitedFirst {
				cas = []*acmetest.CA{down, limited}
			}
			e := setup{cas: cas, storage: t.TempDir(), tuning: &tuning{Pause: time.Second}}.start(t)
			reachable(e)
			e.Log.Wait(t, `"no certificate yet"`)
			if err := down.Up(); err != nil {
				t.Fatal(err)
			}

			e.servedSoon(t, name)
			if n := a.count(); n != 1 {
				t.Errorf("the other CA was asked %d times within the time in which it wanted not to be", n)
			}
		})
	}
}

func TestHangingCA(t *testing.T) {
	t.Parallel()
	for _, resource := range []string{acmetest.Directory, acmetest.NewNonce, acmetest.NewAccount, acmetest.NewOrder, acmetest.Challenge, acmetest.Finalize} {
		t.Run(resource, func(t *testing.T) {
			t.Parallel()
			ca := acmetest.New(t, acmetest.Config{})
			ca.Fail(acmetest.Hang(), resource)
			e := setup{cas: []*acmetest.CA{ca}, storage: t.TempDir(), tuning: &tuning{Pause: 100 * time.Millisecond, HTTPTimeout: time.Second}}.start(t)
			reachable(e)
			e.Log.Wait(t, `"no certificate yet".*cannot be reached`)

			ca.Mend()
			e.servedSoon(t, name)
		})
	}
}

func TestSecondCAIssuesWhileTheFirstHangs(t *testing.T) {
	t.Parallel()
	first, second := acmetest.New(t, acmetest.Config{}), acmetest.New(t, acmetest.Config{})
	first.Fail(acmetest.Hang())
	e := setup{cas: []*acmetest.CA{first, second}, storage: t.TempDir(), tuning: &tuning{HTTPTimeout: time.Second}}.start(t)
	reachable(e)

	e.servedSoon(t, name)
	if first.Accepted() > 0 || len(second.Issued()) != 1 {
		t.Errorf("%d answers of the first CA, %d certificates of the second", first.Accepted(), len(second.Issued()))
	}
	if strings.Contains(e.Log.String(), `"level":"ERROR"`) {
		t.Errorf("a certificate was obtained, and yet there is an error:\n%s", e.Log)
	}
}

// An attempt that hangs does not hold up the end of the program.
func TestEndWhileTheCAHangs(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	ca.Fail(acmetest.Hang(), acmetest.NewOrder)
	dir := t.TempDir()
	e := setup{cas: []*acmetest.CA{ca}, storage: dir}.start(t)
	atLeast(t, 1, "orders", func() int { return ca.Requests(acmetest.NewOrder) })

	begin := time.Now()
	e.terminate(t)
	if status := e.Ended(t); status != 0 {
		t.Errorf("exit status %d", status)
	}
	if d := time.Since(begin); d > atOnce {
		t.Errorf("the end took %v", d)
	}

	ca.Mend()
	again := setup{cas: []*acmetest.CA{ca}, storage: dir}.start(t)
	reachable(again)
	again.servedSoon(t, name)
	again.noErrors(t)
}

// The account that has ordered the certificate is lost: the CA refuses to let another replace it
// (RFC 9773, section 5).
func TestRenewalWithAnotherAccount(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, profile(20*time.Second))
	dir, leaf := prepared(t, ca, "")
	for _, folder := range []string{"accounts", "acme"} {
		if err := os.RemoveAll(filepath.Join(dir, folder)); err != nil {
			t.Fatal(err)
		}
	}

	e := setup{cas: []*acmetest.CA{ca}, storage: dir}.start(t)
	reachable(e)
	e.replacedSoon(t, name, leaf)
	if n := len(ca.Accounts()); n != 2 {
		t.Errorf("%d accounts: then this test tests something else", n)
	}
}
