package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"raimon/acme"
	"raimon/edge"
	"raimon/internal/command"
	"raimon/storage"
	"raimon/tunnel"
)

// renewHere obtains a certificate as the edge would that is not there.
func renewHere(ctx context.Context, job *command.Job, name string) error {
	o := job.Options
	if !o.TLS || len(o.ACME) == 0 && o.OnDemand == "" {
		dns := ""
		if strings.HasPrefix(name, "*.") {
			dns = ";dns=..."
		}
		return &command.ConfigError{Err: fmt.Errorf("no running edge keeps %s, and the options do not say how to obtain it", name),
			Fix: fmt.Sprintf("start the edge, or give its options: raimons certs renew '%s' 'tls;acme=%s%s'", name, name, dns)}
	}
	config, err := acmeConfig(job)
	if err != nil {
		return err
	}
	if !slices.Contains(config.Names, name) && config.Allow == nil {
		return &command.ConfigError{Err: fmt.Errorf("no running edge keeps %s, and it is not in acme=", name), Fix: "add it to acme="}
	}
	config.Names, config.Allow = []string{name}, nil
	c := &certificates{job: job, acme: config}
	if err := config.Check(); err != nil {
		return optionError(err)
	}
	var port string
	var public, web []net.Listener
	if config.DNS == nil {
		if public = c.listenTLS(ctx); public != nil {
			defer closeAll(public)
			port = tlsPort(public)
		}
		if web, err = c.listenHTTP(ctx); err != nil {
			return err
		}
		defer closeAll(web)
	}
	c.challenges(port, web != nil)
	managed, err := acme.New(*config)
	if err != nil {
		return optionError(err)
	}
	background, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	redirect := &edge.Redirect{Port: "443", Log: job.Log}
	for _, l := range web {
		running.Go(func() { redirect.Serve(background, l, managed.HTTPHandler(redirect)) })
	}
	for _, l := range public {
		running.Go(func() { serveProbes(background, l, managed) })
	}
	job.Log.Info("asking the CA", "name", name)
	s, err := managed.Obtain(ctx, name)
	if err != nil {
		return err
	}
	fmt.Printf("%s: renewed, valid until %s, from %s\n", name, timeText(s.NotAfter), issuerText(s.Issuer))
	return nil
}

// listenTLS opens the port of TLS-ALPN-01, if it is free; without it there is HTTP-01.
func (c *certificates) listenTLS(ctx context.Context) []net.Listener {
	config := tunnel.ListenConfig{Log: c.job.Log}
	listeners, err := config.Listen(ctx, ":443")
	if err != nil {
		c.job.Log.Debug("port 443 is not ours: the CA has to come to port 80", "error", err)
		return nil
	}
	return listeners
}

// serveProbes answers TLS-ALPN-01, and nobody else, until ctx ends.
func serveProbes(ctx context.Context, l net.Listener, managed *acme.Manager) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: managed.GetCertificate}
	tunnel.ServeChallenges(config)
	config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return nil, errors.New("only a CA is answered here")
	}
	server := &http.Server{
		TLSConfig:         config,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		// After the handshake the CA has seen what it wanted.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){"acme-tls/1": func(*http.Server, *tls.Conn, http.Handler) {}},
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	server.ServeTLS(l, "", "")
}

// revokeHere revokes what is stored, and removes it.
func revokeHere(ctx context.Context, job *command.Job, root, name string) error {
	o := job.Options
	cas, err := authorities(o)
	if err != nil {
		return err
	}
	if len(o.ACMECAs) == 0 {
		cas[0].Directory = "" // whichever it was
	}
	s, err := acme.RevokeStored(ctx, acme.Config{CAs: cas, Storage: &storage.File{Root: root}, Log: job.Log}, name)
	if err != nil {
		var mistake *acme.ConfigError
		if errors.As(err, &mistake) && mistake.Field != "" {
			return optionError(err)
		}
		return err
	}
	fmt.Printf("%s: revoked and removed; it was valid until %s, from %s\n", name, timeText(s.NotAfter), issuerText(s.Issuer))
	return nil
}
