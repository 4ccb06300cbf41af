package acmetest

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/core"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// pebble is Pebble's parts, put together as its own command does.
type pebble struct {
	store      *db.MemoryStore
	authority  *ca.CAImpl
	acme       http.Handler
	management http.Handler
}

const (
	defaultRejectNonces = 15
	caaIdentity         = "pebble.letsencrypt.org"
)

func newPebble(config Config, ocspURL string, logger *log.Logger) (*pebble, error) {
	for _, percent := range []int{config.RejectNonces, config.ReuseAuthorizations} {
		if percent > 100 {
			return nil, fmt.Errorf("%d is not a number in a hundred", percent)
		}
	}
	p := &pebble{store: db.NewMemoryStore()}
	for id, key := range config.ExternalAccounts {
		if err := p.store.AddExternalAccountKeyByID(id, key); err != nil {
			return nil, fmt.Errorf("external account %q: %w", id, err)
		}
	}
	for _, name := range config.Blocked {
		if err := p.store.AddBlockedDomain(name); err != nil {
			return nil, fmt.Errorf("blocked name %q: %w", name, err)
		}
	}
	profiles, err := pebbleProfiles(config.Profiles)
	if err != nil {
		return nil, err
	}
	keys := "ecdsa"
	if ocspURL != "" {
		keys = "rsa"
	}
	p.authority = ca.New(logger, p.store, ocspURL, keys, 0, 1, profiles)

	err = withEnvironment(map[string]string{
		"PEBBLE_VA_NOSLEEP":      "1",
		"PEBBLE_VA_ALWAYS_VALID": "0",
		"PEBBLE_WFE_NONCEREJECT": strconv.Itoa(rejectNonces(config.RejectNonces)),
		"PEBBLE_AUTHZREUSE":      strconv.Itoa(max(config.ReuseAuthorizations, 0)),
	}, func() {
		const strict = true
		validation := va.New(logger, config.HTTPPort, config.TLSPort, strict, config.Resolver, p.store)
		web := wfe.New(logger, p.store, validation, p.authority, []string{caaIdentity}, strict,
			len(config.ExternalAccounts) > 0, 0, 0)
		p.acme, p.management = web.Handler(), web.ManagementHandler()
	})
	return p, err
}

func rejectNonces(percent int) int {
	if percent == 0 {
		return defaultRejectNonces
	}
	return max(percent, 0)
}

func pebbleProfiles(profiles map[string]Profile) (map[string]ca.Profile, error) {
	if profiles == nil {
		profiles = map[string]Profile{"default": {Description: "the only one"}}
	}
	if len(profiles) == 0 {
		return nil, errors.New("at least one profile is needed")
	}
	made := make(map[string]ca.Profile, len(profiles))
	for name, p := range profiles {
		// Pebble would take 90 days for what it cannot express.
		if p.Validity < 0 || p.Validity%time.Second != 0 {
			return nil, fmt.Errorf("profile %q: validity %v is not a number of whole seconds", name, p.Validity)
		}
		made[name] = ca.Profile{Description: p.Description, ValidityPeriod: uint64(p.Validity / time.Second)}
	}
	return made, nil
}

// The environment belongs to the whole process, and so does its lock.
var environment sync.Mutex

// withEnvironment calls f with variables set, and puts the environment back: Pebble reads these settings
// nowhere else, and only when it is made.
func withEnvironment(variables map[string]string, f func()) error {
	environment.Lock()
	defer environment.Unlock()
	for name, value := range variables {
		before, found := os.LookupEnv(name)
		if err := os.Setenv(name, value); err != nil {
			return err
		}
		defer func() {
			if found {
				os.Setenv(name, before)
			} else {
				os.Unsetenv(name)
			}
		}()
	}
	f()
	return nil
}

// waitForCertificate waits until Pebble has done all that it does in the background for a finalized order.
// It returns nil if that does not happen before ctx ends.
func (p *pebble) waitForCertificate(ctx context.Context, order *core.Order) *core.Certificate {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		if certificate := p.certificateOf(order); certificate != nil {
			return certificate
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *pebble) certificateOf(order *core.Order) *core.Certificate {
	order.RLock()
	certificate, replaces := order.CertificateObject, order.Replaces
	order.RUnlock()
	if certificate == nil {
		return nil
	}
	if _, err := p.store.GetOrderByIssuedSerial(certificate.ID); err != nil {
		return nil
	}
	if replaces != "" && !p.replaced(replaces) {
		return nil
	}
	return certificate
}

// replaced tells whether the certificate was marked as replaced, given its identifier in RFC 9773,
// section 4.1.
func (p *pebble) replaced(id string) bool {
	_, serial, _ := strings.Cut(id, ".")
	raw, err := base64.RawURLEncoding.DecodeString(serial)
	if err != nil {
		return false
	}
	order, err := p.store.GetOrderByIssuedSerial(hex.EncodeToString(raw))
	if err != nil {
		return false
	}
	order.RLock()
	defer order.RUnlock()
	return order.IsReplaced
}
