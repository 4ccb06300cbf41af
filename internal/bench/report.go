package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// outcome is all that there is to say about a run.
type outcome struct {
	results  *results
	subjects []subject
	missing  []string // what was left out, and why
	machine  machine
	effort   effort
	took     time.Duration
	tables   []table
	goals    table
}

func newOutcome(l *lab, r *results, subjects []subject, missing []string, took time.Duration) *outcome {
	return &outcome{
		results: r, subjects: subjects, missing: missing, machine: l.machine(subjects), effort: l.effort, took: took,
		tables: makeTables(r, subjects), goals: goalTable(r),
	}
}

// print is for the terminal.
func (o *outcome) print(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "\n%s\n%s\n%s\n\n", o.machine.hardware, o.machine.system, strings.Join(o.machine.versions, ", "))
	for _, t := range append(o.tables, o.goals) {
		if len(t.rows) > 0 {
			fmt.Fprintln(&b, t.text())
		}
	}
	for _, line := range o.complaints() {
		fmt.Fprintln(&b, line)
	}
	fmt.Fprintf(&b, "\nmedians of %d, in %v\n", o.effort.repetitions, o.took.Round(time.Second))
	_, err := w.Write(b.Bytes())
	return err
}

// complaints are why numbers are missing.
func (o *outcome) complaints() []string {
	var lines []string
	for _, f := range o.results.failures {
		lines = append(lines, fmt.Sprintf("%s, %s: %s", f.subject, f.group, strings.ReplaceAll(f.err.Error(), "\n", "; ")))
	}
	return append(lines, o.missing...)
}

// Where the documentation has what a run found out; the rest of the file is left alone.
const (
	sectionBegin = "<!-- measured -->"
	sectionEnd   = "<!-- /measured -->"
)

// write leaves samples, tables and charts in the folder out, and with docs also in the documentation.
func (o *outcome) write(out, docs string) error {
	if err := os.MkdirAll(out, 0o777); err != nil {
		return err
	}
	var samples bytes.Buffer
	if err := o.results.writeCSV(&samples); err != nil {
		return err
	}
	files := map[string][]byte{"samples.csv": samples.Bytes(), "tables.md": []byte(o.markdown(""))}
	charts, err := o.charts()
	if err != nil {
		return err
	}
	for name, chart := range charts {
		files[name] = chart
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(out, name), data, 0o666); err != nil {
			return err
		}
	}
	fmt.Fprintf(os.Stderr, "samples, tables and charts are in %s\n", out)
	if docs == "" {
		return nil
	}
	return o.document(docs, charts)
}

// document puts charts into docs/benchmarks and the tables between two marks in docs/benchmarks.md.
func (o *outcome) document(docs string, charts map[string][]byte) error {
	const folder = "benchmarks"
	if err := os.MkdirAll(filepath.Join(docs, folder), 0o777); err != nil {
		return err
	}
	for name, chart := range charts {
		if err := os.WriteFile(filepath.Join(docs, folder, name), chart, 0o666); err != nil {
			return err
		}
	}
	file := filepath.Join(docs, "benchmarks.md")
	old, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = []byte("# Benchmarks\n\n"+sectionBegin+"\n"+sectionEnd+"\n"), nil
	}
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), sectionBegin)
	_, after, ok2 := strings.Cut(rest, sectionEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s: no lines %q and %q", file, sectionBegin, sectionEnd)
	}
	return os.WriteFile(file, []byte(before+sectionBegin+"\n"+o.markdown(folder+"/")+sectionEnd+after), 0o666)
}

// markdown is the part of the documentation that a run makes; charts stand at the path charts.
func (o *outcome) markdown(charts string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Medians of %d (of idle tunnels: one), measured in %.0f minutes on %s.\n\n", o.effort.repetitions, o.took.Minutes(), time.Now().Format(time.DateOnly))
	fmt.Fprintf(&b, "- %s\n- %s\n- %s\n\n", o.machine.hardware, o.machine.system, strings.Join(o.machine.versions, ", "))
	for _, c := range chartList {
		fmt.Fprintf(&b, "![%s](%s%s)\n\n", c.title, charts, c.file)
	}
	for _, t := range o.tables {
		if len(t.rows) > 0 {
			fmt.Fprintln(&b, t.markdown())
		}
	}
	if lines := o.complaints(); len(lines) > 0 {
		fmt.Fprintf(&b, "%s: no number, because\n\n", missing)
		for _, line := range lines {
			fmt.Fprintf(&b, "- %s\n", line)
		}
		fmt.Fprintln(&b)
	}
	if len(o.goals.rows) > 0 {
		fmt.Fprintln(&b, o.goals.markdown())
	}
	fmt.Fprintf(&b, "### Commands\n\n%s", o.commands())
	return b.String()
}

// commands shows how each end was started.
func (o *outcome) commands() string {
	var b strings.Builder
	b.WriteString("`{listen}` is where a program accepts, `{to}` where it connects to.\n")
	show := func(p program) {
		for _, variable := range p.env {
			fmt.Fprintf(&b, "    %s\n", shellWord(variable))
		}
		var words []string
		for _, word := range p.words {
			words = append(words, shellWord(word))
		}
		fmt.Fprintf(&b, "    %s\n", strings.Join(words, " "))
		for line := range strings.Lines(p.config) {
			fmt.Fprintf(&b, "        %s\n", strings.TrimRight(strings.ReplaceAll(line, "\t", "  "), "\n"))
		}
	}
	for _, s := range o.subjects {
		if s.bare() {
			continue
		}
		fmt.Fprintf(&b, "\n%s\n\n", s.name)
		show(s.server)
		show(s.client)
	}
	return b.String()
}

// shellWord quotes what a shell would not leave alone.
func shellWord(word string) string {
	if word == "" || strings.ContainsAny(word, " ;=()") {
		return "'" + word + "'"
	}
	return word
}
