package tunnel

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// AuthorityError says that the server showed a certificate of a CA that is not trusted: one of its own, of a
// private CA, or of something on the way that breaks TLS open.
type AuthorityError struct {
	Issuer     string // who issued it, as it says itself; printable, at most some 200 characters, may be empty
	SelfSigned bool
	Pin        string // of the key that came, as VerifyPins has it, in base64
	GivenRoots bool   // the roots of the config counted, not those of the system

	err error
}

func (e *AuthorityError) Error() string {
	trusted := "a public CA or one that this machine trusts"
	if e.GivenRoots {
		trusted = "a CA that is trusted here"
	}
	issuer := e.Issuer
	if issuer == "" {
		issuer = "somebody without a name"
	}
	if e.SelfSigned {
		return fmt.Sprintf("the certificate is self-signed by %s, not issued by %s", issuer, trusted)
	}
	return fmt.Sprintf("the certificate was issued by %s, not by %s", issuer, trusted)
}

// Unwrap returns what crypto/tls says, in which there is an x509.UnknownAuthorityError.
func (e *AuthorityError) Unwrap() error { return e.err }

// nameAuthority adds to err who issued the certificate, if that is what is wrong with it.
func nameAuthority(err error, config *tls.Config) error {
	var failed *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	if !errors.As(err, &failed) || !errors.As(err, &unknown) || len(failed.UnverifiedCertificates) == 0 {
		return err
	}
	leaf := failed.UnverifiedCertificates[0]
	return &AuthorityError{
		Issuer:     IssuerName(leaf),
		SelfSigned: bytes.Equal(leaf.RawIssuer, leaf.RawSubject),
		Pin:        PinOf(leaf),
		GivenRoots: config.RootCAs != nil,
		err:        err,
	}
}

// IssuerName is the common name of the issuer, with its organization.
func IssuerName(leaf *x509.Certificate) string {
	name, organization := brief(leaf.Issuer.CommonName, 80), brief(strings.Join(leaf.Issuer.Organization, ", "), 80)
	switch {
	case name == "" && organization == "":
		return brief(leaf.Issuer.String(), 80)
	case name == "" || organization == "":
		return fmt.Sprintf("%q", name+organization)
	}
	return fmt.Sprintf("%q (%s)", name, organization)
}

// PinOf is the pin of a certificate's key (RFC 7469, section 2.4), in base64.
func PinOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}
