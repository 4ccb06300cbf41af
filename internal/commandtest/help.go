package commandtest

import (
	"os/exec"
	"strings"
	"testing"

	"raimon/internal/options"
)

// Help tests that -h of side's program shows each option of that side.
func Help(t *testing.T, side options.Side) {
	out, err := exec.Command(side.String(), "-h").Output()
	if err != nil {
		t.Fatal(err)
	}
	sides := map[options.Side]string{options.Client: "client", options.Server: "server"}
	rows := 0
	for line := range strings.Lines(options.Markdown()) {
		// A "|" within a cell is escaped.
		cells := strings.Split(strings.ReplaceAll(line, `\|`, "\x00"), " | ")
		usage, found := strings.CutPrefix(cells[0], "| `")
		if !found {
			continue // the head of the table
		}
		usage = strings.ReplaceAll(strings.TrimSuffix(usage, "`"), "\x00", "|")
		shown := strings.Contains(string(out), "\n  "+usage+" ") || strings.Contains(string(out), "\n  "+usage+"\n")
		switch {
		case cells[1] != "both" && cells[1] != sides[side]:
		case !shown:
			t.Errorf("-h does not show %s", usage)
		default:
			rows++
		}
	}
	if rows < 10 {
		t.Errorf("-h shows %d options of the table, want more", rows)
	}
}
