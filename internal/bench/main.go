// Bench measures raimon beside its peers on this machine: one run, interleaved, repeated; medians.
// See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		fmt.Fprintln(os.Stderr, "bench:", role(os.Args[1], os.Args[2:]))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// settings are what the command line says.
type settings struct {
	bin, out, docs string
	subjects       *regexp.Regexp
	groups         *regexp.Regexp
	effort         effort
}

func parse(args []string) (*settings, error) {
	s := &settings{effort: fullEffort}
	f := flag.NewFlagSet("raimon-bench", flag.ContinueOnError)
	f.StringVar(&s.bin, "bin", "bin", "`folder` with raimons and raimonc, and in portable/ those built with the tag portable")
	f.StringVar(&s.out, "out", "bin/benchmarks", "`folder` for samples.csv, tables.md and the charts")
	f.StringVar(&s.docs, "docs", "", "`folder` whose benchmarks.md and benchmarks/*.svg are brought up to date as well; everything has to be measured for that")
	quick := f.Bool("quick", false, "measure everything once, and briefly: for a first look, not for conclusions")
	repetitions := f.Int("repetitions", 0, "how often everything is measured (default 5, with -quick 1)")
	only := f.String("subjects", "", "measure those that match this `regexp`; loopback and relay come along:"+listSubjects())
	measures := f.String("measures", "", "do the groups of measures that match this `regexp`:"+listGroups())
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("argument %q: there are only flags", f.Arg(0))
	}
	if *quick {
		s.effort = quickEffort
	}
	if *repetitions > 0 {
		s.effort.repetitions = *repetitions
	}
	var err error
	if s.subjects, err = regexp.Compile(*only); err != nil {
		return nil, fmt.Errorf("-subjects: %w", err)
	}
	if s.groups, err = regexp.Compile(*measures); err != nil {
		return nil, fmt.Errorf("-measures: %w", err)
	}
	if !slices.ContainsFunc(groups, func(g group) bool { return s.groups.MatchString(g.name) }) {
		return nil, fmt.Errorf("-measures: %q matches none: -h lists them", *measures)
	}
	if !slices.ContainsFunc(subjects, func(g subject) bool { return s.subjects.MatchString(g.name) }) {
		return nil, fmt.Errorf("-subjects: %q matches none: -h lists them", *only)
	}
	if s.docs != "" && (*quick || *only != "" || *measures != "") {
		return nil, errors.New("-docs replaces all that is published: it goes without -quick, -subjects and -measures")
	}
	return s, nil
}

func listSubjects() string {
	var names []string
	for _, s := range subjects {
		names = append(names, s.name)
	}
	return "\n" + strings.Join(names, ", ")
}

func listGroups() string {
	var b strings.Builder
	for _, g := range groups {
		fmt.Fprintf(&b, "\n%-12s %s", g.name, g.what)
	}
	return b.String()
}

func run(ctx context.Context, args []string) error {
	s, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	l, err := openLab(ctx, s.bin, s.effort)
	if err != nil {
		return err
	}
	defer l.close()
	present, missing := l.present(s.subjects)
	for _, m := range missing {
		fmt.Fprintln(os.Stderr, "left out:", m)
	}
	begin := time.Now()
	r := measureAll(ctx, l, present, s.groups, func(line string) { fmt.Fprintln(os.Stderr, line) })
	o := newOutcome(l, r, present, missing, time.Since(begin))
	if ctx.Err() != nil { // what there is may tell something
		return errors.Join(errors.New("interrupted"), o.write(s.out, ""))
	}
	if err := o.print(os.Stdout); err != nil {
		return err
	}
	return o.write(s.out, s.docs)
}

// measureAll goes through all groups and subjects as often as it shall. Each repetition begins with
// another subject, so that none is always measured after the same other one.
func measureAll(ctx context.Context, l *lab, subjects []subject, wanted *regexp.Regexp, progress func(string)) *results {
	r := &results{}
	for repetition := 1; repetition <= l.repetitions; repetition++ {
		shift := (repetition - 1) * len(subjects) / l.repetitions
		turn := slices.Concat(subjects[shift:], subjects[:shift])
		for _, g := range groups {
			if !wanted.MatchString(g.name) || g.once && repetition > 1 || ctx.Err() != nil {
				continue
			}
			begin := time.Now()
			g.measure(ctx, l, slices.DeleteFunc(slices.Clone(turn), func(s subject) bool {
				return s.bare() && !g.bare || len(s.only) > 0 && !slices.Contains(s.only, g.name)
			}), func(s subject, v values, err error) {
				r.add(repetition, s.name, v)
				if err != nil && ctx.Err() == nil {
					r.fail(s.name, g.name, err)
				}
			})
			progress(fmt.Sprintf("repetition %d of %d: %s: %v", repetition, l.repetitions, g.what, time.Since(begin).Round(100*time.Millisecond)))
		}
	}
	return r
}
