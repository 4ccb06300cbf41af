package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"raimon/internal/client"
	"raimon/internal/command"
	"raimon/internal/text"
)

const statusHelp = `raimonc status shows how the tunnels of running clients do.

    raimonc status [-json]                  all clients of this user
    raimonc status [-json] -config <file>   those that run with the file

Clients with addresses on their command line, stdio and plugins are not among
them: each is one tunnel, and has its log.

STATE is one of:
  ready                 connections to the edge are open, or wait for programs
  idle                  none is: the next program to come will show whether the
                        edge is there; without a pool nobody tries before, also
                        where it was out of reach when last tried
  waiting               the first connection to the edge is being made
  out of reach for ...  the last attempt to reach the edge failed; why is below

POOL is how many connections wait for programs, of how many there should be.
OPEN counts connections of programs now, TOTAL since the start. SENT and
RECEIVED are bytes, ROUND TRIP is that of the last connection to the edge.

Flags:
  -json                      print an array of objects, one a client: times as
                             in RFC 3339, round_trip in nanoseconds
  -h                         print this

Exit status: 0 when there is something to show, 1 when no client is running or
none answers.
`

var statusCommand = command.Command{Name: "status", Help: statusHelp, Actions: []command.Action{{JSON: true}}, Run: status}

func status(ctx context.Context, job *command.Job) error {
	clients, err := findRunning(ctx, job.Config, job.Log)
	reports := []report{}
	for _, c := range clients {
		reports = append(reports, c.report)
	}
	if job.JSON {
		encoder := json.NewEncoder(job.Stdout)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return errors.Join(err, encoder.Encode(reports)) // an array in any case
	}
	if err != nil {
		return err
	}
	_, err = io.WriteString(job.Stdout, statusText(reports, time.Now(), width(job.Stdout)))
	return err
}

// unlimited is the width of what is no terminal.
const unlimited = 1 << 16

// width is how many characters a line of w can have.
func width(w io.Writer) int {
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && n > 0 {
		return n
	}
	if f, ok := w.(*os.File); ok {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
			return n
		}
	}
	return unlimited
}

// statusText shows reports in lines of that width: as tables if these fit into it.
func statusText(reports []report, now time.Time, width int) string {
	var b strings.Builder
	for n, r := range reports {
		if n > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "%s (process %d, for %s)\n\n", text.Printable(r.File), r.PID, text.Span(now.Sub(r.Started)))
		body := table(r.Tunnels, now)
		if widest(body) <= width {
			b.WriteString(body + troubles(r.Tunnels, now))
		} else {
			b.WriteString(list(r.Tunnels, now))
		}
	}
	return b.String()
}

func widest(s string) (widest int) {
	for line := range strings.Lines(s) {
		widest = max(widest, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")))
	}
	return widest
}

// table has a line for each tunnel.
func table(tunnels []client.Status, now time.Time) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TUNNEL\tSTATE\tLISTEN -> REMOTE\tOVER\tPOOL\tOPEN\tTOTAL\tSENT\tRECEIVED\tROUND TRIP")
	for _, s := range tunnels {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", text.Printable(s.Name), state(s, now), way(s), s.Transport,
			poolText(s), s.Open, s.Total, text.Bytes(s.Sent), text.Bytes(s.Received), roundTrip(s))
	}
	w.Flush() // a strings.Builder takes everything
	return b.String()
}

// troubles is what the table has no room for; empty if there is none.
func troubles(tunnels []client.Status, now time.Time) string {
	var b strings.Builder
	for _, s := range tunnels {
		for _, trouble := range troublesOf(s, now) {
			b.WriteString(text.Printable(s.Name) + ": " + trouble + "\n")
		}
	}
	if b.Len() == 0 {
		return ""
	}
	return "\n" + b.String()
}

// list has a few short lines for each tunnel.
func list(tunnels []client.Status, now time.Time) string {
	var b strings.Builder
	for _, s := range tunnels {
		lines := []string{
			text.Printable(s.Name) + ": " + state(s, now),
			"  " + way(s) + " over " + s.Transport,
			fmt.Sprintf("  pool %s, open %d of %d", poolText(s), s.Open, s.Total),
			fmt.Sprintf("  sent %s, received %s, round trip %s", text.Bytes(s.Sent), text.Bytes(s.Received), roundTrip(s)),
		}
		for _, trouble := range troublesOf(s, now) {
			lines = append(lines, "  "+trouble)
		}
		for _, line := range lines {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// state is what the help text explains.
func state(s client.Status, now time.Time) string {
	switch {
	case !s.Since.IsZero() && s.Pool == 0 && s.Open == 0: // nobody has tried since
		if s.LastError != s.Error {
			return "idle, out of reach when last tried"
		}
		return fmt.Sprintf("idle, out of reach when last tried %s ago", text.Span(now.Sub(s.LastErrorAt)))
	case !s.Since.IsZero():
		return "out of reach for " + text.Span(now.Sub(s.Since))
	case s.Ready > 0, s.Open > 0 && !s.Reached.IsZero():
		return "ready"
	case s.Pool > 0, s.Open > 0:
		return "waiting"
	}
	return "idle"
}

// longestError is in characters: what people still read, on a few lines of a narrow terminal. The whole is in -json.
const longestError = 200

// troublesOf says why the edge is out of reach, and what the last connection that failed died of if that is
// something else.
func troublesOf(s client.Status, now time.Time) (all []string) {
	if s.Error != "" {
		all = append(all, "out of reach: "+errorText(s.Error))
	}
	if s.LastError != "" && s.LastError != s.Error {
		all = append(all, fmt.Sprintf("last error, %s ago: %s", text.Span(now.Sub(s.LastErrorAt)), errorText(s.LastError)))
	}
	return all
}

// errorText may hold what a network has said.
func errorText(s string) string { return text.Shorten(text.Printable(s), longestError) }

func way(s client.Status) string {
	return text.Printable(strings.Join(s.Listen, ", ") + " -> " + s.Remote)
}

func poolText(s client.Status) string {
	if s.Pool == 0 {
		return "-"
	}
	return fmt.Sprintf("%d/%d", min(s.Ready, s.Pool), s.Pool) // one that is being renewed is there twice
}

func roundTrip(s client.Status) string {
	switch d := s.RoundTrip; {
	case d == 0:
		return "-"
	case d < 10*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	default:
		return d.Round(time.Millisecond).String()
	}
}
