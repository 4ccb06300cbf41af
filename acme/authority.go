package acme

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"github.com/miekg/dns"
	"go.uber.org/zap"
)

// The directories of public CAs.
const (
	LetsEncrypt        = certmagic.LetsEncryptProductionCA
	LetsEncryptStaging = certmagic.LetsEncryptStagingCA
	ZeroSSL            = certmagic.ZeroSSLProductionCA
	Google             = certmagic.GoogleTrustProductionCA
)

// CA is a certificate authority that speaks ACME.
type CA struct {
	// Directory is the URL where ACME begins (RFC 8555, section 7.1.1).
	Directory string
	// Roots are trusted when Directory is asked; nil means the system's.
	Roots *x509.CertPool
	// EABKeyID and EABKey (base64url) bind the ACME account to one that the user has with the CA
	// (RFC 8555, section 7.3.4). Both are empty where the CA does not ask for it.
	EABKeyID, EABKey string
}

// Directory returns the URL of a CA that has a short name; other values are returned as they are.
func Directory(ca string) string {
	switch strings.ToLower(ca) {
	case "letsencrypt":
		return LetsEncrypt
	case "letsencrypt-staging":
		return LetsEncryptStaging
	case "zerossl":
		return ZeroSSL
	case "google":
		return Google
	}
	return ca
}

// authority is one CA as certmagic sees it. Each has a certmagic.Config of its own, so that we hear
// what every one of them said, where certmagic would tell of the last alone.
type authority struct {
	CA
	issuer    *certmagic.ACMEIssuer
	certmagic *certmagic.Config
	// anew is certmagic without the "replaces" of ARI (RFC 9773, section 5).
	anew *certmagic.Config

	mu         sync.Mutex
	retryAfter time.Time // what the CA asked for last
}

func (m *Manager) openAuthorities() {
	host, port := "127.0.0.1", 0
	if a, ok := m.taken.Addr().(*net.TCPAddr); ok {
		host, port = a.IP.String(), a.Port
	}
	cas := m.config.CAs
	if len(cas) == 0 {
		cas = []CA{{Directory: LetsEncrypt}}
	}
	m.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return m.authorities[0].certmagic, nil },
		RenewCheckInterval: forever,
		OCSPCheckInterval:  forever,
		Logger:             zap.NewNop(),
	})
	for _, ca := range cas {
		a := &authority{CA: ca}
		logger := zap.New(&bridge{log: m.log, heard: a.heard})
		config := certmagic.Config{
			Storage:   m.storage,
			KeySource: certmagic.StandardKeyGenerator{KeyType: certmagic.KeyType(cmp.Or(m.config.KeyType, string(certmagic.P256)))},
			OnEvent:   onEvent,
			Logger:    logger,
			OCSP:      certmagic.OCSPConfig{DisableStapling: true}, // staple.go
			// It leaves a file behind when it is killed. That the storage works is seen when the lock is taken.
			DisableStorageCheck: true,
		}
		a.certmagic = certmagic.New(m.cache, config)
		template := certmagic.ACMEIssuer{
			CA:                      ca.Directory,
			Email:                   m.config.Email,
			Agreed:                  true,
			Profile:                 m.config.Profile,
			TrustedRoots:            ca.Roots,
			DisableHTTPChallenge:    !m.config.HTTP,
			DisableTLSALPNChallenge: !m.config.TLS,
			ListenHost:              host,
			AltHTTPPort:             port,
			AltTLSALPNPort:          port,
			DNS01Solver:             m.config.DNS,
			NewAccountFunc:          m.accountKey,
			Logger:                  logger,
			HTTPProxy:               http.ProxyFromEnvironment,
		}
		if ca.EABKeyID != "" {
			template.ExternalAccount = &acme.EAB{KeyID: ca.EABKeyID, MACKey: ca.EABKey}
		}
		a.issuer = certmagic.NewACMEIssuer(a.certmagic, template)
		a.certmagic.Issuers = []certmagic.Issuer{a.issuer}
		anew := *a.certmagic
		anew.DisableARI = true
		a.anew = &anew
		m.authorities = append(m.authorities, a)
	}
}

// forever is longer than any process runs.
const forever = 100 * 365 * 24 * time.Hour

// accountKey stores the key of a new account before the CA hears of it. Certmagic stores it
// afterwards: killed in between, it would register another account at the next start. A CA answers a
// key that it knows with the account that belongs to it (RFC 8555, section 7.3.1).
func (m *Manager) accountKey(ctx context.Context, issuer *certmagic.ACMEIssuer, account acme.Account) (acme.Account, error) {
	email := "default"
	if len(account.Contact) > 0 {
		email = strings.TrimPrefix(account.Contact[0], "mailto:")
	}
	name := "accounts/" + certmagic.StorageKeys.Safe(issuer.IssuerKey()) + "/" + certmagic.StorageKeys.Safe(email) + ".key"
	stored, err := m.storage.Load(ctx, name)
	if err == nil {
		key, err := certmagic.PEMDecodePrivateKey(stored)
		if err != nil {
			return account, fmt.Errorf("account key %s: %w", name, err)
		}
		account.PrivateKey = key
		return account, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return account, err
	}
	stored, err = certmagic.PEMEncodePrivateKey(account.PrivateKey)
	if err != nil {
		return account, err
	}
	return account, m.storage.Store(ctx, name, stored)
}

// attempt is one try to get one certificate from one CA. It travels in the context of the calls that
// it leads to.
type attempt struct {
	wish

	mu    sync.Mutex
	end   context.CancelFunc
	asked bool  // needed was: the certificate is not another process's
	err   error // the first that was noted
}

// wish is what somebody wants of an attempt.
type wish struct {
	// needed is asked under the lock of the name, before anything is sent. An error ends the attempt.
	needed func(context.Context) error
	// accept is asked before a certificate takes the place of the one that is stored. An error keeps that.
	accept func(*pair) error
}

// swept is needed, asked after what a killed process left of challenges for name was removed. Certmagic removes
// the answer to a challenge once the CA has decided on it; the next attempt may meet none, as the CA remembers
// that the name was valid (RFC 8555, section 7.1.3), or another CA issues. Under the lock of the name nobody
// waits for these answers.
func (m *Manager) swept(name string, needed func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, a := range m.authorities {
			for _, key := range a.tokenKeys(name) {
				if err := m.storage.Delete(ctx, key); err != nil && ctx.Err() == nil {
					m.log.Warn("what is left of a challenge stays in the storage", "name", name, "file", key, "error", err)
				}
			}
		}
		return needed(ctx)
	}
}

// tokenKeys are where certmagic stores the answers to challenges for name.
func (a *authority) tokenKeys(name string) []string {
	folder := "acme/" + certmagic.StorageKeys.Safe(a.issuer.IssuerKey()) + "/challenge_tokens/"
	keys := []string{folder + certmagic.StorageKeys.Safe(name) + ".json"}
	if asked, err := dns.ReverseAddr(name); err == nil { // what TLS-ALPN-01 asks for an address (RFC 8738, section 6)
		keys = append(keys, folder+certmagic.StorageKeys.Safe(strings.TrimSuffix(asked, "."))+".json")
	}
	return keys
}

type attemptKey struct{}

// note ends a when something went wrong. Certmagic would try again after a minute, and for 30 days,
// while it holds the lock of the name.
func (a *attempt) note(err error) {
	if a == nil || err == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.err = err
		a.end()
	}
}

func attemptOf(ctx context.Context) *attempt {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	return a
}

// onEvent is certmagic's only way to say that an attempt has failed before it sleeps over it.
func onEvent(ctx context.Context, event string, data map[string]any) error {
	a := attemptOf(ctx)
	if a == nil {
		return nil
	}
	switch event {
	case "cert_obtaining":
		a.mu.Lock()
		a.asked = true
		a.mu.Unlock()
		err := a.needed(ctx)
		a.note(err)
		return err
	case "cert_failed":
		err, _ := data["error"].(error)
		a.note(cmp.Or(err, errors.New("certmagic gives no reason")))
	}
	return nil
}

// issue obtains a certificate for name, once, and stores it; errRenewed if another process has done so.
// First says that the attempt before this went well. After a failure the CA is not told what is
// replaced: that is a courtesy, which it refuses if it does not know the old certificate as ours.
func (a *authority) issue(ctx context.Context, name string, first bool, w wish) error {
	if !first {
		return a.try(ctx, a.anew, name, w)
	}
	err := a.try(ctx, a.certmagic, name, w)
	if refusesReplacement(err) && a.notBefore(time.Now()).IsZero() {
		err = a.try(ctx, a.anew, name, w)
	}
	return err
}

// refusesReplacement tells whether err may be about the "replaces" of an order: CAs agree on a type for
// what was replaced already (RFC 9773, section 5), not for what they do not know, or another account has.
func refusesReplacement(err error) bool {
	var problem acme.Problem
	switch {
	case !errors.As(err, &problem):
		return false
	case problem.Type == acme.ProblemTypeAlreadyReplaced:
		return true
	}
	// The words are acmez's. Who has asked too much must not ask again.
	return problem.Type != acme.ProblemTypeRateLimited && strings.Contains(err.Error(), "creating new order")
}

func (a *authority) try(ctx context.Context, config *certmagic.Config, name string, w wish) error {
	begun, end := context.WithTimeoutCause(ctx, attemptTimeout, fmt.Errorf("not done after %v", attemptTimeout))
	defer end()
	this := &attempt{wish: w, end: end}
	// Forced, because we decide when it is time. Where nothing is stored it obtains.
	err := config.RenewCertAsync(context.WithValue(begun, attemptKey{}, this), name, true)
	this.mu.Lock()
	defer this.mu.Unlock()
	switch {
	case this.err != nil:
		return this.err
	case err != nil && begun.Err() != nil:
		return context.Cause(begun)
	case err == nil && !this.asked:
		return errRenewed
	}
	return err
}

// heard notes what the CA says about when to come again (RFC 8555, section 6.6; RFC 9110, section 10.2.3).
func (a *authority) heard(status int, header http.Header) {
	if status != http.StatusTooManyRequests && status != http.StatusServiceUnavailable {
		return
	}
	at, ok := parseRetryAfter(header.Get("Retry-After"), time.Now())
	if !ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.retryAfter = at
}

// notBefore is when the CA wants to be asked again; zero if it has not said so, or that time has come.
func (a *authority) notBefore(now time.Time) time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.retryAfter.After(now) {
		return a.retryAfter
	}
	return time.Time{}
}

// revoke tells the CA that p must not be trusted any more, which it may know already. Reason 0 is "unspecified".
func (a *authority) revoke(ctx context.Context, p *pair) error {
	// It looks for an account without contact until it has been told of one, as issuing does.
	if err := a.issuer.PreCheck(ctx, nil, false); err != nil {
		return err
	}
	err := a.issuer.Revoke(ctx, certmagic.CertificateResource{CertificatePEM: p.chainPEM, PrivateKeyPEM: p.keyPEM}, 0)
	var problem acme.Problem
	if errors.As(err, &problem) && problem.Type == acme.ProblemTypeAlreadyRevoked {
		return nil
	}
	return err
}
