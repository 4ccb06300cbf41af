package edge

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"raimon/internal/staple"
)

const (
	defaultCertificateInterval = time.Second

	// A chain takes some 10 KiB: whatever is larger than this is another kind of file.
	maxCertificateFile = 1 << 20

	// Two writes may get one time stamp (FAT counts in steps of 2 s): a file younger than this is
	// read at every look, whatever its stat says.
	coarsestTimestamp = 3 * time.Second
)

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

// Watch looks at the files until ctx ends and takes up what has changed. Files that do not belong
// together, or cannot be read, are refused with one line in the log, and the certificate in use stays.
//
// It polls: notifications miss symlinks that are swapped (certbot, Kubernetes) and network file systems.
func (c *CertificateFiles) Watch(ctx context.Context) {
	interval := c.Interval
	if interval <= 0 {
		interval = defaultCertificateInterval
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()

	var w certificateWatch
	if u := c.inUse.Load(); u != nil {
		w.digest = u.digest
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.look(&w)
			c.warnOfLapse()
		}
	}
}

// certificateWatch is what Watch remembers from one look to the next.
type certificateWatch struct {
	stats   []fs.FileInfo
	digest  [sha256.Size]byte // what the files held
	atRest  bool              // no need to read while the stats stay the same
	refused [sha256.Size]byte // what was found wanting and logged; zero if nothing is wrong
}

func (c *CertificateFiles) look(w *certificateWatch) {
	// Stat before reading: a write in between shows at the next look. Reading every time would be
	// simpler, but fills the log of whoever audits reads of private keys.
	stats := c.stat()
	if w.atRest && sameStats(stats, w.stats) {
		return
	}
	files := c.read()
	digest := files.digest()
	settled := digest == w.digest
	w.stats, w.digest = stats, digest
	w.atRest = settled && files.readable() && allOlder(stats, coarsestTimestamp)
	if !settled {
		return // perhaps half a renewal
	}

	u := c.inUse.Load()
	healthy := w.refused == [sha256.Size]byte{}
	switch {
	case u != nil && digest == u.digest && healthy:
	case u != nil && digest == u.digest:
		w.refused = [sha256.Size]byte{}
		c.log().Info("certificate files hold the certificate in use again", "names", certificateNames(u.bare.Leaf))
	case digest == w.refused:
	default:
		next, err := files.parse()
		if err != nil {
			w.refused = digest
			c.logRefusal(u, err)
			return
		}
		w.refused = [sha256.Size]byte{}
		c.takeUp(next)
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

// fileContent is the content of one file, or the reason why there is none.
type fileContent struct {
	name string // kind and path, for errors
	data []byte
	err  error
}

func (c *CertificateFiles) read() certificateContent {
	var f certificateContent
	if c.CertPEM != nil {
		f.cert = fileContent{name: "inline certificate", data: c.CertPEM}
	} else {
		f.cert = readFile("certificate", c.Cert)
	}
	if c.Key != "" {
		f.key = readFile("key", c.Key)
	} else {
		f.key = f.cert
	}
	if c.OCSP != "" {
		ocsp := readFile("OCSP response", c.OCSP)
		f.ocsp = &ocsp
	}
	return f
}

func readFile(kind, path string) fileContent {
	f := fileContent{name: kind + " " + path}
	if path == "" {
		f.name = kind
	}
	var data []byte
	data, f.err = readRegularFile(path)
	if pathErr, ok := errors.AsType[*fs.PathError](f.err); ok {
		f.err = pathErr.Err // the name already says which file
	}
	if f.err == nil {
		f.data = data
	}
	return f
}

func readRegularFile(path string) ([]byte, error) {
	if path == "" {
		return nil, errors.New("no file is given")
	}
	// Opening a pipe would wait for its writer.
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, errors.New("a directory, not a file")
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file, so it could not be read again when it changes")
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxCertificateFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxCertificateFile {
		return nil, fmt.Errorf("larger than %d bytes", maxCertificateFile)
	}
	return data, nil
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
	next := &certificateInUse{bare: bare, digest: f.digest()}
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

func parseContent[T any](f fileContent, parse func([]byte) (T, error)) (T, error) {
	var none T
	if f.err != nil {
		return none, fmt.Errorf("%s: %w", f.name, f.err)
	}
	v, err := parse(f.data)
	if err != nil {
		return none, fmt.Errorf("%s: %w", f.name, err)
	}
	return v, nil
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

// digest is the same for the same content, and for the same trouble in reading it.
func (f certificateContent) digest() [sha256.Size]byte {
	all := []fileContent{f.cert, f.key}
	if f.ocsp != nil {
		all = append(all, *f.ocsp)
	}
	h := sha256.New()
	for _, file := range all {
		text := ""
		if file.err != nil {
			text = file.err.Error()
		}
		h.Write(binary.AppendUvarint(nil, uint64(len(text))))
		io.WriteString(h, text)
		h.Write(binary.AppendUvarint(nil, uint64(len(file.data))))
		h.Write(file.data)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func (f certificateContent) readable() bool {
	return f.cert.err == nil && f.key.err == nil && (f.ocsp == nil || f.ocsp.err == nil)
}

// stat follows symlinks. A file that has no stat is nil.
func (c *CertificateFiles) stat() []fs.FileInfo {
	paths := []string{c.Cert, c.Key, c.OCSP}
	if c.CertPEM != nil {
		paths = paths[1:]
	}
	stats := make([]fs.FileInfo, len(paths))
	for i, path := range paths {
		if path == "" {
			continue
		}
		if info, err := os.Stat(path); err == nil {
			stats[i] = info
		}
	}
	return stats
}

func sameStats(a, b []fs.FileInfo) bool {
	for i := range a {
		if a[i] == nil && b[i] == nil {
			continue
		}
		if a[i] == nil || b[i] == nil || !os.SameFile(a[i], b[i]) ||
			a[i].Size() != b[i].Size() || a[i].Mode() != b[i].Mode() || !a[i].ModTime().Equal(b[i].ModTime()) {
			return false
		}
	}
	return true
}

func allOlder(stats []fs.FileInfo, age time.Duration) bool {
	for _, info := range stats {
		if info != nil && time.Since(info.ModTime()) < age {
			return false
		}
	}
	return true
}
