package acme

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/caddyserver/certmagic"
	"golang.org/x/crypto/ocsp"
)

// storageTimeout is how long one call of the storage may take, locking apart.
const storageTimeout = 15 * time.Second

// vault is the storage as certmagic sees it. It keeps the promises that certmagic itself does not.
//
// A certificate is one value: certmagic stores key, chain and metadata one after the other, over the
// old ones, and a crash in between would leave a pair that does not fit. They are held back until
// the last of the three has come and are then stored under one name, as one PEM file.
//
// A certificate that the storage does not take (a full disk) is not lost: it is served from memory,
// and stored as soon as that is possible. Asking the CA again would use up its rate limit.
//
// A value that cannot be right is set aside under another name, and reported, and counts as missing.
type vault struct {
	Storage
	log *slog.Logger

	mu      sync.Mutex
	begun   map[string]map[string][]byte // by name of the certificate: what was stored of it so far, by extension
	unsaved map[string][]byte            // by key: values that the storage did not take
}

const (
	certificatesFolder = "certificates/"
	accountsFolder     = "accounts/"
	metadataBlock      = "ACME METADATA"
)

// pair is a certificate with its key as it is stored.
type pair struct {
	keyPEM, chainPEM, metadata []byte
	certificate                *tls.Certificate // with Leaf
	chain                      []*x509.Certificate
}

// Store implements certmagic.Storage.
func (v *vault) Store(ctx context.Context, key string, value []byte) error {
	name, extension, ok := partOfPair(key)
	if !ok {
		err := v.store(ctx, key, value)
		attemptOf(ctx).note(err)
		return err
	}
	v.mu.Lock()
	if v.begun == nil {
		v.begun, v.unsaved = make(map[string]map[string][]byte), make(map[string][]byte)
	}
	parts := v.begun[name]
	if parts == nil {
		parts = make(map[string][]byte)
		v.begun[name] = parts
	}
	parts[extension] = value
	complete := len(parts) == 3
	if complete {
		delete(v.begun, name)
	}
	v.mu.Unlock()
	if !complete {
		return nil
	}
	all := bytes.Join([][]byte{parts[".key"], parts[".crt"], pem.EncodeToMemory(&pem.Block{Type: metadataBlock, Bytes: parts[".json"]})}, nil)
	p, err := parsePair(all)
	if err != nil {
		err = &Failure{Reason: "what the CA has sent is of no use: " + err.Error(), Fix: faultOfCA, refused: true, err: err}
	} else if a := attemptOf(ctx); a != nil {
		err = a.accept(p)
	}
	if err != nil {
		attemptOf(ctx).note(err)
		return err
	}
	v.keep(context.WithoutCancel(ctx), pairKey(name), all) // the CA has issued it: that we are to end does not undo it
	return nil
}

// keep stores value, and remembers it if that cannot be done.
func (v *vault) keep(ctx context.Context, key string, value []byte) {
	err := v.store(ctx, key, value)
	v.mu.Lock()
	defer v.mu.Unlock()
	if err == nil {
		delete(v.unsaved, key)
		return
	}
	if v.unsaved[key] == nil {
		v.log.Error("certificate obtained but not stored: it is served from memory", "file", key, "error", err,
			"hint", "make room, or let this user write there; it is stored as soon as that is possible")
	}
	v.unsaved[key] = value
}

// save stores what the storage did not take before.
func (v *vault) save(ctx context.Context, name string) {
	key := pairKey(name)
	v.mu.Lock()
	value := v.unsaved[key]
	v.mu.Unlock()
	if value == nil {
		return
	}
	if !v.isNewer(ctx, key, value) { // another process had room before us
		v.log.Info("another process has stored a newer certificate", "file", key)
	} else if v.store(ctx, key, value) != nil {
		return
	} else {
		v.log.Info("certificate stored", "file", key)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.unsaved, key)
}

// isNewer tells whether value is a newer certificate than the one that is stored.
func (v *vault) isNewer(ctx context.Context, key string, value []byte) bool {
	ours, err := parsePair(value)
	if err != nil {
		return false
	}
	stored, err := v.loadStored(ctx, key)
	return err != nil || !stored.leaf().NotBefore.After(ours.leaf().NotBefore)
}

// isUnsaved tells whether the certificate of that name is in memory alone.
func (v *vault) isUnsaved(name string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.unsaved[pairKey(name)] != nil
}

func (v *vault) store(ctx context.Context, key string, value []byte) error {
	limited, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	err := v.Storage.Store(limited, key, value)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.EISDIR) { // there is a folder in its place
		if v.setAside(limited, key, err) == nil {
			err = v.Storage.Store(limited, key, value)
		}
	}
	return err
}

// Load implements certmagic.Storage.
func (v *vault) Load(ctx context.Context, key string) ([]byte, error) {
	name, extension, ok := partOfPair(key)
	if !ok {
		return v.load(ctx, key, plausible)
	}
	p, err := v.loadPair(ctx, name)
	if err != nil {
		return nil, err
	}
	switch extension {
	case ".key":
		return p.keyPEM, nil
	case ".crt":
		return p.chainPEM, nil
	}
	return p.metadata, nil
}

// loadPair loads the certificate whose folder and base name certmagic made from issuer and subject.
func (v *vault) loadPair(ctx context.Context, name string) (*pair, error) {
	v.mu.Lock()
	unsaved := v.unsaved[pairKey(name)]
	v.mu.Unlock()
	if unsaved != nil {
		return parsePair(unsaved)
	}
	return v.loadStored(ctx, pairKey(name))
}

// loadStored is loadPair without what is in memory alone.
func (v *vault) loadStored(ctx context.Context, key string) (p *pair, err error) {
	_, err = v.load(ctx, key, func(_ string, value []byte) (err error) {
		p, err = parsePair(value)
		return err
	})
	return p, err
}

// load sets aside what check does not accept, and what cannot be read though it is there.
func (v *vault) load(ctx context.Context, key string, check func(key string, value []byte) error) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	value, err := v.Storage.Load(limited, key)
	if err == nil {
		if err = check(key, value); err == nil {
			return value, nil
		}
	} else if !errors.Is(err, fs.ErrPermission) {
		if !errors.Is(err, fs.ErrNotExist) {
			attemptOf(ctx).note(err)
		}
		return nil, err
	}
	if e := v.setAside(limited, key, err); e != nil {
		err = fmt.Errorf("%w; it cannot be set aside: %w", err, e)
		attemptOf(ctx).note(err)
		return nil, err
	}
	return nil, fmt.Errorf("%s: %w", key, fs.ErrNotExist)
}

// setAside moves what is of no use out of the way.
func (v *vault) setAside(ctx context.Context, key string, problem error) error {
	aside, err := v.Storage.SetAside(ctx, key)
	if err != nil {
		return err
	}
	v.log.Error("a file in the storage is damaged: set aside, a new one takes its place", "file", key, "aside", aside, "error", problem)
	return nil
}

// plausible finds what nobody could use. Certmagic would stumble over an account like that for good.
func plausible(key string, value []byte) error {
	if strings.HasPrefix(key, "ocsp/") {
		_, err := ocsp.ParseResponse(value, nil)
		return err
	}
	if !strings.HasPrefix(key, "acme/") && !strings.HasPrefix(key, accountsFolder) {
		return nil
	}
	switch path.Ext(key) {
	case ".json":
		var object map[string]any
		return json.Unmarshal(value, &object)
	case ".key":
		_, err := certmagic.PEMDecodePrivateKey(value)
		return err
	}
	return nil
}

// remove forgets the certificate of that name.
func (v *vault) remove(ctx context.Context, name string) error {
	v.mu.Lock()
	delete(v.unsaved, pairKey(name))
	v.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	return v.Storage.Delete(limited, pairKey(name))
}

// Exists implements certmagic.Storage.
func (v *vault) Exists(ctx context.Context, key string) bool {
	if name, _, ok := partOfPair(key); ok {
		_, err := v.loadPair(ctx, name)
		return err == nil
	}
	limited, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	return v.Storage.Exists(limited, key)
}

// Delete implements certmagic.Storage. Certmagic deletes a part of a certificate to take back an
// incomplete one; the one in use is only ever replaced.
func (v *vault) Delete(ctx context.Context, key string) error {
	if name, _, ok := partOfPair(key); ok {
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.begun, name)
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, storageTimeout)
	defer cancel()
	return v.Storage.Delete(limited, key)
}

// Lock implements certmagic.Storage. It may wait for as long as another process works on the name.
func (v *vault) Lock(ctx context.Context, name string) error {
	err := v.Storage.Lock(ctx, name)
	if err != nil {
		attemptOf(ctx).note(err)
	}
	return err
}

// RenewLockLease implements certmagic.LockLeaseRenewer.
func (v *vault) RenewLockLease(ctx context.Context, name string, lease time.Duration) error {
	err := v.Storage.RenewLockLease(ctx, name, lease)
	attemptOf(ctx).note(err)
	return err
}

// String names the storage in log lines.
func (v *vault) String() string { return fmt.Sprint(v.Storage) }

// partOfPair tells of a key that holds a third of a certificate: the name that the three share, and
// which of them it is.
func partOfPair(key string) (name, extension string, ok bool) {
	if !strings.HasPrefix(key, certificatesFolder) {
		return "", "", false
	}
	switch extension = path.Ext(key); extension {
	case ".key", ".crt", ".json":
		return strings.TrimSuffix(key, extension), extension, true
	}
	return "", "", false
}

// pairName is what certmagic's three keys for a certificate begin with.
func pairName(issuer *certmagic.ACMEIssuer, subject string) string {
	return strings.TrimSuffix(certmagic.StorageKeys.SiteCert(issuer.IssuerKey(), subject), ".crt")
}

func pairKey(name string) string { return name + pairExtension }

const pairExtension = ".pem"

// issueLock is the lock under which certmagic works on the certificate of subject.
func issueLock(subject string) string { return "issue_cert_" + subject }

// maxChain is more than any CA needs; a chain of thousands fits into no handshake.
const maxChain = 16

// publicKey is a key that can be compared.
type publicKey interface {
	Equal(crypto.PublicKey) bool
}

var errPair = errors.New("key and certificate do not belong together")

// parsePair reads what Store has written.
func parsePair(value []byte) (*pair, error) {
	p := &pair{}
	var chain [][]byte
	var key crypto.Signer
	for rest := value; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch {
		case block.Type == "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, err
			}
			if len(chain) == maxChain {
				return nil, fmt.Errorf("it has more than %d certificates", maxChain)
			}
			p.chain, chain = append(p.chain, cert), append(chain, block.Bytes)
			p.chainPEM = append(p.chainPEM, pem.EncodeToMemory(block)...)
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			var err error
			p.keyPEM = pem.EncodeToMemory(block)
			if key, err = certmagic.PEMDecodePrivateKey(p.keyPEM); err != nil {
				return nil, errors.New("the private key cannot be read") // the reason might quote it
			}
		case block.Type == metadataBlock:
			p.metadata = block.Bytes
		}
	}
	switch {
	case len(chain) == 0:
		return nil, errors.New("it is cut off, or no PEM")
	case key == nil:
		return nil, errors.New("no private key in it")
	}
	if public, ok := key.Public().(publicKey); !ok || !public.Equal(p.chain[0].PublicKey) {
		return nil, errPair
	}
	if !json.Valid(p.metadata) {
		return nil, errors.New("no metadata in it")
	}
	p.certificate = &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: p.chain[0]}
	return p, nil
}
