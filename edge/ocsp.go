package edge

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"
)

// ocspSkew is how far a responder's clock may be ahead of ours.
const ocspSkew = 5 * time.Minute

var errRevoked = errors.New("the certificate is revoked: get a new one")

// ocspStaple is a response that says "good" about our leaf and that clients have reason to trust.
// Whether it is in time is asked at every handshake.
type ocspStaple struct {
	der         []byte
	from, until time.Time // until zero: newer information is always available (RFC 6960, section 4.2.2.1)
}

func (s *ocspStaple) check(now time.Time) error {
	if now.Before(s.from.Add(-ocspSkew)) {
		return fmt.Errorf("the OCSP response is not valid before %s", s.from.UTC().Format(time.RFC3339))
	}
	if s.lapsed(now) {
		return fmt.Errorf("the OCSP response is not valid after %s", s.until.UTC().Format(time.RFC3339))
	}
	return nil
}

func (s *ocspStaple) lapsed(now time.Time) bool {
	return !s.until.IsZero() && !now.Before(s.until)
}

// parseStaple checks a DER or PEM response as a client would (RFC 6960, section 3.2), time apart.
func parseStaple(data []byte, chain []*x509.Certificate) (*ocspStaple, error) {
	blocks, err := typedBlocks(data)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(blocks, func(b *pem.Block) bool { return b.Type == "OCSP RESPONSE" || b.Type == "" })
	if i < 0 {
		return nil, fmt.Errorf("%s, not an OCSP response", describeBlock(blocks[0].Type))
	}
	der, leaf := blocks[i].Bytes, chain[0]
	issuer := issuerOf(chain)
	if issuer == nil {
		return nil, errors.New("cannot be checked: the certificate file lacks the issuer: use fullchain.pem")
	}

	// Given the issuer, ParseResponseForCert refuses a response that carries the issuer's certificate,
	// and takes any certificate of the issuer for a responder's. So who signed is our business.
	response, err := ocsp.ParseResponseForCert(der, leaf, nil)
	if err != nil {
		return nil, err
	}
	staple := &ocspStaple{der: der, from: response.ThisUpdate, until: response.NextUpdate}
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
		if signer.NotBefore.After(staple.from) {
			staple.from = signer.NotBefore
		}
		if staple.until.IsZero() || signer.NotAfter.Before(staple.until) {
			staple.until = signer.NotAfter
		}
	}
	if err := checkCertID(response, leaf, issuer); err != nil {
		return nil, err
	}
	switch response.Status {
	case ocsp.Good:
		return staple, nil
	case ocsp.Revoked:
		return nil, fmt.Errorf("since %s %w", response.RevokedAt.UTC().Format(time.RFC3339), errRevoked)
	default:
		return nil, errors.New("the responder does not know the certificate")
	}
}

// issuerOf returns the certificate that signed the leaf; nil if the chain does not hold it.
func issuerOf(chain []*x509.Certificate) *x509.Certificate {
	leaf := chain[0]
	for _, cert := range append(chain[1:len(chain):len(chain)], leaf) {
		if bytes.Equal(cert.RawSubject, leaf.RawIssuer) &&
			cert.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature) == nil {
			return cert
		}
	}
	return nil
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
