//go:build load && linux

package load

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cgroup bounds the memory of the processes in it (cgroups(7)).
type cgroup struct{ dir string }

// newCgroup makes a cgroup of limit bytes that is there for the test. It works with both versions.
func newCgroup(t testing.TB, limit int) cgroup {
	t.Helper()
	parent, bound, err := memoryController()
	if err != nil {
		t.Skipf("needs a memory cgroup: %v", err)
	}
	dir, err := os.MkdirTemp(parent, "raimon-")
	if err != nil {
		t.Skipf("needs root, to make a memory cgroup: %v", err)
	}
	t.Cleanup(func() {
		if !eventually(10*time.Second, func() bool { return os.Remove(dir) == nil }) {
			t.Errorf("cgroup %s is left behind", dir)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, bound), []byte(strconv.Itoa(limit)), 0o600); err != nil {
		t.Skipf("needs a memory cgroup: %v", err)
	}
	return cgroup{dir}
}

// memoryController is the folder to make cgroups in, and the file that bounds their memory. In version 1 it is the
// test's own cgroup, so that the test's bounds hold as well; in version 2 that may not have processes beside cgroups.
func memoryController() (parent, bound string, err error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", "", err
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", "", err
	}
	for mount := range strings.Lines(string(mounts)) {
		fields := strings.Fields(mount) // what, where, kind, options (fstab(5))
		switch {
		case fields[2] == "cgroup" && strings.Contains(","+fields[3]+",", ",memory,"):
			for line := range strings.Lines(string(own)) {
				// number:controllers:path
				if group := strings.SplitN(strings.TrimSpace(line), ":", 3); group[1] == "memory" {
					return filepath.Join(fields[1], group[2]), "memory.limit_in_bytes", nil
				}
			}
		case fields[2] == "cgroup2":
			controllers, _ := os.ReadFile(filepath.Join(fields[1], "cgroup.subtree_control"))
			if strings.Contains(string(controllers), "memory") {
				return fields[1], "memory.max", nil
			}
		}
	}
	return "", "", fmt.Errorf("no mount bounds memory:\n%s", mounts)
}

// command runs a program in g as a user without rights.
func (g cgroup) command(program string, arguments ...string) *exec.Cmd {
	const script = `echo $$ >"$0" && exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"`
	cmd := exec.Command("sh", append([]string{"-c", script, filepath.Join(g.dir, "cgroup.procs"), program}, arguments...)...)
	cmd.Dir = "/"
	return cmd
}

// peak is the most memory that there was at a time, in bytes; 0 if the kernel is too old to tell.
func (g cgroup) peak() int {
	for _, file := range []string{"memory.max_usage_in_bytes", "memory.peak"} {
		if data, err := os.ReadFile(filepath.Join(g.dir, file)); err == nil {
			n, _ := strconv.Atoi(strings.TrimSpace(string(data)))
			return n
		}
	}
	return 0
}

// kills counts the processes that the kernel has killed for want of memory.
func (g cgroup) kills(t testing.TB) int {
	t.Helper()
	for _, file := range []string{"memory.oom_control", "memory.events"} {
		data, err := os.ReadFile(filepath.Join(g.dir, file))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
				n, err := strconv.Atoi(value)
				if err != nil {
					t.Fatalf("%s: %v", file, err)
				}
				return n
			}
		}
	}
	t.Fatal("nothing in the cgroup tells about kills")
	return 0
}
