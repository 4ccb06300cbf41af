//go:build load && linux

package load

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"raimon/internal/commandtest"
)

// resident is the memory of p, in KiB, as it is.
func resident(t testing.TB, p *commandtest.Process) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`).FindSubmatch(data)
	if found == nil {
		t.Fatalf("no VmRSS in\n%s", data)
	}
	n, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// descriptors counts the open ones of p.
func descriptors(t testing.TB, p *commandtest.Process) int {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// held is what a process holds that is no garbage.
type held struct {
	Descriptors, Goroutines int
	Heap, Stacks            int // bytes
	resident                int // KiB
}

func (h held) String() string {
	return fmt.Sprintf("%d descriptors, %d goroutines, %d KiB of heap, %d KiB of stacks, %d KiB resident",
		h.Descriptors, h.Goroutines, h.Heap>>10, h.Stacks>>10, h.resident)
}

// inspect asks the socket that testdata/inspect.go has opened in p.
func inspect(t testing.TB, p *commandtest.Process, socket string) (h held) {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if err := json.NewDecoder(c).Decode(&h); err != nil {
		t.Fatalf("inspect: %v", err)
	}
	h.resident = resident(t, p)
	return h
}

// eventually polls until ok, at most for limit.
func eventually(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}
