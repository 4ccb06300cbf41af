package options

import (
	"fmt"
	"io"
	"strings"
)

// helpWidth is in columns; helpIndent is where explanations start.
const (
	helpWidth  = 80
	helpIndent = 29
)

// Help writes the options of one side, grouped, for -h.
func Help(w io.Writer, side Side) {
	group := ""
	for _, row := range table {
		if row.sides&only(side) == 0 {
			continue
		}
		if row.group != group {
			if group != "" {
				fmt.Fprintln(w)
			}
			group = row.group
			fmt.Fprintf(w, "%s:\n", group)
		}
		left := "  " + row.usage()
		lines := wrap(row.explanation(), helpWidth-helpIndent)
		if len(left) > helpIndent-2 { // too long to stand beside its explanation
			fmt.Fprintln(w, left)
			left = ""
		}
		for _, line := range lines {
			fmt.Fprintf(w, "%-*s%s\n", helpIndent, left, line)
			left = ""
		}
	}
}

// Markdown returns the options of both sides as the table in README.md.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| option | side | meaning |\n| --- | --- | --- |\n")
	cell := strings.NewReplacer("|", `\|`)
	for _, row := range table {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", cell.Replace(row.usage()), row.sides, cell.Replace(row.explanation()))
	}
	return b.String()
}

func (s sides) String() string {
	switch s {
	case client:
		return "client"
	case server:
		return "server"
	}
	return "both"
}

// usage is the option as it is typed.
func (row *option) usage() string {
	if row.arg == "" {
		return row.key
	}
	return row.key + "=" + row.arg
}

func (row *option) explanation() string {
	if row.standard == "" {
		return row.help
	}
	return fmt.Sprintf("%s (default %s)", row.help, row.standard)
}

func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}
