package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"raimon/edge"
	"raimon/internal/command"
)

// parts are what a config names and what follows files of its own. With each config they are read anew, so that what is
// wrong with one refuses the config, but for those that last.
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

// discard lets go of what was loaded for a config that was refused.
func (p parts) discard() {
	for _, one := range p {
		if a, ok := one.value.(*accessLog); ok && one.stop == nil && a.file != nil {
			a.close()
		}
	}
}

// follow makes next the parts in use: those that are new follow their files from now on.
func (d *deployment) follow(next parts) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, p := range d.parts {
		if next[key] != p {
			p.stop()
		}
	}
	for _, p := range next {
		if p.stop != nil {
			continue
		}
		if a, ok := p.value.(*accessLog); ok {
			p.stop = a.close // requests are answered, and logged, for longer than anything else goes on
			continue
		}
		var ctx context.Context
		ctx, p.stop = context.WithCancel(d.background)
		d.running.Go(func() { p.value.Watch(ctx) })
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
	p := b.next[key]
	if p == nil {
		if kept := b.deployment.parts[key]; kept != nil && kept.lasts() {
			p = kept
		}
	}
	if p != nil {
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
		info, err := os.Stat(a.name)
		switch {
		case err == nil && !info.Mode().IsRegular():
			return fmt.Errorf("%s is no file", a.name)
		case errors.Is(err, fs.ErrNotExist):
			_, err = os.Stat(filepath.Dir(a.name))
		}
		return err
	}
	a.file, err = edge.OpenLogFile(a.name, a.log)
	return err
}

// Watch has nothing to do: the file follows its name by itself.
func (a *accessLog) Watch(context.Context) {}

func (a *accessLog) close() { a.file.Close() }

// lasts tells whether a part is the same after a reload. The others are read anew, and found wanting, with the config.
func (p *part) lasts() bool {
	switch p.value.(type) {
	case *selfSigned, *accessLog:
		return true
	}
	return false
}
