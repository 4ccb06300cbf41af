//go:build interop

package interop

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"
)

// shift is a group of workers.
type shift struct {
	t       testing.TB
	ctx     context.Context // ends with the shift
	stop    context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	rounds map[string]int
}

func newShift(t testing.TB) *shift {
	ctx, stop := context.WithCancel(t.Context())
	s := &shift{t: t, ctx: ctx, stop: stop, rounds: make(map[string]int)}
	t.Cleanup(func() {
		stop()
		s.running.Wait()
	})
	return s
}

// worker is a goroutine of a test: what is fatal for it ends the goroutine, and fails the test.
type worker struct{ testing.TB }

func (w worker) FailNow() {
	w.TB.Fail()
	runtime.Goexit()
}

func (w worker) Fatal(args ...any) {
	w.Helper()
	w.TB.Error(args...)
	runtime.Goexit()
}

func (w worker) Fatalf(format string, args ...any) {
	w.Helper()
	w.TB.Errorf(format, args...)
	runtime.Goexit()
}

// repeat has work done until the shift ends.
func (s *shift) repeat(name string, round func(testing.TB) error) {
	s.running.Go(func() {
		pace := time.NewTicker(200 * time.Millisecond)
		defer pace.Stop()
		for s.ctx.Err() == nil {
			if err := round(worker{s.t}); err != nil {
				s.t.Errorf("%s, at %s: %v", name, time.Now().UTC().Format(time.StampMilli), err)
				return
			}
			s.mu.Lock()
			s.rounds[name]++
			s.mu.Unlock()
			<-pace.C
		}
	})
}

// once has work done once, which ends some time after the shift.
func (s *shift) once(name string, errand func(context.Context, testing.TB) error) {
	s.running.Go(func() {
		if err := errand(s.ctx, worker{s.t}); err != nil {
			s.t.Errorf("%s, at %s: %v", name, time.Now().UTC().Format(time.StampMilli), err)
		}
	})
}

// failed tells whether it makes no sense to go on.
func (s *shift) failed() bool { return s.t.Failed() }

// end ends the shift, and says how much was done.
func (s *shift) end(t testing.TB) {
	t.Helper()
	s.stop()
	s.running.Wait()
	all := 0
	for _, n := range s.rounds {
		all += n
	}
	t.Logf("%d rounds: %v", all, s.rounds)
	if all < 300 {
		t.Errorf("%d rounds only", all)
	}
}
