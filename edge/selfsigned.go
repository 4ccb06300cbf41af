package edge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"net"
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

// Pin returns what a client's pin= expects of this certificate: the SHA-256 of its
// SubjectPublicKeyInfo (RFC 7469, section 2.4) in standard base64.
func Pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}
