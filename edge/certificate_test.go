package edge

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ocsp"
)

// authority is a throw-away CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-48 * time.Hour),
		NotAfter:              time.Now().Add(1000 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	key := newKey(t)
	return &authority{cert: sign(t, template, template, key.Public(), key), key: key}
}

// issue returns a leaf for the key. An option changes the template.
func (a *authority) issue(t testing.TB, name string, public crypto.PublicKey, options ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		DNSNames:    []string{name},
		NotBefore:   time.Now().Add(-24 * time.Hour),
		NotAfter:    time.Now().Add(900 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, option := range options {
		option(template)
	}
	return sign(t, template, a.cert, public, a.key)
}

func (a *authority) respond(t testing.TB, response ocsp.Response) []byte {
	t.Helper()
	der, err := ocsp.CreateResponse(a.cert, a.cert, response, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func sign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certPEM(certs ...*x509.Certificate) []byte {
	var all []byte
	for _, cert := range certs {
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return all
}

func keyPEM(t testing.TB, key crypto.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace is the atomic way to renew a file.
func replace(t testing.TB, path string, data []byte) {
	t.Helper()
	write(t, path+".new", data)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func symlink(t testing.TB, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Skip("no symlinks here:", err)
	}
}

// swapSymlink points an existing symlink elsewhere, as certbot and Kubernetes do.
func swapSymlink(t testing.TB, target, path string) {
	t.Helper()
	symlink(t, target, path+".new")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// logLines keeps what was logged.
type logLines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// take returns the lines since the last take.
func (l *logLines) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := slices.Collect(strings.Lines(l.buf.String()))
	l.buf.Reset()
	return lines
}

// want checks the lines since the last call: as many as there are parts, each with its part.
func (l *logLines) want(t testing.TB, parts ...string) {
	t.Helper()
	lines := l.take()
	ok := len(lines) == len(parts)
	for i := range min(len(lines), len(parts)) {
		ok = ok && strings.Contains(lines[i], parts[i])
	}
	if !ok {
		t.Errorf("logged %q, want lines with %q", lines, parts)
	}
}

// site is a certificate on disk and what serves it.
type site struct {
	*CertificateFiles
	*logLines
	ca   *authority
	key  *ecdsa.PrivateKey
	leaf *x509.Certificate
}

// newSite makes a site with cert.pem and key.pem in dir. With ocsp there is a response good for 24 hours.
func newSite(t testing.TB, dir string, withOCSP bool) *site {
	t.Helper()
	s := &site{logLines: new(logLines), ca: newAuthority(t, "Test CA"), key: newKey(t)}
	s.leaf = s.ca.issue(t, "one.example", s.key.Public())
	s.CertificateFiles = &CertificateFiles{
		Cert: filepath.Join(dir, "cert.pem"),
		Key:  filepath.Join(dir, "key.pem"),
		Log:  slog.New(slog.NewTextHandler(s.logLines, nil)),

		Interval: time.Second,
	}
	write(t, s.Cert, certPEM(s.leaf, s.ca.cert))
	write(t, s.Key, keyPEM(t, s.key))
	if withOCSP {
		s.OCSP = filepath.Join(dir, "ocsp.der")
		write(t, s.OCSP, s.ca.respond(t, good(s.leaf)))
	}
	return s
}

func good(leaf *x509.Certificate) ocsp.Response {
	return ocsp.Response{
		Status:       ocsp.Good,
		SerialNumber: leaf.SerialNumber,
		ThisUpdate:   time.Now().Add(-time.Hour),
		NextUpdate:   time.Now().Add(24 * time.Hour),
	}
}

func (s *site) load(t testing.TB) {
	t.Helper()
	if err := s.Load(); err != nil {
		t.Fatal(err)
	}
}

// watch runs Watch until the test ends. The test is in a synctest bubble.
func (s *site) watch(t testing.TB) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Watch(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// looks lets n looks of Watch go by in the bubble's time.
func (s *site) looks(n int) {
	time.Sleep(time.Duration(n) * s.Interval)
	synctest.Wait()
}

func (s *site) serves(t testing.TB) *tls.Certificate {
	t.Helper()
	cert, err := s.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (s *site) wantName(t testing.TB, name string) {
	t.Helper()
	cert := s.serves(t)
	if got := cert.Leaf.DNSNames; !slices.Equal(got, []string{name}) {
		t.Errorf("serves a certificate for %q, want %q", got, name)
	}
	public := cert.PrivateKey.(crypto.Signer).Public().(*ecdsa.PublicKey)
	if !public.Equal(cert.Leaf.PublicKey) {
		t.Error("serves a certificate with the key of another")
	}
}

func (s *site) wantStaple(t testing.TB, want bool) {
	t.Helper()
	if got := s.serves(t).OCSPStaple != nil; got != want {
		t.Errorf("stapled: %v, want %v", got, want)
	}
}

func TestCertificateFilesHandshake(t *testing.T) {
	s := newSite(t, t.TempDir(), true)
	s.load(t)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: s.GetCertificate})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() {
		c, err := listener.Accept()
		if err != nil {
			served <- err
			return
		}
		defer c.Close()
		served <- c.(*tls.Conn).Handshake()
	}()

	roots := x509.NewCertPool()
	roots.AddCert(s.ca.cert)
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	c, err := tls.DialWithDialer(dialer, "tcp", listener.Addr().String(), &tls.Config{ServerName: "one.example", RootCAs: roots})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	state := c.ConnectionState()
	if len(state.PeerCertificates) != 2 {
		t.Errorf("the client got %d certificates, want 2", len(state.PeerCertificates))
	}
	if err := func() error {
		_, err := ocsp.ParseResponseForCert(state.OCSPResponse, s.leaf, s.ca.cert)
		return err
	}(); err != nil {
		t.Errorf("the client got a bad staple: %v", err)
	}
}

func TestCertificateFilesNotLoaded(t *testing.T) {
	var c CertificateFiles
	if cert, err := c.GetCertificate(nil); err == nil {
		t.Errorf("served %v before Load", cert)
	}
	if err := c.Load(); err == nil || !strings.Contains(err.Error(), "certificate: no file is given") {
		t.Errorf("Load without a file: %v", err)
	}
}

func TestCertificateFilesLoadError(t *testing.T) {
	tests := map[string]struct {
		spoil func(t *testing.T, s *site)
		want  string
		is    error
	}{
		"no certificate": {
			func(t *testing.T, s *site) { os.Remove(s.Cert) }, "cert.pem: ", fs.ErrNotExist,
		},
		"no key": {
			func(t *testing.T, s *site) { os.Remove(s.Key) }, "key.pem: ", fs.ErrNotExist,
		},
		"directory": {
			func(t *testing.T, s *site) { s.Cert = filepath.Dir(s.Cert) }, "a directory, not a file", nil,
		},
		"not a file": {
			func(t *testing.T, s *site) { s.Cert = os.DevNull }, "not a regular file", nil,
		},
		"no permission": {
			func(t *testing.T, s *site) {
				if os.Getuid() <= 0 {
					t.Skip("root reads everything, and Windows has no such mode")
				}
				os.Chmod(s.Key, 0)
			}, "key.pem: ", fs.ErrPermission,
		},
		"too large": {
			func(t *testing.T, s *site) { write(t, s.Cert, make([]byte, maxCertificateFile+1)) }, "cert.pem: larger than 1048576 bytes", nil,
		},
		"empty": {
			func(t *testing.T, s *site) { write(t, s.Key, []byte("\n")) }, "key.pem: the file is empty", nil,
		},
		"swapped": {
			func(t *testing.T, s *site) { s.Cert, s.Key = s.Key, s.Cert }, "key.pem: a private key, not a certificate", nil,
		},
		"key of another": {
			func(t *testing.T, s *site) { write(t, s.Key, keyPEM(t, newKey(t))) },
			`key.pem: the key does not belong to the certificate ("one.example")`, nil,
		},
		"chain upside down": {
			func(t *testing.T, s *site) { write(t, s.Cert, certPEM(s.ca.cert, s.leaf)) },
			`the key belongs to certificate 2 ("one.example"), not to the first ("CN=Test CA"): put that one first`, nil,
		},
		"no key in the certificate's file": {
			func(t *testing.T, s *site) { s.Key = "" }, "cert.pem: a certificate, not a private key", nil,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, t.TempDir(), false)
			test.spoil(t, s)
			err := s.Load()
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want one with %q", err, test.want)
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("error %v is not %v", err, test.is)
			}
			s.want(t)
		})
	}
}

func TestCertificateFilesInline(t *testing.T) {
	s := newSite(t, t.TempDir(), false)
	inline := certPEM(s.leaf)
	body := bytes.Join(bytes.Split(bytes.TrimSpace(inline), []byte("\n"))[1:], nil)
	bare, _, _ := bytes.Cut(body, []byte("-----END")) // as v2ray-plugin's certRaw has it
	for name, content := range map[string][]byte{"PEM": inline, "base64": bare, "DER": s.leaf.Raw} {
		t.Run(name, func(t *testing.T) {
			s.Cert, s.CertPEM = "", content
			s.load(t)
			s.wantName(t, "one.example")
		})
	}
}

func TestCertificateFilesKeyBesideCertificate(t *testing.T) {
	s := newSite(t, t.TempDir(), false)
	write(t, s.Cert, slices.Concat(keyPEM(t, s.key), certPEM(s.leaf, s.ca.cert)))
	for name, key := range map[string]string{"named twice": s.Cert, "not named": ""} {
		t.Run(name, func(t *testing.T) {
			s.Key = key
			s.load(t)
			s.wantName(t, "one.example")
		})
	}
}

func TestCertificateFilesOutsideItsTime(t *testing.T) {
	tests := map[string]struct {
		age  time.Duration
		want string
	}{
		"expired":   {-25 * time.Hour, "certificate has expired"},
		"too early": {25 * time.Hour, "certificate is not valid yet"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, t.TempDir(), false)
			write(t, s.Cert, certPEM(s.ca.issue(t, "one.example", s.key.Public(), func(template *x509.Certificate) {
				template.NotBefore = time.Now().Add(test.age)
				template.NotAfter = time.Now().Add(test.age + 24*time.Hour)
			})))
			s.load(t)
			s.want(t, "certificate taken up", test.want)
			s.wantName(t, "one.example")
		})
	}
}

// renewal is a second pair from the site's CA.
func (s *site) renewal(t testing.TB) (cert, key []byte) {
	t.Helper()
	k := newKey(t)
	return certPEM(s.ca.issue(t, "two.example", k.Public()), s.ca.cert), keyPEM(t, k)
}

func TestWatchTakesUp(t *testing.T) {
	ways := map[string]func(t *testing.T, s *site, cert, key []byte){
		"rename": func(t *testing.T, s *site, cert, key []byte) {
			replace(t, s.Cert, cert)
			replace(t, s.Key, key)
		},
		"in place": func(t *testing.T, s *site, cert, key []byte) {
			write(t, s.Cert, cert)
			write(t, s.Key, key)
		},
		"removed and written anew": func(t *testing.T, s *site, cert, key []byte) {
			os.Remove(s.Cert)
			os.Remove(s.Key)
			s.looks(1)
			write(t, s.Key, key)
			write(t, s.Cert, cert)
		},
		"cert between two looks of key": func(t *testing.T, s *site, cert, key []byte) {
			replace(t, s.Cert, cert)
			s.looks(1)
			replace(t, s.Key, key)
		},
	}
	for name, renew := range ways {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, t.TempDir(), false)
				s.load(t)
				s.watch(t)
				s.looks(3)
				s.want(t, `names=[one.example] not_after=`)

				cert, key := s.renewal(t)
				renew(t, s, cert, key)
				s.looks(2)
				s.wantName(t, "two.example")
				s.looks(5)
				s.want(t, `msg="certificate taken up" names=[two.example] not_after=`)
			})
		})
	}
}

func TestWatchFollowsSymlinks(t *testing.T) {
	t.Run("certbot", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			archive, live := t.TempDir(), t.TempDir()
			s := newSite(t, archive, false)
			symlink(t, s.Cert, filepath.Join(live, "fullchain.pem"))
			symlink(t, s.Key, filepath.Join(live, "privkey.pem"))
			s.Cert, s.Key = filepath.Join(live, "fullchain.pem"), filepath.Join(live, "privkey.pem")
			s.load(t)
			s.watch(t)
			s.looks(2)

			cert, key := s.renewal(t)
			write(t, filepath.Join(archive, "cert2.pem"), cert)
			write(t, filepath.Join(archive, "key2.pem"), key)
			swapSymlink(t, filepath.Join(archive, "key2.pem"), s.Key)
			swapSymlink(t, filepath.Join(archive, "cert2.pem"), s.Cert)
			s.looks(2)
			s.wantName(t, "two.example")
		})
	})
	t.Run("kubernetes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			volume := t.TempDir()
			first, second := filepath.Join(volume, "..1"), filepath.Join(volume, "..2")
			os.Mkdir(first, 0o700)
			os.Mkdir(second, 0o700)
			s := newSite(t, first, false)
			symlink(t, first, filepath.Join(volume, "..data"))
			for _, file := range []*string{&s.Cert, &s.Key} {
				name := filepath.Base(*file)
				*file = filepath.Join(volume, name)
				symlink(t, filepath.Join("..data", name), *file)
			}
			s.load(t)
			s.watch(t)
			s.looks(2)

			cert, key := s.renewal(t)
			write(t, filepath.Join(second, "cert.pem"), cert)
			write(t, filepath.Join(second, "key.pem"), key)
			swapSymlink(t, second, filepath.Join(volume, "..data"))
			s.looks(2)
			s.wantName(t, "two.example")
			s.want(t, "one.example", "two.example")
		})
	})
}

func TestWatchRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), false)
		s.load(t)
		s.watch(t)
		s.want(t, "certificate taken up")
		cert, key := s.renewal(t)

		t.Log("half a renewal is refused once, and the old certificate stays")
		write(t, s.Cert, cert)
		s.looks(10)
		s.wantName(t, "one.example")
		s.want(t, "the key does not belong to the certificate")

		t.Log("another wrong state is said again")
		write(t, s.Cert, []byte("garbage"))
		s.looks(10)
		s.wantName(t, "one.example")
		s.want(t, "cert.pem: neither PEM nor DER")

		t.Log("a file may be missing")
		os.Remove(s.Cert)
		s.looks(10)
		s.wantName(t, "one.example")
		s.want(t, "certificate files refused, the certificate in use stays")

		t.Log("what was in use comes back")
		write(t, s.Cert, certPEM(s.leaf, s.ca.cert))
		s.looks(10)
		s.want(t, "hold the certificate in use again")

		t.Log("the other half arrives")
		write(t, s.Cert, cert)
		s.looks(10)
		write(t, s.Key, key)
		s.looks(10)
		s.wantName(t, "two.example")
		s.want(t, "the key does not belong", "certificate taken up")
	})
}

func TestWatchIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), true)
		s.load(t)
		s.take()
		s.watch(t)

		old := time.Now().Add(-time.Hour)
		for _, path := range []string{s.Cert, s.Key, s.OCSP} {
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
		}
		s.looks(10)
		replace(t, s.Cert, certPEM(s.leaf, s.ca.cert))
		s.looks(10)
		s.want(t)
	})
}

// Files whose time stamps lie back are not read again, but every kind of change is seen.
func TestWatchAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), false)
		s.load(t)
		s.take()
		old := time.Now().Add(-time.Hour)
		age := func(path string) {
			t.Helper()
			if err := os.Chtimes(path, old, old); err != nil {
				t.Fatal(err)
			}
		}
		age(s.Cert)
		age(s.Key)
		w := s.watching()
		for range 3 {
			w.look()
		}
		if !w.atRest {
			t.Fatal("not at rest")
		}

		cert, key := s.renewal(t)
		replace(t, s.Cert, cert)
		age(s.Cert) // another file with the same time stamp, and most likely the same size
		replace(t, s.Key, key)
		age(s.Key)
		for range 3 {
			w.look()
		}
		s.wantName(t, "two.example")

		write(t, s.Key, []byte("garbage"))
		for range 3 {
			w.look()
		}
		s.want(t, "certificate taken up", "certificate files refused")
	})
}

func TestWatchAfterFailedLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), false)
		key := keyPEM(t, s.key)
		os.Remove(s.Key)
		if err := s.Load(); err == nil {
			t.Fatal("loaded without a key")
		}
		s.watch(t)
		s.looks(5)
		s.want(t, "certificate files refused, none is in use")
		write(t, s.Key, key)
		s.looks(2)
		s.wantName(t, "one.example")
	})
}

func TestWatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), false)
		s.Interval = 0 // the default
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		s.Watch(ctx)
		if took := time.Since(began); took != time.Minute {
			t.Errorf("Watch returned after %v, want 1m", took)
		}
	})
}

func TestWatchRenewsStaple(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), true)
		s.Interval = time.Minute
		s.load(t)
		s.watch(t)
		s.wantStaple(t, true)
		s.want(t, "staple_until=")

		t.Log("the old response would end in 24 hours")
		time.Sleep(23 * time.Hour)
		replace(t, s.OCSP, s.ca.respond(t, good(s.leaf)))
		s.looks(2)
		s.want(t, "staple_until=")
		time.Sleep(2 * time.Hour)
		s.wantStaple(t, true)

		t.Log("dropped at the second, with one warning")
		until := s.inUse.Load().staple.Until
		time.Sleep(time.Until(until) - time.Second)
		s.wantStaple(t, true)
		time.Sleep(time.Second)
		s.wantStaple(t, false)
		s.wantName(t, "one.example")
		s.looks(100)
		s.want(t, "OCSP staple dropped")

		t.Log("and taken up again")
		replace(t, s.OCSP, s.ca.respond(t, good(s.leaf)))
		s.looks(2)
		s.wantStaple(t, true)

		t.Log("a bad file costs the staple only")
		write(t, s.OCSP, []byte("garbage"))
		s.looks(2)
		s.wantStaple(t, false)
		s.wantName(t, "one.example")
		s.want(t, "certificate taken up", "certificate taken up", "served without an OCSP staple")
	})
}

// The pair and its response are renewed one after the other.
func TestWatchRenewsPairThenStaple(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), true)
		s.load(t)
		s.watch(t)
		s.take()

		key := newKey(t)
		leaf := s.ca.issue(t, "two.example", key.Public())
		replace(t, s.Cert, certPEM(leaf, s.ca.cert))
		replace(t, s.Key, keyPEM(t, key))
		s.looks(2)
		s.wantName(t, "two.example")
		s.wantStaple(t, false)
		s.want(t, "two.example", "no response matching the supplied certificate")

		replace(t, s.OCSP, s.ca.respond(t, good(leaf)))
		s.looks(2)
		s.wantStaple(t, true)
		s.want(t, "staple_until=")
	})
}

// Nobody looks: the handshake itself must not hand out what is too old.
func TestStapleDroppedWithoutWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, t.TempDir(), true)
		s.load(t)
		time.Sleep(24*time.Hour - time.Nanosecond)
		s.wantStaple(t, true)
		time.Sleep(time.Nanosecond)
		s.wantStaple(t, false)
	})
}

// GetCertificate and Load run beside Watch; the race detector looks on.
func TestCertificateFilesConcurrently(t *testing.T) {
	s := newSite(t, t.TempDir(), true)
	s.Interval = time.Millisecond
	s.load(t)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { s.Watch(ctx) })
	all.Go(func() {
		for ctx.Err() == nil {
			if _, err := s.GetCertificate(nil); err != nil {
				t.Error(err)
			}
			runtime.Gosched()
		}
	})
	all.Go(func() {
		for ctx.Err() == nil {
			s.Load() // may meet half a renewal
			runtime.Gosched()
		}
	})

	cert, key := s.renewal(t)
	replace(t, s.Cert, cert)
	replace(t, s.Key, key)
	deadline := time.Now().Add(10 * time.Second)
	for s.serves(t).Leaf.DNSNames[0] != "two.example" {
		if time.Now().After(deadline) {
			t.Fatal("the renewed certificate was not taken up")
		}
		runtime.Gosched()
	}
}
