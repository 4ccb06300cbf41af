//go:build load && linux

package load

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"raimon/internal/commandtest"
)

// Five thousand tunnels, idle, then moving all at once, then idle again.
func TestMemory(t *testing.T) {
	const (
		many  = 5000
		burst = 100_000 // bytes each way
		files = 2       // descriptors a tunnel

		// What crypto/tls keeps of the last record: its 16 KiB and overhead, in the next size that Go has.
		recordBuffer = 18
	)
	// KiB a tunnel on each side.
	goals := map[string]float64{"tcp": 10, "ws": 10, "tls": 24, "wss": 24}
	for _, tr := range transports() {
		t.Run(tr.name, func(t *testing.T) {
			dir := t.TempDir()
			f := launch(t, tr, func(program string, arguments ...string) *exec.Cmd {
				cmd := exec.Command(program, arguments...)
				cmd.Env = append(os.Environ(), "RAIMON_INSPECT="+filepath.Join(dir, program))
				return cmd
			})
			sides := []*side{newSide("edge", f.edge), newSide("client", f.client)}

			// What is made once is no part of a tunnel.
			closeAll(f.open(t, 1))
			for _, s := range sides {
				s.settle(t)
			}

			lines := f.open(t, many)
			for _, s := range sides {
				limit := goals[tr.name]
				s.idle = s.await(t, "idle", many, files, limit)
			}
			each(t, lines, func(l *line) error { return l.exchange(burst, 0, 1) })
			for _, s := range sides {
				limit := 1.2 * s.idle
				if tr.name == "tls" || tr.name == "wss" {
					limit += recordBuffer
				}
				s.await(t, "idle again", many, files, limit)
			}
			each(t, lines, func(l *line) error { return l.exchange(100, 0, 1) })
			for i, program := range []string{"raimons", "raimonc"} {
				t.Logf("%s without garbage: %v", sides[i].name, inspect(t, sides[i].process, filepath.Join(dir, program)))
			}
		})
	}
}

// side is one of the two processes.
type side struct {
	name     string
	process  *commandtest.Process
	files    int     // descriptors without tunnels
	resident int     // KiB without tunnels
	idle     float64 // KiB a tunnel
}

func newSide(name string, p *commandtest.Process) *side { return &side{name: name, process: p} }

// settle waits until all tunnels are gone, and notes what remains.
func (s *side) settle(t testing.TB) {
	t.Helper()
	s.files = descriptors(t, s.process)
	still := time.Now()
	for end := time.Now().Add(patience); time.Since(still) < 3*time.Second; time.Sleep(50 * time.Millisecond) {
		if n := descriptors(t, s.process); n != s.files {
			s.files, still = n, time.Now()
		}
		if time.Now().After(end) {
			t.Fatalf("%s: descriptors come and go without tunnels", s.name)
		}
	}
	s.resident = resident(t, s.process)
}

// await waits until s needs at most limit KiB a tunnel, and files descriptors, and returns what it needs.
func (s *side) await(t testing.TB, when string, tunnels, files int, limit float64) (kib float64) {
	t.Helper()
	const quiet = 40 * time.Second
	begin := time.Now()
	open := 0
	ok := eventually(quiet, func() bool {
		kib = float64(resident(t, s.process)-s.resident) / float64(tunnels)
		open = descriptors(t, s.process) - s.files
		return kib <= limit && open <= files*tunnels
	})
	result := fmt.Sprintf("%s, %s: %.1f KiB a tunnel, want %.1f; %.2f descriptors, want %d (after %v)",
		s.name, when, kib, limit, float64(open)/float64(tunnels), files, time.Since(begin).Round(time.Second))
	if !ok {
		t.Error(result)
	} else {
		t.Log(result)
	}
	return kib
}
