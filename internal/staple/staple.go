// Package staple checks and fetches the OCSP responses that a server staples to its certificates
// (RFC 6960; RFC 6066, section 8).
//
// Parse and Fetch trust nothing but the chain that they are given. What they return was good when
// the responder signed it: ask Check at every handshake, for a client refuses what has lapsed.
package staple

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"
)

const (
	// skew is how far a responder's clock may be ahead of ours.
	skew = 5 * time.Minute

	// refreshOpenEnded is when to ask again a responder that says nothing of its next update.
	refreshOpenEnded = 6 * time.Hour
)

var (
	// ErrRevoked is wrapped by errors that say since when the certificate is revoked.
	ErrRevoked = errors.New("the certificate is revoked: get a new one")

	// ErrNoIssuer means that the chain lacks the certificate that signed its leaf.
	ErrNoIssuer = errors.New("cannot be checked: the chain lacks the issuer's certificate")
)

// Staple is a response that says "good" about a leaf and that clients have reason to trust.
type Staple struct {
	// DER is what tls.Certificate.OCSPStaple takes.
	DER []byte
	// From and Until limit the time in which clients take it. Until is zero if newer information is
	// always available (RFC 6960, section 4.2.2.1): it does not lapse then.
	From, Until time.Time

	openEnded bool  // the responder said nothing of its next update, whatever Until is
	status    error // nil if good
}

// Parse checks a response in DER as a client would (RFC 6960, section 3.2), time apart. The chain
// begins with the leaf and holds its issuer. Errors wrap ErrRevoked or ErrNoIssuer where they apply.
func Parse(der []byte, chain []*x509.Certificate) (*Staple, error) {
	s, err := parse(der, chain)
	if err == nil {
		err = s.status
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Check returns nil if clients take the response at this moment.
func (s *Staple) Check(now time.Time) error {
	if now.Before(s.From.Add(-skew)) {
		return fmt.Errorf("the OCSP response is not valid before %s", s.From.UTC().Format(time.RFC3339))
	}
	if s.Lapsed(now) {
		return fmt.Errorf("the OCSP response is not valid after %s", s.Until.UTC().Format(time.RFC3339))
	}
	return nil
}

// Lapsed tells whether the response is too old.
func (s *Staple) Lapsed(now time.Time) bool {
	return !s.Until.IsZero() && !now.Before(s.Until)
}

// Refresh is when to ask for a newer response: half-way through its time, so that the other half is
// there for responders that are away. Without a next update it is 6 hours after From, or sooner if Until is
// near. It may be past as soon as the response arrives: who asks again has to pause all the same.
func (s *Staple) Refresh() time.Time {
	open := s.From.Add(refreshOpenEnded)
	if s.Until.IsZero() {
		return open
	}
	half := s.From.Add(s.Until.Sub(s.From) / 2)
	if s.openEnded && open.Before(half) {
		return open
	}
	return half
}

// parse returns a Staple with whatever status the responder gives, if the rest can be trusted.
func parse(der []byte, chain []*x509.Certificate) (*Staple, error) {
	leaf, issuer, err := leafAndIssuer(chain)
	if err != nil {
		return nil, err
	}
	// Given the issuer, ParseResponseForCert refuses a response that carries the issuer's certificate,
	// and takes any certificate of the issuer for a responder's. So who signed is our business.
	response, err := ocsp.ParseResponseForCert(der, leaf, nil)
	if err != nil {
		return nil, err
	}
	s := &Staple{DER: der, From: response.ThisUpdate, Until: response.NextUpdate, openEnded: response.NextUpdate.IsZero()}
	switch signer := response.Certificate; {
	case signer == nil:
		if err := response.CheckSignatureFrom(issuer); err != nil {
			return nil, fmt.Errorf("signature of %q: %w", issuer.Subject.String(), err)
		}
	case signer.Equal(issuer): // ParseResponseForCert has checked the signature with it
	default:
		if err := checkDelegate(signer, issuer); err != nil {
			return nil, fmt.Errorf("responder %q: %w", signer.Subject.String(), err)
		}
		if signer.NotBefore.After(s.From) {
			s.From = signer.NotBefore
		}
		if s.Until.IsZero() || signer.NotAfter.Before(s.Until) {
			s.Until = signer.NotAfter
		}
	}
	if err := checkCertID(response, leaf, issuer); err != nil {
		return nil, err
	}
	switch response.Status {
	case ocsp.Good:
	case ocsp.Revoked:
		s.status = fmt.Errorf("since %s %w", response.RevokedAt.UTC().Format(time.RFC3339), ErrRevoked)
	default:
		s.status = errors.New("the responder does not know the certificate")
	}
	return s, nil
}

// leafAndIssuer returns the first certificate and the one that signed it.
func leafAndIssuer(chain []*x509.Certificate) (leaf, issuer *x509.Certificate, err error) {
	if len(chain) == 0 {
		return nil, nil, errors.New("no certificate is given")
	}
	leaf = chain[0]
	for _, cert := range append(chain[1:len(chain):len(chain)], leaf) {
		if bytes.Equal(cert.RawSubject, leaf.RawIssuer) &&
			cert.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature) == nil {
			return leaf, cert, nil
		}
	}
	return nil, nil, ErrNoIssuer
}

// checkDelegate tells whether the issuer has charged another with its responses (RFC 6960, section 4.2.2.2).
func checkDelegate(signer, issuer *x509.Certificate) error {
	if !bytes.Equal(signer.RawIssuer, issuer.RawSubject) {
		return errors.New("its certificate is not from the issuer of ours")
	}
	if err := signer.CheckSignatureFrom(issuer); err != nil {
		return err
	}
	if !slices.Contains(signer.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
		return errors.New("its certificate is not for OCSP signing")
	}
	return nil
}

// checkCertID tells whether the response is about the issuer's certificate with our serial number.
// ParseResponseForCert compares the serial number alone, and keeps the rest of the CertID to itself.
func checkCertID(response *ocsp.Response, leaf, issuer *x509.Certificate) error {
	id, err := certID(leaf, issuer, response.IssuerHash)
	if err != nil {
		return err
	}
	if !bytes.Contains(response.TBSResponseData, id) {
		return errors.New("it is about a certificate of another issuer")
	}
	return nil
}

// certID returns the encoding of a CertID (RFC 6960, section 4.1.1) from the name's hash on.
func certID(leaf, issuer *x509.Certificate, hash crypto.Hash) ([]byte, error) {
	der, err := ocsp.CreateRequest(leaf, issuer, &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		return nil, err
	}
	request, err := ocsp.ParseRequest(der)
	if err != nil {
		return nil, err
	}
	id, err := asn1.Marshal(struct {
		NameHash, KeyHash []byte
		Serial            *big.Int
	}{request.IssuerNameHash, request.IssuerKeyHash, request.SerialNumber})
	if err != nil {
		return nil, err
	}
	var sequence asn1.RawValue
	_, err = asn1.Unmarshal(id, &sequence)
	return sequence.Bytes, err
}
