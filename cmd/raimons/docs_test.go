package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"raimon/edge"
	"raimon/internal/command"
	"raimon/internal/configfile"
	"raimon/internal/options"
	"raimon/internal/tunneltest"
)

// tomlBlock is a config file in a text for people.
var tomlBlock = regexp.MustCompile("(?s)\n```toml\n(.*?)```\n")

// ofClient tells whether a config is one for raimonc, whose own test looks at it.
func ofClient(config string) bool { return strings.Contains(config, " -> ") }

// Every config file of an edge that the documentation shows is one with which an edge would start.
func TestConfigsInDocs(t *testing.T) {
	machine := machineOfDocs(t)
	for _, name := range []string{"README.md", "docs/config.md", "docs/running.md", "docs/deploy/edge.toml"} {
		text, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		configs := []string{string(text)}
		if filepath.Ext(name) == ".md" {
			configs = nil
			for _, found := range tomlBlock.FindAllStringSubmatch(string(text), -1) {
				if !ofClient(found[1]) {
					configs = append(configs, found[1])
				}
			}
		}
		if len(configs) == 0 {
			t.Errorf("%s shows no config", name)
		}
		for _, config := range configs {
			if err := check(t, machine.Replace(config)); err != nil {
				t.Errorf("%s: %v (%s)\n%s", name, err, command.Hint(err), config)
			}
		}
	}
}

// machineOfDocs moves the paths of configs to a folder in which there is what they name.
func machineOfDocs(t *testing.T) *strings.Replacer {
	root := filepath.ToSlash(t.TempDir())
	for _, folder := range []string{
		"etc/raimon/certs", "run/raimon", "var/log/raimon", "var/www/html", "var/www/edge", "var/www/example.com", "var/www/default",
	} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	ca := tunneltest.NewCA(t)
	made := ca.Write(t, t.TempDir(), ca.Issue(t, "any.example.com"))
	read := func(name string) string {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for name, text := range map[string]string{
		"certs/any.pem": read(made.Cert), "certs/any-key.pem": read(made.Key), "clients-ca.pem": read(made.CA),
		"tokens": "alice " + edge.HashToken("a token") + "\n", "admin-token": strings.Repeat("0123", 16) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(root, "etc/raimon", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return strings.NewReplacer(`"/etc/`, `"`+root+`/etc/`, `"/var/`, `"`+root+`/var/`, `"unix:/run/`, `"unix:`+root+`/run/`)
}

// check is raimons check.
func check(t *testing.T, text string) error {
	file, err := decodeConfig(configfile.Parse("edge.toml", []byte(text)))
	if err != nil {
		return err
	}
	job := &command.Job{Options: &options.Options{Storage: t.TempDir()}, Log: slog.New(slog.DiscardHandler)}
	d := &deployment{job: job, parts: make(parts), checking: true}
	_, _, err = d.build(file)
	return err
}
