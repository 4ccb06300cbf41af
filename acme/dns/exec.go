package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/libdns/libdns"

	"raimon/internal/program"
)

const execLimit = 5 * time.Minute

// hook changes records by running a program of the user's, as
//
//	program [arguments] present _acme-challenge.example.com. VALUE
//	program [arguments] cleanup _acme-challenge.example.com. VALUE
//
// with the environment of this process and nothing on stdin. It exits with 0 once the name servers answer the record: the CA
// asks right after that. VALUE may begin with a hyphen; there may be other values under the name, which have to stay; and it
// may run several times at once. It is killed after 5 minutes, a cleanup after 2.
type hook struct {
	program *program.Program
	limit   time.Duration // of one run
	log     *slog.Logger
}

func openHook(command string, log *slog.Logger) (*hook, error) {
	const hint = `write exec:/path/to/program, arguments behind it with blanks between; "double quotes" hold a path or an argument with blanks together`
	p, err := program.Open(command)
	if errors.Is(err, program.ErrNoProgram) {
		return nil, problem("exec: "+err.Error(), hint)
	}
	if err != nil {
		return nil, &hinted{fmt.Errorf("exec: %w", err), "name a file that exists and that this user may execute (chmod +x), best with its whole path"}
	}
	return &hook{program: p, limit: execLimit, log: log}, nil
}

func (p *hook) place(_ context.Context, fqdn string) (place, error) {
	return besideDomain(fqdn), nil
}

// wait has nothing to do: it is the program's part.
func (p *hook) wait(context.Context, place, string) error { return nil }

func (p *hook) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return p.each(ctx, "present", zone, records)
}

func (p *hook) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return p.each(ctx, "cleanup", zone, records)
}

func (p *hook) each(ctx context.Context, verb, zone string, records []libdns.Record) ([]libdns.Record, error) {
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

func (p *hook) run(ctx context.Context, verb, fqdn, value string) error {
	ctx, cancel := context.WithTimeout(ctx, p.limit)
	defer cancel()
	output, err := p.program.Run(ctx, verb, fqdn, value)
	if err == nil {
		p.log.Debug("dns program ran", "program", p.program.Path, "verb", verb, "output", output)
		return nil
	}
	if output != "" {
		output = ": " + output
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s %s was %w%s", p.program.Path, verb, err, output)
	}
	return &hinted{fmt.Errorf("%s %s: %w%s", p.program.Path, verb, err, output),
		fmt.Sprintf("run it by hand to see what is wrong: %s %s %s test", p.program.Path, verb, fqdn)}
}
