package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// bin is where TestMain puts raimons and raimonc.
var bin string

// TestMain is also the other processes of the bench, which starts itself again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		main()
	}
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "raimon-bench-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	for _, arguments := range [][]string{{"-o", dir + "/"}, {"-tags", "portable", "-o", filepath.Join(dir, "portable") + "/"}} {
		build := exec.Command("go", append(append([]string{"build"}, arguments...), "./cmd/raimons", "./cmd/raimonc")...)
		build.Dir = filepath.Join("..", "..")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n%s", build, err, out)
			return 1
		}
	}
	return m.Run()
}

// tiny is enough to see a number of each kind.
var tiny = effort{repetitions: 1, warmUp: 20 * time.Millisecond, window: 30 * time.Millisecond,
	blocks: 2, pings: 50, workers: 4, oneWay: 10 * time.Millisecond, idle: 30, quiet: 20 * time.Millisecond, busy: 4}

func newLab(t *testing.T) *lab {
	t.Helper()
	l, err := openLab(t.Context(), bin, tiny)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	return l
}

func TestAll(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	present, missing := l.present(regexp.MustCompile(`^raimon (tcp|(ws|wss)( reuse=off)?|wss full|wss pool)$`))
	if len(present) != 9 || len(missing) > 0 {
		t.Fatalf("got %d subjects, %q missing; want 9 and none", len(present), missing)
	}
	r := measureAll(t.Context(), l, present, regexp.MustCompile(""), func(line string) { t.Log(line) })
	for _, f := range r.failures {
		t.Errorf("%s, %s: %v", f.subject, f.group, f.err)
	}
	for _, s := range present {
		for _, m := range expected(s) {
			x, ok := r.median(s.name, m)
			if !ok || math.IsNaN(x) || x <= 0 && !strings.HasPrefix(m.name, "memory") {
				t.Errorf("%s, %s: %v, %v", s.name, m.name, x, ok)
			}
		}
	}
	checkKnown(t, r)
	checkOutcome(t, newOutcome(l, r, present, []string{"peer: not installed"}, time.Minute))
}

// expected are the measures that a subject has to have.
func expected(s subject) []measure {
	if len(s.only) > 0 {
		groups := map[string][]measure{"connections": {connectionRate}, "firstbyte": {appFirst, serverFirst}}
		var all []measure
		for _, group := range s.only {
			all = append(all, groups[group]...)
		}
		return all
	}
	all := []measure{connectionRate}
	all = append(all, rttP50, rttP99, loadedP50, loadedP99)
	for _, direction := range directions {
		for _, n := range parallel {
			all = append(all, rate(direction, n), busy(direction, n))
		}
	}
	if s.bare() {
		return all
	}
	all = append(all, appFirst, serverFirst)
	for _, end := range ends {
		all = append(all, idleMemory(end), burstMemory(end), idleFiles(end), peakOf(end), connectionCPU(end), cpuOf("up", 1, end), cpuOf("down", 8, end))
	}
	return all
}

// checkKnown looks at the numbers that are the same on every machine.
func checkKnown(t *testing.T, r *results) {
	for subject, want := range map[string][2]float64{
		"relay": {2, 2}, "raimon tcp": {2, 2}, "raimon ws": {1, 1}, "raimon ws reuse=off": {3, 2}, "raimon wss": {1, 1}, "raimon wss reuse=off": {4, 3}, "raimon wss pool": {1, 1},
	} {
		for i, m := range []measure{appFirst, serverFirst} {
			if x, _ := r.median(subject, m); x < want[i] || x > want[i]+0.9 { // a busy machine is late
				t.Errorf("%s, %s: %.2f round trips, want %v", subject, m.name, x, want[i])
			}
		}
	}
	for _, subject := range []string{"raimon tcp", "raimon ws", "raimon wss"} {
		for _, end := range ends {
			if x, _ := r.median(subject, idleFiles(end)); math.Abs(x-2) > 0.2 {
				t.Errorf("%s: %.2f descriptors per tunnel at the %s, want 2", subject, x, end)
			}
		}
	}
	for subject, want := range map[string]string{"raimon wss": "reused", "raimon wss reuse=off": "resumed"} {
		if got := resumes(r, subject); got != want {
			t.Errorf("%s: handshakes are %s, want %s", subject, got, want)
		}
	}
	if x, _ := r.median("relay", idleFiles("client")); x < 4 {
		t.Errorf("relay: %.2f descriptors per tunnel: it does not splice", x)
	}
}

// checkOutcome looks at what is printed and written.
func checkOutcome(t *testing.T, o *outcome) {
	var printed bytes.Buffer
	if err := o.print(&printed); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"raimon tcp", "raimon wss full", "relay's", "peer: not installed", "medians of 1"} {
		if !strings.Contains(printed.String(), want) {
			t.Errorf("%q is not printed", want)
		}
	}
	out, docs := t.TempDir(), t.TempDir()
	text := filepath.Join(docs, "benchmarks.md")
	if err := os.WriteFile(text, []byte("before\n"+sectionBegin+"\nold\n"+sectionEnd+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := o.write(out, docs); err != nil {
			t.Fatal(err)
		}
	}
	got := string(readFile(t, text))
	if !strings.HasPrefix(got, "before\n") || !strings.HasSuffix(got, "\nafter\n") || strings.Contains(got, "\nold\n") || !strings.Contains(got, "| raimon wss | ") {
		t.Errorf("documentation:\n%s", got)
	}
	rows, err := csv.NewReader(bytes.NewReader(readFile(t, filepath.Join(out, "samples.csv")))).ReadAll()
	if err != nil || len(rows) != 1+len(o.results.samples) {
		t.Errorf("samples.csv: %d lines of %d samples, %v", len(rows), len(o.results.samples), err)
	}
	for _, c := range chartList {
		if !strings.Contains(got, "](benchmarks/"+c.file+")") {
			t.Errorf("%s is not shown", c.file)
		}
		checkSVG(t, readFile(t, filepath.Join(docs, "benchmarks", c.file)), "relay", "raimon tcp", "raimon wss")
	}
}

// checkSVG wants well-formed XML with these texts.
func checkSVG(t *testing.T, data []byte, texts ...string) {
	t.Helper()
	var all []string
	for d := xml.NewDecoder(bytes.NewReader(data)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if text, ok := token.(xml.CharData); ok {
			all = append(all, string(text))
		}
	}
	for _, want := range texts {
		if !slices.Contains(all, want) {
			t.Errorf("no %q in the chart", want)
		}
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Every subject that is installed here carries data.
func TestSubjects(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	present, missing := l.present(regexp.MustCompile(""))
	for _, m := range missing {
		if strings.HasPrefix(m, "raimon") {
			t.Error(m)
		}
		t.Log(m)
	}
	for _, s := range present {
		tunnel, err := l.startTunnel(t.Context(), s, l.bulk, nil)
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		if err := connectOnce(tunnel.address); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		tunnel.stop()
	}
}

// A peer that does not work costs its numbers, not the run.
func TestFailures(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	broken := []subject{
		{name: "ends", server: ourRole("nonsense"), client: ourRole("relay")},
		{name: "leads nowhere", server: ourRole("relay"), client: program{words: []string{"bench", "relay", "{listen}", "127.0.0.1:1"}}},
	}
	for _, s := range broken {
		r := measureAll(t.Context(), l, []subject{s, {name: "loopback"}}, regexp.MustCompile("roundtrip|connections|firstbyte|idle"), func(string) {})
		if len(r.failures) != 4 {
			t.Errorf("%s: %d failures, want 4: %v", s.name, len(r.failures), r.failures)
		}
		if _, ok := r.median("loopback", rttP50); !ok {
			t.Errorf("%s: nothing of the others", s.name)
		}
		for _, f := range r.failures {
			if f.subject != s.name {
				t.Errorf("%s failed: %v", f.subject, f.err)
			}
		}
	}
}

// What was started ends with the context.
func TestInterrupted(t *testing.T) {
	l := newLab(t)
	ctx, cancel := context.WithCancel(t.Context())
	i := slices.IndexFunc(subjects, func(s subject) bool { return s.name == "raimon tcp" })
	tunnel, err := l.startTunnel(ctx, subjects[i], l.bulk, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.stop()
	cancel()
	for _, p := range tunnel.ends() {
		select {
		case <-p.done:
		case <-time.After(10 * time.Second):
			t.Errorf("%s still runs", p.name)
		}
	}
}

func TestQuantile(t *testing.T) {
	for _, c := range []struct {
		values  []float64
		q, want float64
	}{
		{[]float64{7}, 0.5, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 2, 3}, 0.5, 2.5},
		{[]float64{1, 2, 3, 4, 5}, 0.99, 4.96},
		{[]float64{2, 1}, 1, 2},
	} {
		if got := quantile(c.values, c.q); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("quantile(%v, %v) = %v, want %v", c.values, c.q, got, c.want)
		}
	}
}

func TestFlags(t *testing.T) {
	s, err := parse([]string{"-quick", "-repetitions", "3", "-subjects", "wss$"})
	if err != nil || s.effort.repetitions != 3 || s.effort.window != quickEffort.window || !s.subjects.MatchString("kaminari wss") {
		t.Errorf("got %+v, %v", s, err)
	}
	for _, wrong := range [][]string{{"-subjects", "("}, {"-measures", "["}, {"more"}} {
		if _, err := parse(wrong); err == nil {
			t.Errorf("%q is accepted", wrong)
		}
	}
}
