package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"raimon/acme"
	"raimon/internal/text"
)

// printJSON prints an array in any case.
func printJSON(w io.Writer, all []acme.Status) error {
	if all == nil {
		all = []acme.Status{}
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(all)
}

// printTable prints one line for each certificate, and below what can be done where something is wrong.
func printTable(w io.Writer, all []acme.Status) error {
	now := time.Now()
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tISSUER\tNOT AFTER\tNEXT RENEWAL\tSTAPLE\tLAST ERROR")
	for _, s := range all {
		next := timeText(s.NextRenewal)
		if !s.NextRenewal.IsZero() && s.NextRenewal.Before(now) {
			next = "now"
		}
		fmt.Fprintln(table, strings.Join([]string{
			plain(s.Name), issuerText(s.Issuer), untilText(s.NotAfter, now), next, untilText(s.StapleUntil, now), plain(s.LastError),
		}, "\t"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, s := range all {
		if s.Hint != "" {
			if _, err := fmt.Fprintf(w, "hint for %s: %s\n", plain(s.Name), plain(s.Hint)); err != nil {
				return err
			}
		}
	}
	return nil
}

// plain is text that others have had a part in, such as a CA.
func plain(s string) string { return cmp.Or(text.Printable(s), "-") }

// issuerText is the host of the CA's directory, by which people know it.
func issuerText(directory string) string {
	if u, err := url.Parse(directory); err == nil && u.Host != "" {
		return plain(u.Host)
	}
	return plain(directory)
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04")
}

func untilText(t, now time.Time) string {
	if !t.IsZero() && !t.After(now) {
		return timeText(t) + " (expired)"
	}
	return timeText(t)
}
