package edge

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"raimon/internal/staple"
)

// A chain takes some 10 KiB: whatever is larger than this is another kind of file.
const maxCertificateFile = 1 << 20

// CertificateFiles serves a certificate from files and takes up new ones without a restart.
//
// Set the fields, call Load once, then run Watch beside the listeners.
type CertificateFiles struct {
	// Cert is the path of the chain, leaf first: PEM (other blocks and text in it are ignored) or DER.
	Cert string
	// CertPEM stands in for the content of Cert, which is then not read. Bare base64 will do
	// (v2ray-plugin's certRaw).
	CertPEM []byte
	// Key is the path of the private key: PKCS#8, PKCS#1 or SEC1, PEM or DER, not encrypted.
	// Empty means that the key is in the same file as the certificate.
	Key string
	// OCSP is the path of the response to staple, DER or PEM; empty means no staple. What is wrong
	// with it is logged and never keeps the certificate from being served.
	OCSP string
	// Log gets one line for each certificate taken up or refused; nil means slog.Default.
	Log *slog.Logger
	// Interval is how often Watch looks at the files. A change is taken up at the second look that
	// sees it. Zero means 1 second.
	Interval time.Duration

	inUse atomic.Pointer[certificateInUse]
}

// Load reads the files and serves what they hold from now on.
// The error names the file and what is wrong with it; fs.ErrNotExist and fs.ErrPermission are kept.
func (c *CertificateFiles) Load() error {
	next, err := c.read().parse()
	if err != nil {
		return err
	}
	c.takeUp(next)
	return nil
}

// GetCertificate is for tls.Config. It fails until there was a certificate to load.
func (c *CertificateFiles) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	u := c.inUse.Load()
	if u == nil {
		return nil, errors.New("certificate: none loaded")
	}
	if u.staple != nil && u.staple.Check(time.Now()) == nil {
		return u.stapled, nil
	}
	return u.bare, nil
}

// Has tells whether the certificate in use is for name.
func (c *CertificateFiles) Has(name string) bool {
	u := c.inUse.Load()
	return u != nil && u.bare.Leaf.VerifyHostname(name) == nil
}

// Status tells of the certificate in use, for each of its names; nothing while there is none.
func (c *CertificateFiles) Status() (all []CertificateStatus) {
	u := c.inUse.Load()
	if u == nil {
		return nil
	}
	leaf := u.bare.Leaf
	status := CertificateStatus{Issuer: leaf.Issuer.String(), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}
	if u.staple != nil && u.staple.Check(time.Now()) == nil {
		status.StapleUntil = u.staple.Until
	}
	for _, status.Name = range certificateNames(leaf) {
		all = append(all, status)
	}
	return all
}

// Watch looks at the files until ctx ends and takes up what has changed. Files that do not belong
// together, or cannot be read, are refused with one line in the log, and the certificate in use stays.
func (c *CertificateFiles) Watch(ctx context.Context) {
	c.watching().run(ctx, c.Interval, c.warnOfLapse)
}

func (c *CertificateFiles) watching() *fileWatch {
	paths := []string{c.Cert, c.Key, c.OCSP}
	if c.CertPEM != nil {
		paths = paths[1:]
	}
	return &fileWatch{
		paths: paths,
		read:  func() fileContents { return c.read().all() },
		inUse: func() (digest [sha256.Size]byte, ok bool) {
			if u := c.inUse.Load(); u != nil {
				return u.digest, true
			}
			return digest, false
		},
		takeUp: func(files fileContents) error {
			next, err := certificateContentOf(files).parse()
			if err == nil {
				c.takeUp(next)
			}
			return err
		},
		again: func() {
			c.log().Info("certificate files hold the certificate in use again", "names", certificateNames(c.inUse.Load().bare.Leaf))
		},
		refuse: func(err error) { c.logRefusal(c.inUse.Load(), err) },
	}
}

// certificateInUse is never changed once it is served: a handshake may still hold it.
type certificateInUse struct {
	bare, stapled *tls.Certificate // stapled is nil without a staple
	staple        *staple.Staple
	stapleErr     error // why there is no staple though one was asked for
	digest        [sha256.Size]byte
	lapseLogged   atomic.Bool
}

func (c *CertificateFiles) takeUp(next *certificateInUse) {
	now, leaf := time.Now(), next.bare.Leaf
	problem := next.stapleErr
	attrs := []any{"names", certificateNames(leaf), "not_after", leaf.NotAfter}
	if next.staple != nil {
		problem = next.staple.Check(now)
		next.lapseLogged.Store(next.staple.Lapsed(now))
		if problem == nil && !next.staple.Until.IsZero() {
			attrs = append(attrs, "staple_until", next.staple.Until)
		}
	}
	c.inUse.Store(next)

	c.log().Info("certificate taken up", attrs...)
	switch {
	case now.After(leaf.NotAfter):
		c.log().Warn("certificate has expired", attrs...)
	case now.Before(leaf.NotBefore):
		c.log().Warn("certificate is not valid yet", "names", certificateNames(leaf), "not_before", leaf.NotBefore)
	}
	if problem != nil {
		level := slog.LevelWarn
		if errors.Is(problem, staple.ErrRevoked) {
			level = slog.LevelError
		}
		c.log().Log(context.Background(), level, "certificate is served without an OCSP staple", "error", problem)
	}
}

// warnOfLapse says once that GetCertificate has dropped the staple.
func (c *CertificateFiles) warnOfLapse() {
	u := c.inUse.Load()
	if u == nil || u.staple == nil || !u.staple.Lapsed(time.Now()) || u.lapseLogged.Swap(true) {
		return
	}
	c.log().Warn("OCSP staple dropped: the file was not renewed in time",
		"ocsp", c.OCSP, "names", certificateNames(u.bare.Leaf), "staple_until", u.staple.Until)
}

func (c *CertificateFiles) logRefusal(u *certificateInUse, err error) {
	if u == nil {
		c.log().Error("certificate files refused, none is in use", "error", err)
		return
	}
	c.log().Error("certificate files refused, the certificate in use stays",
		"error", err, "names", certificateNames(u.bare.Leaf), "not_after", u.bare.Leaf.NotAfter)
}

func (c *CertificateFiles) log() *slog.Logger {
	if c.Log == nil {
		return slog.Default()
	}
	return c.Log
}

// certificateContent is what the files held at one look.
type certificateContent struct {
	cert, key fileContent
	ocsp      *fileContent // nil if none is configured
}

// all are the files in the order in which certificateContentOf takes them.
func (f certificateContent) all() fileContents {
	all := fileContents{f.cert, f.key}
	if f.ocsp != nil {
		all = append(all, *f.ocsp)
	}
	return all
}

func certificateContentOf(all fileContents) certificateContent {
	f := certificateContent{cert: all[0], key: all[1]}
	if len(all) > 2 {
		f.ocsp = &all[2]
	}
	return f
}

func (c *CertificateFiles) read() certificateContent {
	var f certificateContent
	if c.CertPEM != nil {
		f.cert = fileContent{name: "inline certificate", data: c.CertPEM}
	} else {
		f.cert = readFile("certificate", c.Cert, maxCertificateFile)
	}
	if c.Key != "" {
		f.key = readFile("key", c.Key, maxCertificateFile)
	} else {
		f.key = f.cert
	}
	if c.OCSP != "" {
		ocsp := readFile("OCSP response", c.OCSP, maxCertificateFile)
		f.ocsp = &ocsp
	}
	return f
}

// parse checks that the files belong together. A bad staple is kept as stapleErr.
func (f certificateContent) parse() (*certificateInUse, error) {
	chain, err := parseContent(f.cert, parseCertificates)
	if err != nil {
		return nil, err
	}
	key, err := parseContent(f.key, parsePrivateKey)
	if err != nil {
		return nil, err
	}
	if err := checkLeaf(chain, key); err != nil {
		return nil, fmt.Errorf("%s and %s: %w", f.cert.name, f.key.name, err)
	}

	bare := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, cert := range chain {
		bare.Certificate = append(bare.Certificate, cert.Raw)
	}
	next := &certificateInUse{bare: bare, digest: f.all().digest()}
	if f.ocsp == nil {
		return next, nil
	}
	next.staple, next.stapleErr = parseContent(*f.ocsp, func(data []byte) (*staple.Staple, error) {
		return parseStaple(data, chain)
	})
	if next.staple != nil {
		stapled := *bare
		stapled.OCSPStaple = next.staple.DER
		next.stapled = &stapled
	}
	return next, nil
}

// checkLeaf tells whether the first certificate, which crypto/tls takes for the leaf, is the key's.
func checkLeaf(chain []*x509.Certificate, key crypto.Signer) error {
	for i, cert := range chain {
		public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
		switch {
		case !ok || !public.Equal(key.Public()):
		case i == 0:
			return nil
		default:
			return fmt.Errorf("the key belongs to certificate %d (%q), not to the first (%q): put that one first",
				i+1, certificateNames(cert)[0], certificateNames(chain[0])[0])
		}
	}
	return fmt.Errorf("the key does not belong to the certificate (%q)", certificateNames(chain[0])[0])
}

// certificateNames returns what the certificate is for, or its subject if that is all there is.
func certificateNames(cert *x509.Certificate) []string {
	names := append([]string(nil), cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		names = append(names, cert.Subject.String())
	}
	return names
}
