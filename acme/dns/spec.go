package dns

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// query reads the part of a spec behind its "?". A key that is not in known, or comes twice, is an error.
func query(s string, known ...string) (map[string]string, error) {
	values := make(map[string]string)
	for pair := range strings.SplitSeq(s, "&") {
		if pair == "" {
			continue
		}
		key, value, _ := strings.Cut(pair, "=")
		hint := "behind the ? may stand " + strings.Join(known, "=, ") + "=, with & between them"
		if !slices.Contains(known, key) {
			return nil, problem("an unknown setting stands behind the ?", hint)
		}
		if _, twice := values[key]; twice {
			return nil, problem(key+" is given twice", hint)
		}
		// Unlike in a web form, + is a plus: paths have them, and blanks are rare.
		value, err := url.PathUnescape(value)
		if err != nil || value == "" {
			return nil, problem(key+" is empty or badly escaped", "write "+key+"=value; a % in it is written %25, a & %26")
		}
		values[key] = value
	}
	return values, nil
}

// Files are those that a spec for Open names, which may be read and written later on. Programs are not among
// them: Runs tells whether there is one.
func Files(spec string) (files []string) {
	_, settings, _ := strings.Cut(spec, "?")
	for pair := range strings.SplitSeq(settings, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if path, err := url.PathUnescape(value); err == nil && path != "" && (key == "key-file" || key == "file") {
			files = append(files, path)
		}
	}
	return files
}

// Runs tells whether a spec for Open names a program.
func Runs(spec string) bool { return strings.HasPrefix(spec, "exec:") }

// waitTime reads a wait= setting.
func waitTime(value string, otherwise time.Duration) (time.Duration, error) {
	if value == "" {
		return otherwise, nil
	}
	d, err := time.ParseDuration(value)
	if value == "0" {
		d, err = 0, nil
	}
	if err != nil || d < 0 || d > waitLimit/2 {
		return 0, problem("wait is not a time from 0 to "+(waitLimit/2).String(), "write wait=30s or wait=2m; wait=0 does not wait")
	}
	return d, nil
}

// readFile reads a regular file of at most limit bytes. Pipes and devices, at which one could wait forever, are refused.
func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("read %s: not a file of at most %d bytes", path, limit)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: more than %d bytes", path, limit)
	}
	return data, nil
}

// prefix adds a step to err and keeps its hint.
func prefix(step string, err error) error { return fmt.Errorf("%s: %w", step, err) }
