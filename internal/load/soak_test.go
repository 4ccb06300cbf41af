//go:build load && linux

package load

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"raimon/internal/commandtest"
	"raimon/internal/tunneltest"
)

var (
	soakFor  = flag.Duration("soak", 2*time.Minute, "how long the soak lasts")
	soakSeed = flag.Uint64("seed", 0, "what the soak draws its numbers from; 0: another one each time")
)

const soakers = 10 // tunnels at a time on each route

// TestSoak opens, closes, half-closes, resets and kills at random for as long as -soak says. Now and then everything
// has to end: then no process holds more descriptors, goroutines or memory than it did before.
//
// What was cut never looks complete, what was not cut is complete, and no byte differs.
func TestSoak(t *testing.T) {
	seed := *soakSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-soak=%v -seed=%d", *soakFor, seed)
	target := newTarget(t)
	var routes []*route
	var steady []*station
	for _, tr := range transports() {
		r, s := soakRoutes(t, tr, target)
		routes, steady = append(routes, r...), append(steady, s...)
	}

	random := rand.New(rand.NewPCG(seed, 0))
	begin := time.Now()
	length := min(max(*soakFor/6, 5*time.Second), time.Minute)
	tally := new(tally)
	for round := 0; round == 0 || time.Since(begin) < *soakFor-length/2; round++ {
		soakRound(t, routes, random, length, seed+uint64(round)<<32, tally)
		for _, s := range steady {
			s.isFlat(t, round)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Log(tally)
	for _, s := range steady {
		t.Logf("%s: %v; at first %v", s.name, s.last, s.fresh)
	}
	for kind := range kinds {
		if tally.done[kind].Load() == 0 {
			t.Errorf("no tunnel was %v", kind)
		}
	}
}

// soakRoutes starts the processes of one transport: an edge and a client that live, a client that is killed again and
// again, and an edge that is, with a client of its own that lives.
func soakRoutes(t testing.TB, tr transport, target *target) (routes []*route, steady []*station) {
	options := tr.client
	if strings.Contains(options, ";ws;") {
		options += ";reuse=1s" // so that all that is kept is gone soon after a round
	}
	edge := newStation(t, tr.name+" edge", "raimons", target.address, tr.server)
	client := newStation(t, tr.name+" client", "raimonc", edge.address, options)
	mortalClient := newStation(t, tr.name+" mortal client", "raimonc", edge.address, options)
	mortalEdge := newStation(t, tr.name+" mortal edge", "raimons", target.address, tr.server)
	survivor := newStation(t, tr.name+" client of mortal edge", "raimonc", mortalEdge.address, options)
	routes = []*route{
		{target: target, app: client.address},
		{target: target, app: mortalClient.address, mortal: mortalClient},
		{target: target, app: survivor.address, mortal: mortalEdge},
	}
	return routes, []*station{edge, client, survivor}
}

// soakRound keeps all routes busy for length, kills what is mortal meanwhile, and waits for the end of all tunnels.
func soakRound(t testing.TB, routes []*route, random *rand.Rand, length time.Duration, seed uint64, tally *tally) {
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel()
	for i, r := range routes {
		for j := range soakers {
			workers.Go(func() {
				random := rand.New(rand.NewPCG(seed, uint64(i*soakers+j)))
				for ctx.Err() == nil {
					if err := r.live(ctx, random, tally); err != nil {
						t.Errorf("route %d: %v", i, err)
						cancel()
					}
				}
			})
		}
	}
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(200+random.IntN(800)) * time.Millisecond):
			if r := routes[random.IntN(len(routes))]; r.mortal != nil {
				r.mortal.die(t)
				tally.deaths.Add(1)
			}
		}
	}
}

// route is a way from apps to the target.
type route struct {
	target *target
	app    string   // address
	mortal *station // on the way; nil: none
}

// live is the life of one tunnel.
func (r *route) live(ctx context.Context, random *rand.Rand, tally *tally) error {
	epoch := r.mortal.up(ctx)
	if ctx.Err() != nil {
		return nil
	}
	p := drawPlan(random)
	l, err := r.target.open(r.app)
	if err == nil {
		err = l.follow(p)
		l.close()
		if errors.As(err, new(*wrongError)) {
			return fmt.Errorf("%v: %w", p, err)
		}
	}
	if err != nil && r.mortal.same(epoch) {
		return fmt.Errorf("%v: %w", p, err)
	}
	if err != nil {
		tally.cut.Add(1)
	} else {
		tally.done[p.kind].Add(1)
	}
	return nil
}

// tally counts what happened.
type tally struct {
	done   [kinds]atomic.Int64
	cut    atomic.Int64
	deaths atomic.Int64
}

func (y *tally) String() string {
	s := fmt.Sprintf("%d deaths cut %d tunnels; ", y.deaths.Load(), y.cut.Load())
	for k := range kinds {
		s += fmt.Sprintf("%v %d, ", k, y.done[k].Load())
	}
	return s
}

// station is a process at a fixed address.
type station struct {
	name    string
	address string
	command func() *exec.Cmd
	socket  string // of the inspector

	process *commandtest.Process
	epoch   atomic.Int64 // odd while it is down

	fresh *held // before the first tunnel
	used  *held // after the first round
	last  held
}

func newStation(t testing.TB, name, program, remote, options string) *station {
	t.Helper()
	s := &station{name: name, address: "127.0.0.1:" + tunneltest.FreePort(), socket: filepath.Join(t.TempDir(), "inspect")}
	s.command = func() *exec.Cmd {
		cmd := exec.Command(program, s.address, remote, options)
		cmd.Env = append(os.Environ(), "RAIMON_INSPECT="+s.socket)
		return cmd
	}
	s.process = commandtest.Start(t, s.command())
	fresh := inspect(t, s.process, s.socket)
	s.fresh = &fresh
	return s
}

// die is a kill -9 and a new life.
func (s *station) die(t testing.TB) {
	t.Helper()
	s.epoch.Add(1)
	defer s.epoch.Add(1)
	syscall.Kill(s.process.PID(), syscall.SIGKILL)
	s.process.Ended(t)
	os.Remove(s.socket)
	s.process = commandtest.Start(t, s.command())
}

// up waits until s lives and returns which of its lives it is; a nil s lives for ever.
func (s *station) up(ctx context.Context) int64 {
	if s == nil {
		return 0
	}
	for {
		if epoch := s.epoch.Load(); epoch%2 == 0 || ctx.Err() != nil {
			return epoch
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (s *station) same(epoch int64) bool { return s == nil || s.epoch.Load() == epoch }

// isFlat tests that s holds no more descriptors and goroutines than before the first tunnel, and no more memory than
// after the first round.
func (s *station) isFlat(t testing.TB, round int) {
	t.Helper()
	now := inspect(t, s.process, s.socket)
	flat := eventually(commandtest.Patience, func() bool {
		now = inspect(t, s.process, s.socket)
		if now.Descriptors > s.fresh.Descriptors || now.Goroutines > s.fresh.Goroutines {
			return false
		}
		if s.used == nil {
			return true
		}
		return now.Heap <= s.used.Heap*6/5+512<<10 && now.Stacks <= s.used.Stacks*6/5+512<<10 && now.resident <= s.used.resident*6/5+4<<10
	})
	if !flat {
		t.Errorf("%s after round %d holds %v\nbefore the first tunnel: %v\nafter the first round: %v", s.name, round, now, s.fresh, s.used)
	}
	if s.used == nil {
		s.used = &now
	}
	s.last = now
}
