package edge

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// A revocation takes some 40 bytes.
	maxRevocationFile  = 4 << 20
	maxRevocationLists = 64
)

// Extensions of revocation lists (RFC 5280, section 5.2).
var (
	oidIssuingDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidDeltaCRLIndicator        = asn1.ObjectIdentifier{2, 5, 29, 27}
)

// revocations is what one list says.
type revocations struct {
	issuer  *x509.Certificate
	serials map[string]struct{} // as big-endian bytes
	until   time.Time           // zero: it does not say
}

// has tells whether the list revokes cert. Issuer is who has signed that; nil: only its name is known.
func (l *revocations) has(cert, issuer *x509.Certificate) bool {
	if !bytes.Equal(cert.RawIssuer, l.issuer.RawSubject) {
		return false
	}
	// Another key under the same name is another CA, with serial numbers of its own.
	if issuer != nil && !bytes.Equal(issuer.RawSubjectPublicKeyInfo, l.issuer.RawSubjectPublicKeyInfo) {
		return false
	}
	_, revoked := l.serials[string(cert.SerialNumber.Bytes())]
	return revoked
}

// parseRevocations returns the lists of a PEM or DER file, at least one, each of which is signed by one of
// authorities and good for use at now.
func parseRevocations(data []byte, authorities []*x509.Certificate, now time.Time) ([]*revocations, error) {
	all, err := splitRevocationLists(data)
	if err != nil {
		return nil, err
	}
	var lists []*revocations
	for n, der := range all {
		l, err := parseRevocationList(der, authorities, now)
		if err != nil {
			return nil, fmt.Errorf("list %d: %w", n+1, err)
		}
		lists = append(lists, l)
	}
	return lists, nil
}

// splitRevocationLists returns the DER of each list of a file.
func splitRevocationLists(data []byte) ([][]byte, error) {
	blocks, err := typedBlocks(data)
	if err != nil {
		return nil, err
	}
	var all [][]byte
	for _, block := range blocks {
		if block.Type != "X509 CRL" && block.Type != "" {
			continue
		}
		for rest := block.Bytes; len(rest) > 0; { // DER files may have been put one behind the other
			var list asn1.RawValue
			if rest, err = asn1.Unmarshal(rest, &list); err != nil {
				return nil, fmt.Errorf("list %d: cut short or damaged", len(all)+1)
			}
			if len(all) == maxRevocationLists {
				return nil, fmt.Errorf("more than %d lists", maxRevocationLists)
			}
			all = append(all, list.FullBytes)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s, not a revocation list", describeBlock(blocks[0].Type))
	}
	return all, nil
}

func parseRevocationList(der []byte, authorities []*x509.Certificate, now time.Time) (*revocations, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("not a revocation list, or damaged: %w", err)
	}
	issuer, err := signerOf(list, authorities)
	if err != nil {
		return nil, fmt.Errorf("of %s: %w", list.Issuer, err)
	}
	if !list.NextUpdate.IsZero() && now.After(list.NextUpdate) {
		return nil, &hintedError{
			fmt.Errorf("of %s: expired at %s", list.Issuer, list.NextUpdate.UTC().Format(time.RFC3339)),
			"ask the CA for its current list, or check this machine's clock",
		}
	}
	if err := checkRevocationExtensions(list); err != nil {
		return nil, fmt.Errorf("of %s: %w", list.Issuer, err)
	}
	l := &revocations{issuer: issuer, serials: make(map[string]struct{}), until: list.NextUpdate}
	for _, entry := range list.RevokedCertificateEntries {
		l.serials[string(entry.SerialNumber.Bytes())] = struct{}{}
	}
	return l, nil
}

// signerOf returns the one of authorities that has signed list.
func signerOf(list *x509.RevocationList, authorities []*x509.Certificate) (*x509.Certificate, error) {
	problem := error(&hintedError{errors.New("it is of none of the client CAs"),
		"a list has to be signed by a CA of the file of CAs; where another one has signed it, put that one's certificate there too"})
	for _, a := range authorities {
		if !bytes.Equal(a.RawSubject, list.RawIssuer) {
			continue
		}
		err := list.CheckSignatureFrom(a)
		if err == nil {
			return a, nil // of two certificates of one CA either will do: name and key are the same
		}
		problem = fmt.Errorf("the client CA of this name has not signed it: %w", err)
	}
	return nil, problem
}

// checkRevocationExtensions refuses lists that mean something else than they seem to: those with a critical extension
// that we do not know must not be used (RFC 5280, section 5.2).
func checkRevocationExtensions(list *x509.RevocationList) error {
	for _, e := range list.Extensions {
		switch {
		case e.Id.Equal(oidDeltaCRLIndicator):
			return &hintedError{errors.New("a delta list, which says only what has changed"), "give the complete list of the CA"}
		case e.Id.Equal(oidIssuingDistributionPoint):
			if err := checkDistributionPoint(e.Value); err != nil {
				return err
			}
		case e.Critical:
			return fmt.Errorf("it has the critical extension %s, which is not known here", e.Id)
		}
	}
	for _, entry := range list.RevokedCertificateEntries {
		if n := slices.IndexFunc(entry.Extensions, func(e pkix.Extension) bool { return e.Critical }); n >= 0 {
			return fmt.Errorf("an entry has the critical extension %s, which is not known here", entry.Extensions[n].Id)
		}
	}
	return nil
}

// checkDistributionPoint refuses lists with certificates of other CAs (RFC 5280, section 5.2.5). A list of only some
// certificates or reasons is as good as any, for what it revokes.
func checkDistributionPoint(der []byte) error {
	var point struct {
		Name           asn1.RawValue  `asn1:"optional,tag:0"`
		OnlyUsers      bool           `asn1:"optional,tag:1"`
		OnlyCAs        bool           `asn1:"optional,tag:2"`
		OnlyReasons    asn1.BitString `asn1:"optional,tag:3"`
		Indirect       bool           `asn1:"optional,tag:4"`
		OnlyAttributes bool           `asn1:"optional,tag:5"`
	}
	rest, err := asn1.Unmarshal(der, &point)
	switch {
	case err != nil || len(rest) > 0:
		return errors.New("its issuing distribution point cannot be read")
	case point.Indirect:
		return errors.New("an indirect list, which speaks of certificates of other CAs")
	}
	return nil
}
