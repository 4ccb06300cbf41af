package main

import (
	"crypto/tls"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// missing stands in a table where there is no number.
const missing = "–"

// table is what is printed, and what stands in the documentation.
type table struct {
	title string
	head  []string
	rows  [][]string
}

// column is one column of a table: its head, and what stands there for a subject.
type column struct {
	head string
	cell func(r *results, subject string) string
}

func makeTable(r *results, subjects []subject, title string, columns ...column) table {
	t := table{title: title, head: []string{"tunnel"}}
	for _, c := range columns {
		t.head = append(t.head, c.head)
	}
	for _, s := range subjects {
		row, something := []string{s.name}, false
		for _, c := range columns {
			cell := c.cell(r, s.name)
			row, something = append(row, cell), something || cell != missing
		}
		if something {
			t.rows = append(t.rows, row)
		}
	}
	return t
}

// number is a column with the median of a measure.
func number(head, format string, m measure) column { return sum(head, format, m) }

// sum is a column with the sum of medians.
func sum(head, format string, measures ...measure) column {
	return column{head, func(r *results, subject string) string {
		total, ok := r.total(subject, measures...)
		if !ok {
			return missing
		}
		return fmt.Sprintf(format, total)
	}}
}

// total is the sum of medians; false if one is missing.
func (r *results) total(subject string, measures ...measure) (float64, bool) {
	var total float64
	for _, m := range measures {
		x, ok := r.median(subject, m)
		if !ok {
			return 0, false
		}
		total += x
	}
	return total, true
}

func cpuOfBoth(direction string, connections int) []measure {
	return []measure{cpuOf(direction, connections, "client"), cpuOf(direction, connections, "server")}
}

// roundTripsColumn shows whole numbers where it may.
func roundTripsColumn(head string, m measure) column {
	return column{head, func(r *results, subject string) string {
		x, ok := r.median(subject, m)
		if !ok {
			return missing
		}
		return formatRoundTrips(x)
	}}
}

func formatRoundTrips(x float64) string {
	if whole := math.Round(x); math.Abs(x-whole) <= 0.2 {
		return fmt.Sprintf("%.0f", whole)
	}
	return fmt.Sprintf("%.1f", x)
}

// resumes tells from the bytes that the server sends whether it leaves out its certificate, or all of a handshake, when a client comes back.
func resumes(r *results, subject string) string {
	first, ok1 := r.median(subject, handshakeBytes)
	later, ok2 := r.median(subject, resumedBytes)
	const certificate, hello = 250, 120 // bytes at least
	switch {
	case !ok1 || !ok2:
		return missing
	case later < hello:
		return "reused"
	case first-later > certificate:
		return "resumed"
	}
	return "full"
}

// chosenTLS names cipher suite and key exchange.
func chosenTLS(r *results, subject string) string {
	suite, ok := r.median(subject, tlsSuite)
	group, _ := r.median(subject, tlsGroup)
	if !ok {
		return missing
	}
	name := strings.TrimPrefix(tls.CipherSuiteName(uint16(suite)), "TLS_")
	if group != 0 {
		name += ", " + tls.CurveID(group).String()
	}
	return name
}

// withSpread is a column with the median of a measure, and the least and the most of the repetitions.
func withSpread(head string, m measure) column {
	return column{head, func(r *results, subject string) string {
		all := r.all(subject, m)
		if len(all) == 0 {
			return missing
		}
		return fmt.Sprintf("%.0f (%.0f – %.0f)", quantile(all, 0.5), slices.Min(all), slices.Max(all))
	}}
}

func makeTables(r *results, subjects []subject) []table {
	return []table{
		makeTable(r, subjects, "Throughput, Gbit/s, over 1, 2 and 8 connections",
			number("up 1", "%.2f", rate("up", 1)), number("up 2", "%.2f", rate("up", 2)), number("up 8", "%.2f", rate("up", 8)),
			number("down 1", "%.2f", rate("down", 1)), number("down 2", "%.2f", rate("down", 2)), number("down 8", "%.2f", rate("down", 8))),
		makeTable(r, subjects, "Processor time, seconds per gigabyte",
			number("up: client", "%.2f", cpuOf("up", 1, "client")), number("server", "%.2f", cpuOf("up", 1, "server")), sum("both", "%.2f", cpuOfBoth("up", 1)...),
			number("down: client", "%.2f", cpuOf("down", 1, "client")), number("server", "%.2f", cpuOf("down", 1, "server")), sum("both", "%.2f", cpuOfBoth("down", 1)...),
			sum("up 8: both", "%.2f", cpuOfBoth("up", 8)...), sum("down 8: both", "%.2f", cpuOfBoth("down", 8)...)),
		makeTable(r, subjects, "64-byte round trips, µs",
			withSpread("p50 (least – most)", rttP50), number("p99", "%.0f", rttP99),
			withSpread("under load: p50 (least – most)", loadedP50), withSpread("p99 (least – most)", loadedP99)),
		makeTable(r, subjects, "New connections",
			number("per second", "%.0f", connectionRate),
			number("processor time, µs: client", "%.0f", connectionCPU("client")), number("server", "%.0f", connectionCPU("server")), column{"TLS handshakes", resumes}, column{"TLS", chosenTLS},
			roundTripsColumn("round trips to the first byte: application first", appFirst), roundTripsColumn("server first", serverFirst)),
		makeTable(r, subjects, "Memory and descriptors",
			number("KB per idle tunnel: client", "%.1f", idleMemory("client")), number("server", "%.1f", idleMemory("server")),
			number("after a burst: client", "%.1f", burstMemory("client")), number("server", "%.1f", burstMemory("server")),
			number("descriptors: client", "%.2f", idleFiles("client")), number("server", "%.2f", idleFiles("server")),
			number("peak, MB: client", "%.1f", peakOf("client")), number("server", "%.1f", peakOf("server"))),
	}
}

// text is the table for a terminal.
func (t table) text() string {
	widths := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", t.title)
	for _, row := range append([][]string{t.head}, t.rows...) {
		var line strings.Builder
		for i, cell := range row {
			space := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				line.WriteString("  " + cell + space)
			} else {
				line.WriteString("   " + space + cell)
			}
		}
		fmt.Fprintln(&b, strings.TrimRight(line.String(), " "))
	}
	return b.String()
}

// markdown is the table for the documentation.
func (t table) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "### %s\n\n| %s |\n| --- |%s\n", t.title, strings.Join(t.head, " | "), strings.Repeat(" ---: |", len(t.head)-1))
	for _, row := range t.rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
	}
	return b.String()
}
