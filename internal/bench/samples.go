package main

import (
	"encoding/csv"
	"io"
	"slices"
	"strconv"
)

// measure is what a number says.
type measure struct{ name, unit string }

// values are what one look at a subject gave.
type values map[measure]float64

// sample is one number that was measured.
type sample struct {
	repetition int // from 1
	subject    string
	measure    measure
	value      float64
}

// failure is a group of measures that a subject did not pass.
type failure struct {
	subject, group string
	err            error
}

// results are all that a run found out.
type results struct {
	samples  []sample
	failures []failure
}

func (r *results) add(repetition int, subject string, v values) {
	for m, x := range v {
		r.samples = append(r.samples, sample{repetition, subject, m, x})
	}
}

// fail notes the first failure of a subject in a group.
func (r *results) fail(subject, group string, err error) {
	if !slices.ContainsFunc(r.failures, func(f failure) bool { return f.subject == subject && f.group == group }) {
		r.failures = append(r.failures, failure{subject, group, err})
	}
}

// median is of all repetitions; false if there is no sample.
func (r *results) median(subject string, m measure) (float64, bool) {
	all := r.all(subject, m)
	if len(all) == 0 {
		return 0, false
	}
	return quantile(all, 0.5), true
}

// all are the samples of a measure, one a repetition.
func (r *results) all(subject string, m measure) []float64 {
	var all []float64
	for _, s := range r.samples {
		if s.subject == subject && s.measure == m {
			all = append(all, s.value)
		}
	}
	return all
}

// quantile of values that are not empty, interpolated: the median of two is their mean.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	position := q * float64(len(sorted)-1)
	low := int(position)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (position-float64(low))*(sorted[high]-sorted[low])
}

// writeCSV writes every sample, in the order of measuring.
func (r *results) writeCSV(w io.Writer) error {
	table := csv.NewWriter(w)
	table.Write([]string{"repetition", "subject", "measure", "value", "unit"})
	for _, s := range r.samples {
		table.Write([]string{strconv.Itoa(s.repetition), s.subject, s.measure.name, strconv.FormatFloat(s.value, 'g', 6, 64), s.measure.unit})
	}
	table.Flush()
	return table.Error()
}
