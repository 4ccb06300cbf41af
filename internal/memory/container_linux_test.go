package memory

import (
	"os"
	"path/filepath"
	"testing"
)

func TestContainerLimit(t *testing.T) {
	tests := []struct {
		name   string
		groups string            // /proc/self/cgroup
		files  map[string]string // below /sys/fs/cgroup
		want   int64
	}{
		{"none", "0::/\n", nil, 0},
		{"version 2", "0::/app\n", map[string]string{"app/memory.max": "268435456\n"}, 256 << 20},
		{"version 2 without a limit", "0::/app\n", map[string]string{"app/memory.max": "max\n"}, 0},
		{"the lowest above counts", "0::/a/b\n", map[string]string{"a/memory.max": "1000\n", "a/b/memory.max": "2000\n"}, 1000},
		{"the host's path", "0::/docker/123\n", map[string]string{"memory.max": "4096\n"}, 4096},
		{"version 1", "5:devices:/x\n4:memory:/app\n0::/\n", map[string]string{"memory/app/memory.limit_in_bytes": "268435456\n"}, 256 << 20},
		{"version 1 without a limit", "4:memory:/app\n", map[string]string{"memory/app/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		{"version 1 with another controller", "4:hugetlb,memory:/app\n", map[string]string{"memory/app/memory.limit_in_bytes": "4096\n"}, 4096},
		{"not a number", "0::/app\n", map[string]string{"app/memory.max": "lots\n"}, 0},
		{"broken", "memory\n\n", nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			groups := filepath.Join(root, "self")
			write(t, groups, tt.groups)
			for name, data := range tt.files {
				write(t, filepath.Join(root, "sys", name), data)
			}
			if got := limitBelow(filepath.Join(root, "sys"), groups); got != tt.want {
				t.Errorf("limit %d, want %d", got, tt.want)
			}
		})
	}
}

func write(t *testing.T, name, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}
