package edge

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// checkTimeout is how long a check may ask; a third of it later nobody waits for it any more.
	checkTimeout = 3 * time.Second
	// checkedFor is how long the answer of a check is good: probes may come from many sides.
	checkedFor = 2 * time.Second
	// A storage has to write for it.
	storageCheckedFor = 10 * time.Second
	parallelChecks    = 16
)

// serves says why the server takes no connections; nil: it does.
func (s *Server) serves() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.run == nil:
		return errors.New("the edge does not serve: it is starting or shutting down")
	case len(s.doors) == 0:
		return errors.New("no listener is open")
	}
	return nil
}

// certificateProblems are the names for which there is no certificate to show, and why.
func (s *Server) certificateProblems(ctx context.Context) (problems []string) {
	now := s.current.Load()
	if now == nil || !slices.ContainsFunc(now.config.Listeners, func(l Listener) bool { return !l.Plain }) {
		return nil
	}
	var mu sync.Mutex
	var checks sync.WaitGroup
	places := make(chan struct{}, parallelChecks)
	for _, site := range now.config.Sites {
		if site.Pass != "" {
			continue
		}
		names := site.Names
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			places <- struct{}{}
			checks.Go(func() {
				defer func() { <-places }()
				if err := site.probe(ctx, name); err != nil {
					mu.Lock()
					defer mu.Unlock()
					problems = append(problems, fmt.Sprintf("certificate of %s: %v", cmp.Or(name, site.label()), err))
				}
			})
		}
	}
	checks.Wait()
	slices.Sort(problems)
	return problems
}

// errProbed ends the handshake of a probe.
var errProbed = errors.New("the certificate is known")

// probe asks, until ctx ends, for the certificate of name as a client would: only crypto/tls can make a ClientHello. Of a
// site without names, "" asks for what those get who name none; such a site may have none for them.
func (s *Site) probe(ctx context.Context, name string) error {
	if strings.HasPrefix(name, "*.") {
		name = "any" + name[1:]
	}
	ours, theirs := net.Pipe()
	defer ours.Close()
	client := tls.Client(theirs, &tls.Config{ServerName: name, InsecureSkipVerify: true}) // it gets no certificate
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		client.HandshakeContext(ctx) // it fails in any case
		theirs.Close()
	}()
	defer func() { <-ended }()
	var shown *tls.Certificate
	err := tls.Server(ours, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		var err error
		if shown, err = s.certificate(hello); err != nil {
			return nil, err
		}
		return nil, errProbed
	}}).HandshakeContext(ctx)
	switch {
	case !errors.Is(err, errProbed):
		return err
	case shown == nil && name == "":
		return nil
	case shown == nil:
		return errUnknownName
	}
	return checkDates(shown)
}

// checkDates finds a certificate that clients take for expired.
func checkDates(c *tls.Certificate) error {
	leaf := c.Leaf
	if leaf == nil && len(c.Certificate) > 0 {
		var err error
		if leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
			return err
		}
	}
	switch now := time.Now(); {
	case leaf == nil:
		return errors.New("it is empty")
	case now.After(leaf.NotAfter):
		return fmt.Errorf("expired on %s", leaf.NotAfter.UTC().Format(time.DateTime))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("not valid before %s", leaf.NotBefore.UTC().Format(time.DateTime))
	}
	return nil
}

// check is a question of which the answer is good for a while. It is not asked twice at a time, however
// many want to know.
type check struct {
	what    string
	good    time.Duration
	timeout time.Duration // of ask
	ask     func(context.Context) []string

	mu      sync.Mutex
	at      time.Time // of answer; zero: none yet
	answer  []string
	running chan struct{} // closed when ask has returned; nil: it does not run
	wait    sync.WaitGroup
}

// problems are what is wrong; that there is no answer in time is a problem too.
func (c *check) problems(ctx context.Context) []string {
	c.mu.Lock()
	if !c.at.IsZero() && time.Since(c.at) < c.good {
		defer c.mu.Unlock()
		return c.answer
	}
	if c.running == nil {
		c.running = make(chan struct{})
		c.wait.Go(func() { c.run(context.WithoutCancel(ctx)) })
	}
	running := c.running
	c.mu.Unlock()
	timeout := time.NewTimer(c.timeout * 4 / 3)
	defer timeout.Stop()
	select {
	case <-running:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.answer
	case <-timeout.C:
	case <-ctx.Done():
	}
	return []string{c.what + ": no answer in time"}
}

func (c *check) run(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	answer := c.ask(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer, c.at = answer, time.Now()
	close(c.running)
	c.running = nil
}
