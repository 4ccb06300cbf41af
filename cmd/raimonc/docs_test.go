package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"raimon/internal/command"
	"raimon/internal/configfile"
)

// tomlBlock is a config file in a text for people.
var tomlBlock = regexp.MustCompile("(?s)\n```toml\n(.*?)```\n")

// Every config file of a client that the documentation shows can be read.
func TestConfigsInDocs(t *testing.T) {
	for _, name := range []string{"README.md", "docs/client.md"} {
		text, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for _, found := range tomlBlock.FindAllStringSubmatch(string(text), -1) {
			if !strings.Contains(found[1], " -> ") { // an edge's
				continue
			}
			count++
			if _, err := parseProfiles(configfile.Parse("tunnels.toml", []byte(found[1]))); err != nil {
				t.Errorf("%s: %v (%s)\n%s", name, err, command.Hint(err), found[1])
			}
		}
		if count == 0 {
			t.Errorf("%s shows no config", name)
		}
	}
}
