// Package acmetest runs a real certificate authority inside the calling program: Pebble, Let's Encrypt's
// own test server, with the DNS, the OCSP responder and the faults that a test of an ACME client needs.
//
// It validates for real: a certificate is issued only if the challenge was answered at CA.HTTP01,
// CA.TLSALPN01 or in CA.DNS. README.md tells how Pebble differs from a public CA.
package acmetest

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"time"
)

// Config is what a CA does. The zero value is strict: it validates every name of every order anew and
// refuses some good nonces, as RFC 8555, section 6.5, lets it.
type Config struct {
	// Address is where the directory listens; empty means a free port of 127.0.0.1.
	Address string
	// Dir is where the root certificates are written; empty means a temporary folder that Close removes.
	Dir string
	// Log gets Pebble's log; nil discards it.
	Log io.Writer

	// HTTPPort and TLSPort are where challenges are validated, on the address that the name resolves to.
	// Pebble takes them at its start only. Zero means a port of CA.HTTP01 or CA.TLSALPN01, which passes
	// connections on to wherever it is told, at any time.
	HTTPPort, TLSPort int
	// Resolver is the DNS server that validation asks, over TCP, as host:port; empty means CA.DNS.
	Resolver string

	// RejectNonces is how many good nonces in a hundred are refused. Zero means 15, negative none.
	RejectNonces int
	// ReuseAuthorizations is how many names in a hundred are not validated again once they were valid.
	ReuseAuthorizations int
	// ExternalAccounts maps key identifiers to MAC keys in unpadded base64url. If it is not empty, new
	// accounts must be bound to one of them (RFC 8555, section 7.3.4).
	ExternalAccounts map[string]string
	// Profiles are what an order can ask for by name; nil means one, "default". Where there are several,
	// Pebble picks one by chance for an order that names none.
	Profiles map[string]Profile
	// Blocked names are refused with rejectedIdentifier, and so are all names below them.
	Blocked []string

	// OCSP puts the URL of an OCSP responder into certificates and runs it as CA.OCSP. It makes the start
	// slower: Pebble lends out its key only if that is RSA.
	OCSP bool

	// RenewalWindow is what the CA suggests for a new certificate (RFC 9773). Nil means a fiftieth of its
	// lifetime, at least 3 s, around two thirds of it: Pebble's own two days are a short one's whole life.
	RenewalWindow func(notBefore, notAfter time.Time) (start, end time.Time)
	// RenewalRetryAfter is how long a client shall keep that answer. Zero means Pebble's six hours.
	RenewalRetryAfter time.Duration
}

// Profile is a kind of certificate.
type Profile struct {
	Description string
	// Validity is counted in whole seconds, the last one included (RFC 5280, section 4.1.2.5): a minute
	// ends 59 s after its beginning. Zero means 90 days.
	Validity time.Duration
}

// CA is a running certificate authority.
type CA struct {
	// Directory is the URL to start from (RFC 8555, section 7.1.1).
	Directory string
	// Root signed the certificate that Directory and all of the CA's other URLs show.
	Root Root
	// IssuingRoot is what must be trusted for the certificates that the CA issues.
	IssuingRoot Root

	// HTTP01 and TLSALPN01 are where challenges are validated.
	HTTP01, TLSALPN01 *Door
	// DNS is what validation asks, unless Config.Resolver was given.
	DNS *DNS
	// OCSP is nil unless Config.OCSP was set.
	OCSP *OCSP
	// Management is the URL of a plain HTTP server for what no ACME client may do; README.md lists it.
	Management string

	// Faults are what happens to requests at Directory and the CA's other URLs.
	*Faults

	pebble *pebble
	front  *front
	server *server
	close  []func() error // in the order of their making
}

// Start starts a CA; the caller closes it.
func Start(config Config) (*CA, error) {
	ca := &CA{}
	if err := ca.start(config); err != nil {
		return nil, fmt.Errorf("acmetest: %w", errors.Join(err, ca.Close()))
	}
	return ca, nil
}

func (ca *CA) start(config Config) error {
	logger := log.New(cmp.Or(config.Log, io.Discard), "", log.LstdFlags|log.Lmicroseconds)
	dir, err := ca.folder(config.Dir)
	if err != nil {
		return err
	}
	if err := ca.startValidation(&config, logger); err != nil {
		return err
	}
	if config.OCSP {
		if ca.OCSP, err = startOCSP(logger); err != nil {
			return err
		}
		ca.closeLater(ca.OCSP.server.close)
	}
	if ca.pebble, err = newPebble(config, ca.ocspURL(), logger); err != nil {
		return err
	}
	if ca.OCSP != nil {
		if err := ca.OCSP.use(ca.pebble); err != nil {
			return err
		}
	}

	issuing := ca.pebble.authority.GetRootCert(0).Cert
	if ca.IssuingRoot, err = newRoot(issuing, filepath.Join(dir, "issuing-root.pem")); err != nil {
		return err
	}
	root, certificate, err := serverCertificate()
	if err != nil {
		return err
	}
	if ca.Root, err = newRoot(root, filepath.Join(dir, "root.pem")); err != nil {
		return err
	}

	ca.Faults = newFaults()
	ca.front = &front{pebble: ca.pebble, faults: ca.Faults, config: config}
	if ca.server, err = serve(config.Address, ca.front, certificate, logger); err != nil {
		return err
	}
	ca.closeLater(ca.server.close)
	ca.Directory = "https://" + ca.server.address + directoryPath

	management, err := serve("", ca.management(), nil, logger)
	if err != nil {
		return err
	}
	ca.closeLater(management.close)
	ca.Management = "http://" + management.address
	return nil
}

func (ca *CA) folder(dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "acmetest")
	if err != nil {
		return "", err
	}
	ca.closeLater(func() error { return os.RemoveAll(dir) })
	return dir, nil
}

// startValidation starts what challenges are looked up in and fills in config's ports and resolver.
func (ca *CA) startValidation(config *Config, logger *log.Logger) (err error) {
	if ca.DNS, err = startDNS(logger); err != nil {
		return err
	}
	ca.closeLater(ca.DNS.close)
	config.Resolver = cmp.Or(config.Resolver, ca.DNS.Address)

	for _, d := range []struct {
		door **Door
		port *int
	}{{&ca.HTTP01, &config.HTTPPort}, {&ca.TLSALPN01, &config.TLSPort}} {
		if *d.door, err = openDoor(*d.port); err != nil {
			return err
		}
		ca.closeLater((*d.door).close)
		*d.port = (*d.door).Port
	}
	return nil
}

func (ca *CA) ocspURL() string {
	if ca.OCSP == nil {
		return ""
	}
	return ca.OCSP.URL
}

func (ca *CA) closeLater(f func() error) { ca.close = append(ca.close, f) }

// Close ends the CA and waits until all that it started has ended, but for one goroutine of Pebble's that
// has no end, and validations that are being made, which give up after 15 s.
func (ca *CA) Close() error {
	var errs []error
	for len(ca.close) > 0 {
		last := len(ca.close) - 1
		errs = append(errs, ca.close[last]())
		ca.close = ca.close[:last]
	}
	return errors.Join(errs...)
}

// Down makes connections to Directory refused, and breaks those that there are, until Up.
func (ca *CA) Down() error { return ca.server.down() }

// Up ends Down. It returns an error if another program took the port meanwhile.
func (ca *CA) Up() error { return ca.server.up() }

// Stuck tells whether a request has been waiting for its answer for more than 10 s. Without a fault that makes it wait,
// Pebble (2.10.1) has locked itself up, for good: a validation takes the authorization first and then its
// challenge, who asks for the challenge the other way round, and every later order waits for both.
func (ca *CA) Stuck() bool { return ca.server.stuck() }
