package main

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"raimon/internal/configfile"
)

var update = flag.Bool("update", false, "write the tables of docs/config.md anew")

// The tables of docs/config.md stand between these two.
const (
	keysBegin = "<!-- keys -->\n"
	keysEnd   = "<!-- /keys -->"
)

func TestConfigDocHasTheKeys(t *testing.T) {
	const name = "../../docs/config.md"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), keysBegin)
	_, after, closed := strings.Cut(rest, keysEnd)
	if !found || !closed {
		t.Fatalf("%s has no place for the tables", name)
	}
	want := before + keysBegin + keyTables() + keysEnd + after
	if want == string(text) {
		return
	}
	if !*update {
		t.Fatalf("%s is not what the structs say; go test ./cmd/raimons -run ConfigDoc -update writes it anew", name)
	}
	if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// keyTables are the keys of the config file, a table for each section.
func keyTables() string {
	var b strings.Builder
	var section func(title string, t reflect.Type)
	section = func(title string, t reflect.Type) {
		fmt.Fprintf(&b, "\n### %s\n\n| key | kind | meaning | without it |\n| --- | --- | --- | --- |\n", title)
		var below []reflect.StructField
		for _, f := range configfile.Keys(t) {
			kind := configfile.KindOf(f.Type)
			if kind == configfile.KindTable || kind == configfile.KindTables {
				below = append(below, f)
				continue
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.Tag.Get("toml"), kind, escaped(f.Tag.Get("help")), escaped(f.Tag.Get("standard")))
		}
		for _, f := range below {
			path := f.Tag.Get("toml")
			if title != topTitle {
				name, _, _ := strings.Cut(strings.Trim(title, "`["), "]")
				path = name + "." + path
			}
			child, left, right := f.Type, "[", "]"
			if child.Kind() == reflect.Slice {
				child, left, right = child.Elem(), "[[", "]]"
			}
			section("`"+left+path+right+"`: "+f.Tag.Get("help"), child)
		}
	}
	section(topTitle, reflect.TypeFor[configFile]())
	return b.String() + "\n"
}

const topTitle = "At the top of the file"

func escaped(s string) string { return strings.ReplaceAll(s, "|", `\|`) }

func TestEveryKeyIsExplained(t *testing.T) {
	var look func(path string, t reflect.Type)
	look = func(path string, at reflect.Type) {
		for _, f := range configfile.Keys(at) {
			key := path + f.Tag.Get("toml")
			if f.Tag.Get("help") == "" {
				t.Errorf("%s has no help", key)
			}
			below := f.Type
			if below.Kind() == reflect.Slice {
				below = below.Elem()
			}
			if below.Kind() == reflect.Struct {
				look(key+".", below)
			}
		}
	}
	look("", reflect.TypeFor[configFile]())
}

// Whatever a file holds, it is read or refused.
func FuzzConfig(f *testing.F) {
	for _, text := range []string{
		"listen = [\":443\"]\n[[site]]\nnames = [\"a.example\"]\n[[site.route]]\npath = \"/a\"\ntarget = \"b:1\"\n",
		"[[site]]\nx.y = 1", "site = [{names = [\"a\"]}]", "[a.b]\n[[a.b.c]]", "[[site.route]]\n[[site]]", "listen = 3", "[[limits]]", "=", "a=\n\"", "\xff",
		"\n a = “b”", "\ufefflisten = [\":443\"]", "\xff\xfea\x00", "a = \"\\€\"", "ä",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := decodeConfig(configfile.Parse("edge.toml", text))
		if (c == nil) == (err == nil) {
			t.Fatalf("got %v and %v", c, err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "edge.toml") {
			t.Errorf("the error %q does not name the file", err)
		}
	})
}
