// Package configfile reads the TOML files of raimons and raimonc, and tells of each mistake in them on which line
// it stands and what to write instead.
package configfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

const maxSize = 1 << 20 // bytes

// File is a config file that has been read.
type File struct {
	Name string

	text  []byte
	lines map[string]int // of keys and tables, such as site[0].route[1].path
}

// Error is a mistake in a config file.
type Error struct {
	File    string
	Line    int    // zero: of no line in particular
	Problem string // never holds a value that may be a secret
	Fix     string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.File, e.Problem)
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Problem)
}

// Hint says what to do.
func (e *Error) Hint() string { return e.Fix }

// IsConfig makes it a mistake of the user's, for the exit status.
func (e *Error) IsConfig() bool { return true }

// Read reads the file of that name, of 1 MiB at most. What is no TOML is an *Error.
func Read(name string) (*File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, unreadable{err}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, unreadable{err}
	}
	if len(text) > maxSize {
		return nil, &Error{File: name, Problem: "larger than 1 MiB", Fix: "a config file is a few lines: is this the right file?"}
	}
	return Parse(name, text)
}

// Parse is Read for a text that is there already; name is what messages call it.
func Parse(name string, text []byte) (*File, error) {
	if bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff")) {
		return nil, &Error{File: name, Line: 1, Problem: "the file is UTF-16", Fix: "save it as UTF-8"}
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff")) // some editors of Windows put a byte order mark there
	f := &File{Name: name, text: text}
	var all map[string]any
	if err := toml.Unmarshal(text, &all); err != nil {
		return nil, f.broken(err)
	}
	f.lines = linesOf(text)
	return f, nil
}

// unreadable is a file that cannot be read: as much the user's mistake as what stands in one.
type unreadable struct{ error }

func (e unreadable) Unwrap() error  { return e.error }
func (e unreadable) IsConfig() bool { return true }

// Table is all of the file, as go-toml decodes it into a map.
func (f *File) Table() (map[string]any, error) {
	var all map[string]any
	if err := toml.Unmarshal(f.text, &all); err != nil {
		return nil, f.broken(err)
	}
	return all, nil
}

// broken is for what is no TOML.
func (f *File) broken(err error) error {
	e := &Error{File: f.Name, Problem: strings.TrimPrefix(err.Error(), "toml: "),
		Fix: "the file is TOML (https://toml.io): texts stand in quotes, lists in brackets; the docs have all keys"}
	var broken *toml.DecodeError
	if errors.As(err, &broken) {
		line, column := broken.Position()
		e.Line = line
		e.Problem = firstByte.ReplaceAllStringFunc(e.Problem, func(string) string {
			r, _ := utf8.DecodeRune(f.from(line, column))
			if strings.ContainsRune("“”„‟‘’‚‛«»", r) {
				e.Fix = `write straight quotes, as in "text"`
			}
			return fmt.Sprintf("%#U", r)
		})
	}
	return e
}

// firstByte is what go-toml calls a character that has more bytes than one.
var firstByte = regexp.MustCompile(`U\+00[89A-F][0-9A-F]( '.')?`)

// from is the text from a line on and a byte in it, both counted from 1.
func (f *File) from(line, column int) []byte {
	lines := bytes.SplitN(f.text, []byte("\n"), line)
	last := lines[len(lines)-1]
	return bytes.TrimPrefix(last[min(column-1, len(last)):], []byte(`\`)) // which stands before what cannot be escaped
}

// Wrong is a mistake at path, such as site[0].cert, or at the nearest thing around it that is in the file.
func (f *File) Wrong(path, problem, fix string) error {
	e := &Error{File: f.Name, Problem: problem, Fix: fix}
	for e.Line = f.lines[path]; e.Line == 0 && path != ""; e.Line = f.lines[path] {
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return e
}

// Line is where path stands; zero: nowhere.
func (f *File) Line(path string) int { return f.lines[path] }

// linesOf finds where keys and tables stand.
func linesOf(text []byte) map[string]int {
	lines := make(map[string]int)
	seen := make(map[string]int) // arrays of tables, by path
	table := ""
	var p unstable.Parser
	p.Reset(text)
	for p.NextExpression() {
		e := p.Expression()
		path, line := "", 0
		if e.Kind == unstable.KeyValue {
			path = table
		}
		var parts []string
		for it := e.Key(); it.Next(); {
			k := it.Node()
			parts = append(parts, string(k.Data))
			line = bytes.Count(text[:k.Raw.Offset], []byte("\n")) + 1
		}
		for n, part := range parts {
			if path != "" {
				path += "."
			}
			path += part
			if e.Kind == unstable.ArrayTable && n == len(parts)-1 {
				seen[path]++
				if lines[path] == 0 {
					lines[path] = line
				}
			}
			if count := seen[path]; count > 0 && e.Kind != unstable.KeyValue {
				path = fmt.Sprintf("%s[%d]", path, count-1)
			}
			if lines[path] == 0 {
				lines[path] = line
			}
		}
		if e.Kind != unstable.KeyValue {
			table = path
		}
	}
	return lines
}
