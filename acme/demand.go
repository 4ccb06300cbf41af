package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"time"

	"raimon/internal/program"
)

// On demand anybody can make us ask for anything, so all of it is bounded.
const (
	maxOnDemand   = 10_000          // names kept
	maxDeciding   = 16              // decisions at a time
	maxAsking     = 1000            // names that wait for one
	maxRefusals   = 10_000          // remembered
	refusalLasts  = 5 * time.Minute // before the same name is asked about again
	silenceLasts  = 5 * time.Second // the same, where there was no answer
	decisionLimit = 5 * time.Second
)

// demand remembers which names were refused, and how many are being decided on.
type demand struct {
	mu       sync.Mutex
	refusals map[string]time.Time // name to the time when it may be asked about again
	asking   map[string]chan struct{}
	turns    chan struct{} // holds one for each decision that is being made
	silent   bool          // the last one that was asked for did not come
}

// ErrNotAllowed is what Config.Allow says no with. Any other error means that it could not decide.
var ErrNotAllowed = errors.New("not allowed")

// ErrUnknownName says that no certificate is kept for a name, and none is obtained on demand.
var ErrUnknownName = errors.New("no certificate for this name")

// onDemand decides about a name that was not asked for before, and begins to keep its certificate.
func (m *Manager) onDemand(hello *tls.ClientHelloInfo) (*keeper, error) {
	if m.config.Allow == nil || hello.ServerName == "" {
		return nil, ErrUnknownName
	}
	name, err := ParseName(hello.ServerName)
	if err != nil || isIP(name) || strings.HasPrefix(name, "*.") {
		return nil, ErrUnknownName
	}
	for {
		decided, err := m.asked.begin(name, m.clock.now(), m.onDemandCount())
		if err != nil {
			return nil, err
		}
		if decided == nil {
			break // it is ours to decide
		}
		select {
		case <-decided:
		case <-hello.Context().Done():
			return nil, hello.Context().Err()
		}
		if k := m.find(name); k != nil {
			return k, nil
		}
	}
	if err := m.asked.turn(hello.Context(), name); err != nil {
		return nil, err
	}
	defer m.asked.pass()
	// Begun is finished: the decision counts for others, though this client may be gone.
	limited, cancel := context.WithTimeout(context.WithoutCancel(hello.Context()), decisionLimit)
	defer cancel()
	err = m.config.Allow(limited, name)
	decided := err == nil || errors.Is(err, ErrNotAllowed)
	m.reportSilence(!decided, err)
	switch {
	case err == nil:
	case decided:
		m.asked.end(name, m.clock.now().Add(refusalLasts))
		return nil, fmt.Errorf("%w: %w", ErrUnknownName, err)
	case m.hasStored(hello.Context(), name): // it was allowed once, and is asked about again before it is renewed
	default:
		m.asked.end(name, m.clock.now().Add(silenceLasts))
		return nil, fmt.Errorf("nobody decides about this name: %w", err)
	}
	m.mu.Lock()
	k := m.keepers[name]
	if k == nil {
		k = m.newKeeper(name)
		k.demanded = true
		m.keepers[name] = k
		m.demands++
		m.start(k)
	}
	m.mu.Unlock()
	m.asked.end(name, time.Time{})
	return k, nil
}

func (m *Manager) onDemandCount() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.demands
}

// letGo keeps k no more.
func (m *Manager) letGo(k *keeper) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dismiss(k)
}

// hasStored tells whether there is a certificate of name that is valid.
func (m *Manager) hasStored(ctx context.Context, name string) bool {
	now := m.clock.now()
	for _, a := range m.authorities {
		p, err := m.storage.loadPair(ctx, pairName(a.issuer, name))
		if err == nil && now.After(p.leaf().NotBefore) && now.Before(p.leaf().NotAfter) {
			return true
		}
	}
	return false
}

// reportSilence says when decisions cease to come, and when they come again.
func (m *Manager) reportSilence(silent bool, err error) {
	m.asked.mu.Lock()
	before := m.asked.silent
	m.asked.silent = silent
	m.asked.mu.Unlock()
	switch {
	case silent && !before:
		m.log.Warn("on-demand does not answer: names that are new get no certificate", "error", err)
	case before && !silent:
		m.log.Info("on-demand answers again")
	}
}

// begin returns a channel to wait for where somebody else decides about name, nil and nil where the
// caller has to, and then calls end.
func (d *demand) begin(name string, now time.Time, kept int) (decided <-chan struct{}, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asking == nil {
		d.asking, d.refusals = make(map[string]chan struct{}), make(map[string]time.Time)
		d.turns = make(chan struct{}, maxDeciding)
	}
	if again, ok := d.refusals[name]; ok {
		if again.After(now) {
			return nil, ErrUnknownName
		}
		delete(d.refusals, name)
	}
	if c := d.asking[name]; c != nil {
		return c, nil
	}
	if len(d.asking) >= maxAsking || kept >= maxOnDemand {
		return nil, errors.New("too many names are asked for")
	}
	d.asking[name] = make(chan struct{})
	return nil, nil
}

// turn waits until name may be decided on, in the order of asking: a flood of names makes others wait,
// but does not keep them out. Pass gives the turn to the next. If ctx ends before, nothing is decided.
func (d *demand) turn(ctx context.Context, name string) error {
	select {
	case d.turns <- struct{}{}:
		return nil
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.asking[name])
	delete(d.asking, name)
	return ctx.Err()
}

func (d *demand) pass() { <-d.turns }

// end notes the decision: refused until again, or taken where again is zero.
func (d *demand) end(name string, again time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.asking[name])
	delete(d.asking, name)
	if again.IsZero() {
		return
	}
	if len(d.refusals) >= maxRefusals {
		for other := range d.refusals { // any will do: it is asked about again
			delete(d.refusals, other)
			break
		}
	}
	d.refusals[name] = again
}

// checkDemand asks again before a certificate on demand is renewed: names come and go.
func (k *keeper) checkDemand(ctx context.Context) error {
	if !k.demanded || k.held() == nil && k.failures == 0 {
		return nil // it has been asked just now
	}
	limited, cancel := context.WithTimeout(ctx, decisionLimit)
	defer cancel()
	if err := k.config.Allow(limited, k.name); err != nil {
		if errors.Is(err, ErrNotAllowed) {
			return fmt.Errorf("not any more: %w", err)
		}
		return fmt.Errorf("nobody decides about this name: %w", err)
	}
	return nil
}

// Ask makes Config.Allow of what a user wrote. An http or https URL is asked with ?domain=name and
// allows with status 200; anything else is a program, with arguments separated by blanks, that is
// called with the name as last argument and allows with exit status 0. No answer in time, and a status
// of 500 or more, is neither yes nor no.
func Ask(spec string) (func(context.Context, string) error, error) {
	if strings.HasPrefix(spec, "http://") || strings.HasPrefix(spec, "https://") {
		return askURL(spec)
	}
	return askProgram(spec)
}

func askURL(spec string) (func(context.Context, string) error, error) {
	u, err := url.Parse(spec)
	if err != nil || u.Host == "" {
		return nil, &ConfigError{Field: "Allow", Problem: "it is no URL", Fix: "write on-demand=http://127.0.0.1:8000/allowed, or the path of a program"}
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return func(ctx context.Context, name string) error {
		asked := *u
		query := asked.Query()
		query.Set("domain", name)
		asked.RawQuery = query.Encode()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, asked.String(), nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		response.Body.Close()
		switch {
		case response.StatusCode == http.StatusOK:
			return nil
		case response.StatusCode >= 500:
			return fmt.Errorf("%s answers with status %d", u.Host, response.StatusCode)
		}
		return fmt.Errorf("%w: %s answers with status %d", ErrNotAllowed, u.Host, response.StatusCode)
	}, nil
}

func askProgram(spec string) (func(context.Context, string) error, error) {
	p, err := program.Open(spec)
	if err != nil {
		return nil, &ConfigError{Field: "Allow", Problem: err.Error(), Fix: "on-demand= names a URL such as http://127.0.0.1:8000/allowed, or a program that may be run"}
	}
	return func(ctx context.Context, name string) error {
		// A name has been checked: it begins with a letter or a digit, and is no flag.
		output, err := p.Run(ctx, name)
		if err == nil {
			return nil
		}
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() > 0 {
			err = fmt.Errorf("%w: %w", ErrNotAllowed, err)
		}
		if output != "" {
			err = fmt.Errorf("%w: %s", err, output)
		}
		return fmt.Errorf("%s: %w", p.Path, err)
	}, nil
}
