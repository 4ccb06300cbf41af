package edge

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// docs/monitoring.md has all metrics of raimon, and no other.
func TestDocsOfMetrics(t *testing.T) {
	text, err := os.ReadFile("../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `raimon_") {
			cell, _, _ := strings.Cut(line[2:], "|")
			documented = append(documented, regexp.MustCompile(`raimon_\w+`).FindAllString(cell, -1)...)
		}
	}
	descs := make(chan *prometheus.Desc, 1000)
	NewMetrics().registry.Describe(descs)
	(&liveCollector{liveDescs: newLiveDescs()}).Describe(descs)
	close(descs)
	var known []string
	for d := range descs {
		if name := regexp.MustCompile(`fqName: "(raimon_\w+)"`).FindStringSubmatch(d.String()); name != nil {
			known = append(known, name[1])
		}
	}
	slices.Sort(documented)
	slices.Sort(known)
	if !slices.Equal(documented, known) {
		t.Errorf("documented are\n%s\nthere are\n%s", strings.Join(documented, "\n"), strings.Join(known, "\n"))
	}
	for _, name := range regexp.MustCompile(`raimon_\w+`).FindAllString(string(text), -1) {
		if !slices.Contains(known, name) {
			t.Errorf("there is no %s", name)
		}
	}
}
