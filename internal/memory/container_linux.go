package memory

import (
	"bufio"
	"bytes"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
)

// containerLimit is the memory limit of the control group that this process is in, in bytes, or of one
// above it if that is lower; 0: none. Both versions count (Documentation/admin-guide in the kernel's
// source: cgroup-v2.rst, "memory.max", and cgroup-v1/memory.rst, "memory.limit_in_bytes").
func containerLimit() int64 { return limitBelow("/sys/fs/cgroup", "/proc/self/cgroup") }

func limitBelow(root, groups string) int64 {
	data, err := os.ReadFile(groups)
	if err != nil {
		return 0
	}
	least := int64(math.MaxInt64)
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		// "0::/path" for version 2, "4:memory:/path" for version 1 (cgroups(7))
		field := strings.SplitN(lines.Text(), ":", 3)
		switch {
		case len(field) != 3:
		case field[1] == "":
			least = min(least, leastOf(root, field[2], "memory.max"))
		case strings.Contains(","+field[1]+",", ",memory,"):
			least = min(least, leastOf(path.Join(root, "memory"), field[2], "memory.limit_in_bytes"))
		}
	}
	if least >= math.MaxInt64/2 { // version 1 has a number for "none" that depends on the page size
		return 0
	}
	return least
}

// leastOf is the lowest limit of group and those above it. Inside a container the group's path may be
// that of the host; its limit is at the root then.
func leastOf(root, group, file string) int64 {
	least := int64(math.MaxInt64)
	for dir := path.Join("/", group); ; dir = path.Dir(dir) {
		if data, err := os.ReadFile(path.Join(root, dir, file)); err == nil {
			if n, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err == nil && n > 0 {
				least = min(least, n)
			}
		}
		if dir == "/" {
			return least
		}
	}
}
