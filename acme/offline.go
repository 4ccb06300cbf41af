package acme

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"raimon/internal/staple"
)

// What follows works on the storage without a Manager that runs: for commands, where no edge does.

// Stored tells of all certificates in s, by name, whichever CA has issued them. NextRenewal is when a
// Manager would renew. One that is damaged has that as LastError; nothing in s is changed.
func Stored(ctx context.Context, s Storage) ([]Status, error) {
	all, err := storedCertificates(ctx, s)
	if err != nil {
		return nil, err
	}
	reports := make([]Status, 0, len(all))
	for _, c := range all {
		reports = append(reports, c.report(ctx, s))
	}
	slices.SortStableFunc(reports, func(a, b Status) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Issuer, b.Issuer))
	})
	return reports, nil
}

// Obtain replaces the certificate of name, or gets the first, and stores it: once, from the first CA that
// gives one. It is for a Manager that does not run, and leaves nothing behind that has to be closed; the
// Manager is of no use afterwards. The error is a *Failure.
func (m *Manager) Obtain(ctx context.Context, name string) (Status, error) {
	defer m.close()
	var all []*Failure
	for _, a := range m.authorities {
		p, err := m.obtain(ctx, a, name)
		if err == nil {
			return (&stored{key: pairKey(pairName(a.issuer, name)), pair: p}).report(ctx, m.storage), nil
		}
		if ctx.Err() != nil {
			return Status{}, ctx.Err()
		}
		all = append(all, explain(ctx, name, a, err))
	}
	return Status{}, once(joinFailures(all))
}

func (m *Manager) obtain(ctx context.Context, a *authority, name string) (*pair, error) {
	if err := a.issue(ctx, name, false, wish{m.swept(name, always), func(p *pair) error { return isFor(p, name) }}); err != nil {
		return nil, err
	}
	if m.storage.isUnsaved(pairName(a.issuer, name)) {
		return nil, &Failure{Reason: "the certificate was obtained, but the storage did not take it: it is lost",
			Fix: "the log above says why; a CA gives only a few certificates a week for the same names"}
	}
	return m.storage.loadPair(ctx, pairName(a.issuer, name))
}

// RevokeStored tells the CA that the stored certificate of name must not be trusted any more, and removes
// it, so that no Manager serves it again. It tells which one that was: the newest, of one of c.CAs. A CA
// there without Directory stands for whichever has issued it; its Roots are trusted then. Of the rest of
// c, Storage and Log are used. Where the CA says no, the error is a *Failure.
func RevokeStored(ctx context.Context, c Config, name string) (Status, error) {
	found, ca, err := c.toRevoke(ctx, name)
	if err != nil {
		return Status{}, err
	}
	report := found.report(ctx, c.Storage)
	if c.Email, err = found.account(ctx, c.Storage); err != nil {
		return Status{}, err
	}
	c.CAs = []CA{ca}
	m, err := open(c)
	if err != nil {
		return Status{}, err
	}
	defer m.close()
	// Whoever renews it just now is let finish: what he stores is another one, which must stay.
	lock := issueLock(name)
	if err := m.storage.Lock(ctx, lock); err != nil {
		return Status{}, err
	}
	defer m.storage.Unlock(context.WithoutCancel(ctx), lock)
	if again, err := m.storage.loadPair(ctx, strings.TrimSuffix(found.key, pairExtension)); err != nil || !again.leaf().Equal(found.pair.leaf()) {
		return Status{}, &Failure{Reason: "another process has replaced the certificate of " + name + " just now", Fix: "look at it with raimons certs list, and try again", err: err}
	}
	a := m.authorities[0]
	limited, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if err := a.revoke(limited, found.pair); err != nil {
		if ctx.Err() != nil {
			return Status{}, ctx.Err()
		}
		return Status{}, once(explainRevocation(ctx, name, a, err))
	}
	// Revoked it is, so this is done even when the user does not want to wait any more.
	ctx = context.WithoutCancel(ctx)
	if err := m.storage.Delete(ctx, found.stapleKey()); err != nil {
		m.log.Debug("OCSP staple not removed", "name", name, "error", err)
	}
	if err := m.storage.Delete(ctx, found.key); err != nil {
		return Status{}, &Failure{Reason: fmt.Sprintf("the certificate was revoked, but its file is still there: %v", err),
			Fix: "remove the file, or the next edge serves it: " + found.key, err: err}
	}
	return report, nil
}

// close lets go of what open has taken. Run does it too.
func (m *Manager) close() {
	m.cache.Stop()
	m.taken.Close()
}

// stored is a certificate in the storage.
type stored struct {
	key    string
	pair   *pair // nil if it is damaged
	damage error
}

func storedCertificates(ctx context.Context, s Storage) ([]*stored, error) {
	limited, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	keys, err := s.List(limited, strings.TrimSuffix(certificatesFolder, "/"), true)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []*stored
	for _, key := range keys {
		if path.Ext(key) != pairExtension || strings.Count(key, "/") != 3 {
			continue // certificates/CA/name/name.pem
		}
		value, err := load(ctx, s, key)
		if errors.Is(err, fs.ErrNotExist) {
			continue // replaced or removed meanwhile
		}
		c := &stored{key: key, damage: err}
		if err == nil {
			c.pair, c.damage = parsePair(value)
		}
		all = append(all, c)
	}
	return all, ctx.Err()
}

func load(ctx context.Context, s Storage, key string) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	return s.Load(limited, key)
}

// name is whom c was obtained for.
func (c *stored) name() string {
	if c.pair != nil {
		if names := c.pair.leaf().DNSNames; len(names) > 0 {
			return names[0]
		}
		if ips := c.pair.leaf().IPAddresses; len(ips) > 0 {
			return ips[0].String()
		}
	}
	return strings.Replace(strings.TrimSuffix(path.Base(c.key), pairExtension), "wildcard_", "*", 1)
}

// issuerData is what certmagic notes of where a certificate comes from.
type issuerData struct {
	CA      string `json:"ca"`      // the directory
	Account string `json:"account"` // its URL
}

func (c *stored) issuer() issuerData {
	var metadata struct {
		Data issuerData `json:"issuer_data"`
	}
	if c.pair == nil || json.Unmarshal(c.pair.metadata, &metadata) != nil {
		return issuerData{}
	}
	return metadata.Data
}

// issuerKey is how keys call the CA.
func (c *stored) issuerKey() string { return strings.Split(c.key, "/")[1] }

func (c *stored) stapleKey() string {
	return "ocsp/" + c.issuerKey() + "/" + strings.TrimSuffix(path.Base(c.key), pairExtension)
}

func (c *stored) report(ctx context.Context, s Storage) Status {
	r := Status{Name: c.name()}
	if c.damage != nil {
		r.LastError = "damaged: " + c.damage.Error()
		r.Hint = "the next edge sets " + c.key + " aside and obtains another"
		return r
	}
	leaf := c.pair.leaf()
	r.Issuer, r.NotBefore, r.NotAfter = c.issuer().CA, leaf.NotBefore, leaf.NotAfter
	r.NextRenewal = new(keeper).due(&held{pair: c.pair}) // of a CA that has no opinion
	if der, err := load(ctx, s, c.stapleKey()); err == nil {
		if s, err := staple.Parse(der, c.pair.chain); err == nil && s.Check(time.Now()) == nil {
			r.StapleUntil = s.Until
		}
	}
	return r
}

// toRevoke finds the newest certificate of name, and its CA.
func (c *Config) toRevoke(ctx context.Context, name string) (*stored, CA, error) {
	all, err := storedCertificates(ctx, c.Storage)
	if err != nil {
		return nil, CA{}, err
	}
	var newest *stored
	var from CA
	var others []string
	for _, s := range all {
		if s.pair == nil || s.name() != name {
			continue
		}
		ca, ok := c.issuedBy(s.issuer().CA)
		if !ok {
			others = append(others, cmp.Or(s.issuer().CA, s.key))
			continue
		}
		if newest == nil || s.pair.leaf().NotBefore.After(newest.pair.leaf().NotBefore) {
			newest, from = s, ca
		}
	}
	switch {
	case newest != nil:
		return newest, from, nil
	case len(others) > 0:
		return nil, CA{}, &ConfigError{Field: "CAs", Problem: fmt.Sprintf("no certificate of %s is from these CAs, but from %s", name, strings.Join(others, " and ")),
			Fix: "name that CA in acme-ca="}
	}
	return nil, CA{}, &ConfigError{Problem: fmt.Sprintf("no certificate of %q is stored", name), Fix: "raimons certs list shows all names; storage= says where they are kept"}
}

// issuedBy returns the CA of that directory.
func (c *Config) issuedBy(directory string) (CA, bool) {
	if u, err := url.Parse(directory); err != nil || u.Scheme != "https" || u.Host == "" {
		return CA{}, false
	}
	for _, ca := range c.CAs {
		if ca.Directory == directory || ca.Directory == "" {
			ca.Directory = directory
			return ca, true
		}
	}
	return CA{}, false
}

// account is by what name certmagic finds the account that c was obtained with. Only that one may revoke
// it (RFC 8555, section 7.6); asked for another, certmagic would register it first.
func (c *stored) account(ctx context.Context, s Storage) (email string, err error) {
	location := c.issuer().Account
	folder := "acme/" + c.issuerKey() + "/users"
	limited, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	keys, err := s.List(limited, folder, true)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, key := range keys {
		if path.Ext(key) != ".json" {
			continue
		}
		value, err := load(ctx, s, key)
		if err != nil {
			return "", err
		}
		var account struct {
			Location string `json:"location"`
		}
		if json.Unmarshal(value, &account) == nil && account.Location != "" && account.Location == location {
			// The folder's name, for what certmagic makes of an address it leaves as it is. CAs do not
			// tell contacts any more.
			return path.Base(path.Dir(key)), nil
		}
	}
	return "", &Failure{Reason: "the account that obtained the certificate is not in the storage any more, and no other may revoke it",
		Fix: "put back acme/" + c.issuerKey() + " from a backup; or, if the key is in wrong hands, tell the CA"}
}

// once is f for people who watch: nothing is tried again.
func once(f *Failure) *Failure {
	said := *f
	said.Fix = byItself.ReplaceAllString(f.Fix, "")
	return &said
}

var byItself = regexp.MustCompile(`[:;]? it is tried again( then| later)?, by itself`)
