package edge

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	selfSignedLifetime = 10 * 365 * 24 * time.Hour // nobody renews it while the process runs
	selfSignedBackdate = time.Hour                 // for clients whose clock is behind

	maxCommonName = 64 // ub-common-name (RFC 5280, appendix A.1)
)

// SelfSigned makes a P-256 certificate for one host name or IP address and keeps it in memory only:
// each call has a new key, hence a new Pin.
func SelfSigned(name string) (*tls.Certificate, error) {
	host := strings.TrimSuffix(name, ".") // SNI has no final dot
	now := time.Now()
	template := &x509.Certificate{
		NotBefore:             now.Add(-selfSignedBackdate),
		NotAfter:              now.Add(selfSignedLifetime),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, // and no CA: rustls does not take a CA certificate from a server
	}
	if ip := net.ParseIP(strings.Trim(host, "[]")); ip != nil {
		host = ip.String()
		template.IPAddresses = []net.IP{ip}
	} else if host == "" || strings.ContainsAny(host, " /:@") {
		return nil, fmt.Errorf("self-signed certificate: %q is neither a host name nor an IP address", name)
	} else {
		template.DNSNames = []string{host}
	}
	if len(host) <= maxCommonName {
		template.Subject = pkix.Name{CommonName: host}
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate for %q: %w", name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate for %q: %w", name, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate for %q: %w", name, err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// SelfSignedFile is SelfSigned with a memory: the certificate and its key are read from file, or made
// and written there (0600, in a folder of 0700), so that the Pin stays. Where the file cannot be
// used, the certificate is good all the same and the error says why it will not be the same next time.
func SelfSignedFile(file, name string) (*tls.Certificate, error) {
	kept := &CertificateFiles{Cert: file}
	if next, err := kept.read().parse(); err == nil {
		cert := next.bare
		host := strings.Replace(strings.TrimSuffix(name, "."), "*", "any", 1)
		if cert.Leaf.VerifyHostname(host) == nil && time.Now().Before(cert.Leaf.NotAfter) {
			return cert, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		cert, made := SelfSigned(name)
		return cert, cmp.Or(made, err)
	}
	cert, err := SelfSigned(name)
	if err != nil {
		return nil, err
	}
	return cert, writeKeyPair(file, cert)
}

// writeKeyPair writes cert and its key into one private file, all or nothing.
func writeKeyPair(file string, cert *tls.Certificate) error {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
	data = append(data, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".selfsigned-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = cmp.Or(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// Pin returns what a client's pin= expects of this certificate: the SHA-256 of its
// SubjectPublicKeyInfo (RFC 7469, section 2.4) in standard base64.
func Pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}
