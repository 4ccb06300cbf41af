package edge_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"raimon/internal/acmetest"
	"raimon/internal/commandtest"
)

// judge is the URL that on-demand names.
type judge struct {
	*httptest.Server
	mu    sync.Mutex
	asked map[string]int // by name
}

func newJudge(t testing.TB, allowed ...string) *judge {
	t.Helper()
	j := &judge{asked: map[string]int{}}
	j.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := r.URL.Query().Get("domain")
		j.mu.Lock()
		j.asked[name]++
		j.mu.Unlock()
		if !slices.Contains(allowed, name) {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	t.Cleanup(j.Close)
	return j
}

func (j *judge) times(name string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.asked[name]
}

func TestOnDemandURL(t *testing.T) {
	t.Parallel()
	ca, judge := acmetest.New(t, acmetest.Config{}), newJudge(t, "allowed.test", "also.test")
	storage := t.TempDir()
	e := start(t, ca, "storage="+storage+";on-demand="+judge.URL+"/may?token=x")
	ca.TLSALPN01.To(e.tunnels)
	// Many at once are one certificate.
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := visit(e.tunnels, "allowed.test", ca.IssuingRoot.Pool); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	e.shows(t, ca, "Also.Test")
	if issued, asked := len(ca.Issued()), judge.times("allowed.test"); issued != 2 || asked != 1 {
		t.Errorf("%d certificates, want 2; the URL was asked %d times, want once", issued, asked)
	}

	orders := ca.Requests(acmetest.NewOrder)
	for range 3 {
		e.wantAlert(t, "refused.test", unknownName)
	}
	for _, name := range []string{"", "*.allowed.test", "192.0.2.1", "under_score.test", "allowed.test.refused.test", strings.Repeat("a", 64) + ".test"} {
		e.wantAlert(t, name, unknownName)
	}
	if n := ca.Requests(acmetest.NewOrder); n != orders {
		t.Errorf("%d orders for names that were refused", n-orders)
	}
	if n := judge.times("refused.test"); n != 1 {
		t.Errorf("the URL was asked %d times about a name that it has just refused, want once", n)
	}
	e.wantQuiet(t)
	e.end(t)

	// After a restart the certificate is there at once, though the CA is not.
	if err := ca.Down(); err != nil {
		t.Fatal(err)
	}
	e = start(t, ca, "storage="+storage+";on-demand="+judge.URL)
	e.shows(t, ca, "allowed.test")
	e.wantAlert(t, "refused.test", unknownName)
	if n := len(ca.Issued()); n != 2 {
		t.Errorf("%d certificates, want 2", n)
	}
}

func TestOnDemandCommand(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	names := file(t, "names", "allowed.test\nlater.test\n")
	program := file(t, "may.sh", "#!/bin/sh\nexec grep -qxF \"$2\" \"$1\"\n")
	e := start(t, ca, "acme=fixed.test;on-demand="+program+" "+names)
	ca.TLSALPN01.To(e.tunnels)
	for _, name := range []string{"fixed.test", "allowed.test", "later.test"} {
		e.shows(t, ca, name)
	}
	orders := ca.Requests(acmetest.NewOrder)
	for _, name := range []string{"refused.test", "-q.test", "--help"} {
		e.wantAlert(t, name, unknownName)
	}
	if n := ca.Requests(acmetest.NewOrder); n != orders {
		t.Errorf("%d orders for names that were refused", n-orders)
	}
	e.wantQuiet(t)
}

// A decision that fails is none: the URL is down.
func TestOnDemandUndecided(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	for _, spec := range []string{"http://" + nobody, file(t, "may.sh", "#!/bin/sh\nkill -9 $$\n")} {
		e := start(t, ca, "on-demand="+spec)
		ca.TLSALPN01.To(e.tunnels)
		e.wantAlert(t, "a.test", notYet)
	}
	if n := ca.Requests(); n != 0 {
		t.Errorf("%d requests to the CA, want none", n)
	}
}

// Somebody tries out names. Clients of the others do not notice, and it stays within bounds.
func TestOnDemandFlood(t *testing.T) {
	t.Parallel()
	ca, judge := acmetest.New(t, acmetest.Config{}), newJudge(t, "allowed.test")
	e := start(t, ca, "acme=fixed.test;on-demand="+judge.URL)
	ca.TLSALPN01.To(e.tunnels)
	e.shows(t, ca, "fixed.test")
	before := e.memory(t)
	clients := gather(t, e.tunnels, "fixed.test", ca.IssuingRoot.Pool)

	const names, atOnce = 1000, 50
	next, said := make(chan int), make(chan string, names)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for n := range next {
				_, err := visit(e.tunnels, fmt.Sprintf("host%d.refused.test", n), nil)
				said <- fmt.Sprint(err)
			}
		})
	}
	for n := range names {
		next <- n
		if n == names/2 {
			e.shows(t, ca, "allowed.test") // in the midst of it
		}
	}
	close(next)
	all.Wait()
	close(said)
	alerts := map[string]int{}
	for alert := range said {
		alerts[alert]++
	}
	if alerts[unknownName] != names {
		t.Errorf("alerts: %v, want %d times %q", alerts, names, unknownName)
	}
	clients.wantHappy(t, 10)
	if len(ca.Issued()) != 2 {
		t.Errorf("%d certificates, want 2", len(ca.Issued()))
	}
	if grown := e.memory(t) - before; grown > 64<<10 && !race {
		t.Errorf("memory has grown by %d KB", grown)
	}
	if n := e.Log.Count("\n"); n > 20 {
		t.Errorf("%d lines in the log", n)
	}
}

// memory is what the process has in use (resident), in KB; 0 where the system does not tell.
func (e *raimons) memory(t testing.TB) int {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(e.PID()), "status"))
	if err != nil {
		return 0
	}
	_, rest, found := strings.Cut(string(status), "VmRSS:")
	if !found {
		t.Fatalf("no VmRSS in %s", status)
	}
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kb
}

// A slow decision holds up who asks for it, and nobody else.
func TestOnDemandSlowDecision(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("domain") == "slow.test" {
			asked <- struct{}{}
			<-answer
		}
	}))
	defer server.Close()
	e := start(t, ca, "acme=fixed.test;on-demand="+server.URL)
	ca.TLSALPN01.To(e.tunnels)
	e.shows(t, ca, "fixed.test") // a decision has five seconds, of which the other names are to take few
	slow := make(chan error, 1)
	go func() { _, err := visit(e.tunnels, "slow.test", ca.IssuingRoot.Pool); slow <- err }()
	select {
	case <-asked:
	case <-time.After(commandtest.Patience):
		t.Fatal("nobody asks about slow.test")
	}
	e.shows(t, ca, "fixed.test")
	e.shows(t, ca, "fast.test")
	close(answer)
	if err := <-slow; err != nil {
		t.Error(err)
	}
	e.wantQuiet(t)
}

// Only so many decisions are made at a time. Who has to wait is not refused for that.
func TestOnDemandDecisionsAtOnce(t *testing.T) {
	t.Parallel()
	ca := acmetest.New(t, acmetest.Config{})
	var now, most atomic.Int32
	answer := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for before := most.Load(); n > before && !most.CompareAndSwap(before, n); before = most.Load() {
		}
		<-answer
		w.WriteHeader(http.StatusForbidden)
	}))
	defer server.Close()
	e := start(t, ca, "on-demand="+server.URL)
	const atOnce = 16
	var all sync.WaitGroup
	for n := range 3 * atOnce {
		all.Go(func() { e.wantAlert(t, fmt.Sprintf("host%d.test", n), unknownName) })
	}
	eventually(t, func() error {
		if n := now.Load(); n != atOnce {
			return fmt.Errorf("%d decisions, want %d", n, atOnce)
		}
		return nil
	})
	close(answer)
	all.Wait()
	if n := most.Load(); n != atOnce {
		t.Errorf("%d decisions at once, want %d", n, atOnce)
	}
}
