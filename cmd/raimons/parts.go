package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"

	"raimon/edge"
	"raimon/internal/command"
)

// parts are what a config names and what follows files of its own. They are kept from one config to the
// next where nothing about them has changed, so that nobody is without a certificate in between.
type parts map[string]*part

type part struct {
	value watched
	stop  context.CancelFunc // nil: it is not followed yet
}

// watched is what is loaded once, and then follows its files.
type watched interface {
	Load() error
	Watch(ctx context.Context)
}

// follow makes next the parts in use: those that are new follow their files from now on.
func (d *deployment) follow(next parts) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, p := range d.parts {
		if next[key] == nil && p.stop != nil {
			p.stop()
		}
	}
	for _, p := range next {
		if p.stop == nil {
			var ctx context.Context
			ctx, p.stop = context.WithCancel(d.background)
			d.running.Go(func() { p.value.Watch(ctx) })
		}
	}
	d.parts = next
}

// selfSigned is a certificate that nobody but us has signed.
type selfSigned struct {
	job      *command.Job
	checking bool
	cert     *tls.Certificate
}

// Load reads the certificate or makes it.
func (s *selfSigned) Load() (err error) {
	if s.checking {
		s.cert, err = edge.SelfSigned(s.job.Options.ServerName)
		return err
	}
	s.cert, err = selfSignedCertificate(s.job)
	return err
}

// Watch has nothing to do: it is good for years.
func (s *selfSigned) Watch(context.Context) {}

// GetCertificate is for tls.Config.
func (s *selfSigned) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.cert, nil
}

// part returns the value of that key which is in use, or else loads fresh.
func (b *builder) part(key string, fresh watched) (watched, error) {
	if p := cmp.Or(b.next[key], b.deployment.parts[key]); p != nil {
		b.next[key] = p
		return p.value, nil
	}
	if err := fresh.Load(); err != nil {
		return nil, err
	}
	b.next[key] = &part{value: fresh}
	return fresh, nil
}

// accessLog is a log file that lives as long as a config names it.
type accessLog struct {
	name     string
	log      *slog.Logger
	checking bool
	file     *edge.LogFile
}

// Load opens the file.
func (a *accessLog) Load() (err error) {
	if a.checking {
		_, err = os.Stat(filepath.Dir(a.name))
		return err
	}
	a.file, err = edge.OpenLogFile(a.name, a.log)
	return err
}

// Watch closes the file at the end of ctx. It follows the name by itself.
func (a *accessLog) Watch(ctx context.Context) {
	<-ctx.Done()
	a.file.Close()
}
