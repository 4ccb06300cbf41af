package faults

import (
	"bytes"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"raimon/internal/acmetest"
	"raimon/internal/tunneltest"
)

var yearsTime = flag.Duration("years", 70*time.Second, "how long TestYears runs")

const (
	yearsFleets   = 3
	yearsNames    = 25               // of each fleet
	yearsLifetime = 10 * time.Second // a certificate is renewed when half of it is left
	yearsTunnels  = 4
	yearsVisitors = 2
	// An outage and the pause after it end before a certificate does.
	longestOutage = 1500 * time.Millisecond
	// How long a certificate may be on the disk before it is served by the edge that has not obtained it:
	// that edge has an attempt under way, or its pause after one, whose first step is to look there.
	takenUp = 5 * time.Second
)

// Each fleet is a CA and a storage with two edges. Lifetimes are seconds and renewals go on all the time, while CA and disk fail at random, and while a
// second edge on the same storage is killed at random, in the midst of renewals, and started again. All
// that is watched concerns the first edge of each, which is never restarted: its tunnels must not notice anything,
// every handshake must succeed, and what is shown must be valid unless the outages have left no valid
// certificate at all. In the end it must have no more descriptors, memory and goroutines than in the beginning.
//
// Only certmagic's limit of 10 orders in 10 s is lifted. All pauses and time limits are those of users.
func TestYears(t *testing.T) {
	t.Parallel()
	for i := range yearsFleets {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			testYears(t)
		})
	}
}

func testYears(t *testing.T) {
	y := &years{random: randomly(t), ended: make(chan struct{})}
	y.openCA(t)
	y.storage = y.storageFolder(t)
	names := yearsNames
	if race {
		names /= 3 // the race detector makes everything slow
	}
	for i := range names {
		y.names = append(y.names, fmt.Sprintf("n%d.example", i))
	}
	y.setup = setup{names: y.names, cas: []*acmetest.CA{y.ca}, storage: y.storage, target: tunneltest.Echo(t), tuning: &tuning{Unlimited: true}}
	y.first = y.start(t)
	reachable(y.first)
	for _, n := range y.names {
		y.first.servedSoon(t, n)
	}

	var clients sync.WaitGroup
	defer clients.Wait()
	endClients := sync.OnceFunc(func() { close(y.ended) })
	defer endClients()
	for i := range yearsTunnels {
		clients.Go(func() { y.tunnel(t, uint64(i)) })
	}
	for range yearsVisitors {
		clients.Go(func() { y.visit(t) })
	}
	end := time.Now().Add(*yearsTime)
	y.trouble(t, time.Now().Add(*yearsTime/4))
	before := usageOf(t, y.first)
	y.trouble(t, end)
	y.mend(t)
	stuck := !y.allServed(t) || y.ca.Stuck()
	endClients()
	clients.Wait()

	renewals := len(y.ca.Issued()) - len(y.names)
	t.Logf("%d renewals, %d handshakes, %d of them with a certificate that was over, %d bytes through tunnels, %d faults, %d kills",
		renewals, y.handshakes.Load(), y.lapsed.Load(), y.bytes.Load(), y.faults, y.kills)
	if want := int(yearsTime.Seconds()) * len(y.names) / 12; renewals < want && !stuck {
		t.Errorf("%d renewals, want %d at least: too few to say anything", renewals, want)
	}
	y.flat(t, before)
}

type years struct {
	setup
	ca            *acmetest.CA
	disk          *disk // nil: cannot be filled
	random        *rand.Rand
	first, second *edge // second: nil while it does not run
	ended         chan struct{}

	faults, kills             int
	handshakes, lapsed, bytes atomic.Int64
}

// openCA starts a CA, which may end with requests that Pebble will never answer.
func (y *years) openCA(t testing.TB) {
	t.Helper()
	ca, err := acmetest.Start(acmetest.Config{Profiles: profile(yearsLifetime).Profiles, RejectNonces: 5})
	if err != nil {
		t.Fatal(err)
	}
	y.ca = ca
	t.Cleanup(func() {
		if err := ca.Close(); errors.Is(err, acmetest.ErrStuck) {
			t.Logf("close the CA: %v", err)
		} else if err != nil {
			t.Errorf("close the CA: %v", err)
		}
	})
}

// allServed wants a good certificate for each name soon, unless Pebble is stuck: then it returns false.
func (y *years) allServed(t testing.TB) bool {
	t.Helper()
	for _, n := range y.names {
		for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
			_, err := y.first.serves(n)
			if err == nil {
				break
			}
			if time.Now().Before(deadline) {
				continue
			}
			if !y.ca.Stuck() {
				t.Fatalf("after %v: %v", patience, err)
			}
			t.Log("Pebble is stuck in its own locks: nothing can be said about renewals")
			return false
		}
	}
	return true
}

func (y *years) storageFolder(t testing.TB) string {
	if os.Geteuid() != 0 {
		t.Log("only root can mount a file system: the disk does not get full")
		return t.TempDir()
	}
	y.disk = newDisk(t)
	return y.disk.dir
}

// trouble makes it until a time, and leaves none.
func (y *years) trouble(t testing.TB, until time.Time) {
	t.Helper()
	for time.Now().Before(until) {
		y.pause(1500 * time.Millisecond)
		switch y.random.IntN(3) {
		case 0:
			y.restart(t)
		default:
			y.fault(t)
		}
	}
}

// pause waits for some time up to longest: when trouble comes is what is tried out.
func (y *years) pause(longest time.Duration) {
	time.Sleep(time.Duration(y.random.Int64N(int64(longest))))
}

// restart kills the second edge, or starts it.
func (y *years) restart(t testing.TB) {
	t.Helper()
	if y.second != nil {
		y.kills++
		y.second.kill(t)
		y.second = nil
		reachable(y.first)
		return
	}
	y.second = y.start(t)
	reachable(y.first, y.second)
}

// fault is one outage, from its beginning to its end.
func (y *years) fault(t testing.TB) {
	t.Helper()
	y.faults++
	resources := [...]string{acmetest.Directory, acmetest.NewNonce, acmetest.NewOrder, acmetest.Authorization, acmetest.Challenge, acmetest.Finalize, acmetest.Certificate}
	resource := resources[y.random.IntN(len(resources))]
	fault := y.random.IntN(7)
	switch fault {
	case 0:
		y.down(t)
	case 1:
		y.ca.Fail(acmetest.Plain(http.StatusServiceUnavailable, 0), resource)
	case 2:
		y.ca.Fail(acmetest.Problem(http.StatusInternalServerError, "serverInternal", 0), resource)
	case 3:
		y.ca.Fail(acmetest.RateLimited(time.Second), resource)
	case 4:
		y.ca.Fail(acmetest.Hang(), resource)
	case 5:
		y.ca.Fail(acmetest.Problem(http.StatusBadRequest, "badNonce", 0), acmetest.NewOrder, acmetest.Challenge, acmetest.Finalize)
	case 6:
		if y.disk != nil {
			y.disk.setFull(t, true)
		}
	}
	y.pause(longestOutage)
	if fault == 4 {
		y.down(t) // whoever hangs does so for half a minute, else: longer than these certificates live
	}
	y.mend(t)
}

func (y *years) down(t testing.TB) {
	t.Helper()
	if err := y.ca.Down(); err != nil {
		t.Fatal(err)
	}
}

func (y *years) mend(t testing.TB) {
	t.Helper()
	y.ca.Mend()
	if err := y.ca.Up(); err != nil {
		t.Fatal(err)
	}
	if y.disk != nil {
		y.disk.setFull(t, false)
	}
}

// tunnel carries bytes all the time.
func (y *years) tunnel(t testing.TB, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	n := y.names[int(seed)%len(y.names)]
	c, err := tls.Dial("tcp", y.first.Address, &tls.Config{ServerName: n, RootCAs: y.ca.IssuingRoot.Pool})
	if err != nil {
		t.Errorf("tunnel: %v", err)
		return
	}
	defer c.Close()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	sent, got := make([]byte, 4096), make([]byte, 4096)
	for {
		select {
		case <-y.ended:
			return
		case <-tick.C:
		}
		size := 1 + random.IntN(len(sent))
		for i := range size {
			sent[i] = byte(random.Uint32())
		}
		c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write(sent[:size]); err != nil {
			t.Errorf("tunnel: %v", err)
			return
		}
		if _, err := io.ReadFull(c, got[:size]); err != nil || !bytes.Equal(got[:size], sent[:size]) {
			t.Errorf("tunnel: %v, or other bytes than were sent", err)
			return
		}
		y.bytes.Add(int64(size))
	}
}

// visit makes one handshake after the other.
func (y *years) visit(t testing.TB) {
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-y.ended:
			return
		case <-tick.C:
		}
		if err := y.handshake(y.names[rand.IntN(len(y.names))]); err != nil {
			t.Errorf("at %s: %v", time.Now().UTC().Format("15:04:05.000"), err)
		}
	}
}

func (y *years) handshake(name string) error {
	state, err := handshake(y.first.Address, name)
	if err != nil {
		return fmt.Errorf("handshake for %s: %w", name, err)
	}
	y.handshakes.Add(1)
	now, leaf := time.Now(), state.PeerCertificates[0]
	if err := verify(state.PeerCertificates, name, leaf.NotBefore, y.ca); err != nil {
		return fmt.Errorf("shown for %s: %w", name, err)
	}
	if now.Before(leaf.NotAfter.Add(time.Second)) { // its last second belongs to it
		return nil
	}
	y.lapsed.Add(1)
	pair, err := stored(y.storage, y.ca, name)
	if err != nil {
		return err
	}
	file, err := os.Stat(storedFile(y.storage, y.ca, name))
	if err != nil {
		return err
	}
	if now.Before(pair.Leaf.NotAfter) && now.After(file.ModTime().Add(takenUp)) {
		return fmt.Errorf("for %s a certificate is shown that was over at %v; in the storage there has been another since %v",
			name, leaf.NotAfter, file.ModTime())
	}
	return nil
}

// usage is what a process takes.
type usage struct {
	descriptors int
	kilobytes   int // of memory
}

func usageOf(t testing.TB, e *edge) usage {
	t.Helper()
	proc := filepath.Join("/proc", strconv.Itoa(e.PID()))
	descriptors, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	if found == nil {
		t.Fatalf("no VmRSS in %s", status)
	}
	kilobytes, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return usage{len(descriptors), kilobytes}
}

// flat wants the first edge to be as it was before: a leak for each renewal, fault or handshake would
// be far above these limits. Renewals that are under way have some descriptors and goroutines each. It ends
// the edge.
func (y *years) flat(t testing.TB, before usage) {
	t.Helper()
	const busy = 8 * 8 // attempts at a time, and what each has
	var after usage
	eventually(t, func() error {
		after = usageOf(t, y.first)
		if after.descriptors > before.descriptors+busy {
			return fmt.Errorf("%d descriptors, %d before", after.descriptors, before.descriptors)
		}
		return nil
	})
	if after.kilobytes > before.kilobytes*3/2+8<<10 {
		t.Errorf("%d kB of memory, %d before", after.kilobytes, before.kilobytes)
	}
	// Go's answer to SIGQUIT is a list of all goroutines.
	if err := syscall.Kill(y.first.PID(), syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	y.first.Ended(t)
	goroutines := y.first.Log.Count(`(?m)^goroutine \d+ `)
	t.Logf("before and after: %d and %d descriptors, %d and %d kB; %d goroutines after", before.descriptors, after.descriptors,
		before.kilobytes, after.kilobytes, goroutines)
	if goroutines > len(y.names)+busy || goroutines < len(y.names) {
		t.Errorf("%d goroutines, want one for each of %d names and %d more at most", goroutines, len(y.names), busy)
	}
}
