package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/libdns/libdns"
)

const (
	programLimit  = 5 * time.Minute
	programLinger = 2 * time.Second // for the output of what the program left running
	outputLimit   = 2048            // bytes of a program's output in an error
)

// program changes records by running a program of the user's, as
//
//	program [arguments] present _acme-challenge.example.com. VALUE
//	program [arguments] cleanup _acme-challenge.example.com. VALUE
//
// with the environment of this process and nothing on stdin. It exits with 0 once the name servers answer the record: the CA
// asks right after that. VALUE may begin with a hyphen; there may be other values under the name, which have to stay; and it
// may run several times at once. It is killed after 5 minutes, a cleanup after 2.
type program struct {
	path  string
	args  []string
	limit time.Duration // of one run
	log   *slog.Logger
}

func openProgram(command string, log *slog.Logger) (*program, error) {
	const hint = `write exec:/path/to/program, arguments behind it with blanks between; "double quotes" hold a path or an argument with blanks together`
	words, err := splitCommand(command)
	if err != nil || len(words) == 0 || words[0] == "" {
		return nil, problem("exec: no program is named, or a quote is not closed", hint)
	}
	path, err := exec.LookPath(words[0])
	if err == nil {
		path, err = filepath.Abs(path) // the working directory may change
	}
	if err != nil {
		return nil, &hinted{fmt.Errorf("exec: %w", err), "name a file that exists and that this user may execute (chmod +x), best with its whole path"}
	}
	return &program{path: path, args: words[1:], limit: programLimit, log: log}, nil
}

// splitCommand splits at blanks outside of double quotes. Backslashes are ordinary, as paths on Windows need it.
func splitCommand(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	inWord, quoted := false, false
	for _, r := range s {
		switch {
		case r == 0:
			return nil, errors.New("a zero byte")
		case r == '"':
			inWord, quoted = true, !quoted
		case unicode.IsSpace(r) && !quoted:
			if inWord {
				words = append(words, word.String())
				word.Reset()
			}
			inWord = false
		default:
			inWord = true
			word.WriteRune(r)
		}
	}
	if quoted {
		return nil, errors.New("an open quote")
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, nil
}

func (p *program) place(_ context.Context, fqdn string) (place, error) {
	return besideDomain(fqdn), nil
}

// wait has nothing to do: it is the program's part.
func (p *program) wait(context.Context, place, string) error { return nil }

func (p *program) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return p.each(ctx, "present", zone, records)
}

func (p *program) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return p.each(ctx, "cleanup", zone, records)
}

func (p *program) each(ctx context.Context, verb, zone string, records []libdns.Record) ([]libdns.Record, error) {
	all, err := texts(zone, records)
	if err != nil {
		return nil, err
	}
	for i, r := range all {
		if err := p.run(ctx, verb, r.fqdn, r.value); err != nil {
			return records[:i], err
		}
	}
	return records, nil
}

func (p *program) run(ctx context.Context, verb, fqdn, value string) error {
	ctx, cancel := context.WithTimeout(ctx, p.limit)
	defer cancel()
	var output tail
	cmd := exec.CommandContext(ctx, p.path, append(p.args[:len(p.args):len(p.args)], verb, fqdn, value)...)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.Env = os.Environ()
	cmd.WaitDelay = programLinger
	killFamily(cmd)
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended well and left something running that kept its output open
	}
	if err == nil {
		p.log.Debug("dns program ran", "program", p.path, "verb", verb, "output", output.String())
		return nil
	}
	said := ""
	if text := output.String(); text != "" {
		said = ": " + text
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s %s was killed: %w%s", p.path, verb, ctx.Err(), said)
	}
	return &hinted{fmt.Errorf("%s %s: %w%s", p.path, verb, err, said),
		fmt.Sprintf("run it by hand to see what is wrong: %s %s %s test", p.path, verb, fqdn)}
}

// tail keeps the last outputLimit bytes that are written to it: what a program says last says why it ended.
type tail struct {
	kept []byte
	cut  bool
}

func (t *tail) Write(b []byte) (int, error) {
	n := len(b)
	if n >= outputLimit {
		t.cut = t.cut || n > outputLimit || len(t.kept) > 0
		t.kept = append(t.kept[:0], b[n-outputLimit:]...)
		return n, nil
	}
	if over := len(t.kept) + n - outputLimit; over > 0 {
		t.cut = true
		t.kept = t.kept[:copy(t.kept, t.kept[over:])]
	}
	t.kept = append(t.kept, b...)
	return n, nil
}

// String makes one line of it that is safe to print.
func (t *tail) String() string {
	text := strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) && r != unicode.ReplacementChar {
			return r
		}
		return ' '
	}, string(t.kept))
	text = strings.Join(strings.Fields(text), " ")
	if t.cut {
		text = "..." + text
	}
	return text
}
