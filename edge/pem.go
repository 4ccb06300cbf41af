package edge

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"raimon/internal/staple"
)

// parseCertificates returns the certificates of a PEM or DER file in their order, at least one.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	blocks, err := typedBlocks(data)
	if err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	for _, block := range blocks {
		switch block.Type {
		case "CERTIFICATE", "X509 CERTIFICATE", "":
			certs, err := x509.ParseCertificates(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("certificate %d: %w", len(chain)+1, err)
			}
			chain = append(chain, certs...)
		}
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("%s, not a certificate", describeBlock(blocks[0].Type))
	}
	return chain, nil
}

// parsePrivateKey returns the first key of a PEM or DER file. Its errors are made of fixed words only,
// so that they hold nothing of the key.
func parsePrivateKey(data []byte) (crypto.Signer, error) {
	blocks, err := typedBlocks(data)
	if err != nil {
		return nil, err
	}
	for _, block := range blocks {
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" ||
			strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return nil, errors.New("the key is encrypted: decrypt it with openssl pkey -in old.pem -out new.pem")
		case block.Type == "OPENSSH PRIVATE KEY":
			return nil, errors.New("an OpenSSH key, which TLS does not use")
		case block.Type == "" || block.Type == "PRIVATE KEY" || strings.HasSuffix(block.Type, " PRIVATE KEY"):
			return parseKeyDER(block.Bytes)
		}
	}
	return nil, fmt.Errorf("%s, not a private key", describeBlock(blocks[0].Type))
}

// parseStaple returns the first OCSP response of a PEM or DER file, checked against the chain of the
// certificate file.
func parseStaple(data []byte, chain []*x509.Certificate) (*staple.Staple, error) {
	blocks, err := typedBlocks(data)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(blocks, func(b *pem.Block) bool { return b.Type == "OCSP RESPONSE" || b.Type == "" })
	if i < 0 {
		return nil, fmt.Errorf("%s, not an OCSP response", describeBlock(blocks[0].Type))
	}
	s, err := staple.Parse(blocks[i].Bytes, chain)
	if errors.Is(err, staple.ErrNoIssuer) {
		return nil, fmt.Errorf("%w: use fullchain.pem", err)
	}
	return s, err
}

func parseKeyDER(der []byte) (crypto.Signer, error) {
	switch key := anyKey(der).(type) {
	case *rsa.PrivateKey:
		if key.N.BitLen() < 1024 { // crypto/rsa would refuse to sign
			return nil, errors.New("an RSA key of less than 1024 bits is too short for TLS")
		}
		return key, nil
	case *ecdsa.PrivateKey:
		if key.Curve == elliptic.P224() {
			return nil, errors.New("TLS has no certificates on the curve P-224: use P-256")
		}
		return key, nil
	case ed25519.PrivateKey:
		return key, nil
	case nil:
		return nil, errors.New("not a PKCS#8, PKCS#1 or SEC1 private key, or damaged")
	default:
		return nil, errors.New("a key that cannot sign: TLS takes RSA, ECDSA and Ed25519")
	}
}

// anyKey tries every encoding, as PEM labels are often wrong. It returns nil if none fits.
func anyKey(der []byte) any {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return key
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key
	}
	return nil
}

// typedBlocks splits a file into PEM blocks, at least one. DER and bare base64 come as one block with
// the type that PEM would give it, empty if that is unknown.
func typedBlocks(data []byte) ([]*pem.Block, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")) // written by Windows editors; hides the first block
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return nil, errors.New("the file is empty")
	case bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")):
		return nil, errors.New("the file is UTF-16 text: save it as UTF-8 or ASCII")
	case bytes.Contains(data, []byte("-----BEGIN ")):
		return pemBlocks(data)
	}
	der := data
	if text, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(data))); err == nil {
		der = text
	}
	const sequence = 0x30 // every kind of file that we know starts with it
	if len(der) == 0 || der[0] != sequence {
		return nil, errors.New("neither PEM nor DER")
	}
	return []*pem.Block{{Type: blockType(der), Bytes: der}}, nil
}

func pemBlocks(data []byte) ([]*pem.Block, error) {
	var blocks []*pem.Block
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		blocks = append(blocks, block)
	}
	// pem.Decode skips what it cannot read: a chain cut in two would come back shorter.
	if begun := bytes.Count(data, []byte("-----BEGIN ")); begun != len(blocks) {
		return nil, fmt.Errorf("%d of %d PEM blocks can be read: the others are cut short, indented or lack a line break",
			len(blocks), begun)
	}
	return blocks, nil
}

// blockType tells which PEM label fits this DER; empty if none that we know.
func blockType(der []byte) string {
	if _, err := x509.ParseCertificates(der); err == nil {
		return "CERTIFICATE"
	}
	if anyKey(der) != nil {
		return "PRIVATE KEY"
	}
	if _, err := x509.ParseCertificateRequest(der); err == nil {
		return "CERTIFICATE REQUEST"
	}
	if _, err := x509.ParsePKIXPublicKey(der); err == nil {
		return "PUBLIC KEY"
	}
	if _, err := x509.ParseRevocationList(der); err == nil {
		return "X509 CRL"
	}
	var encrypted struct { // EncryptedPrivateKeyInfo (RFC 5958, section 3)
		Algorithm pkix.AlgorithmIdentifier
		Data      []byte
	}
	if _, err := asn1.Unmarshal(der, &encrypted); err == nil {
		return "ENCRYPTED PRIVATE KEY"
	}
	var contentInfo struct { // RFC 5652, section 3
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}
	if _, err := asn1.Unmarshal(der, &contentInfo); err == nil {
		return "PKCS7"
	}
	var pfx struct { // RFC 7292, section 4
		Version int
		Safe    struct{ Type asn1.ObjectIdentifier }
	}
	if _, err := asn1.Unmarshal(der, &pfx); err == nil && pfx.Version == 3 {
		return "PKCS12"
	}
	return ""
}

// describeBlock says what a block is, and what to do where there is something to do.
func describeBlock(label string) string {
	switch {
	case label == "CERTIFICATE" || label == "X509 CERTIFICATE":
		return "a certificate"
	case label == "PRIVATE KEY" || strings.HasSuffix(label, " PRIVATE KEY"):
		return "a private key"
	case label == "PUBLIC KEY" || strings.HasSuffix(label, " PUBLIC KEY"):
		return "a public key"
	case strings.HasSuffix(label, "CERTIFICATE REQUEST"):
		return "a certificate request (the CA makes the certificate from it)"
	case label == "TRUSTED CERTIFICATE":
		return "an OpenSSL trusted certificate (convert it with openssl x509)"
	case label == "X509 CRL":
		return "a revocation list"
	case label == "OCSP RESPONSE":
		return "an OCSP response"
	case label == "PKCS7" || label == "CMS":
		return "a PKCS#7 bundle (convert it with openssl pkcs7 -print_certs)"
	case label == "PKCS12":
		return "a PKCS#12 bundle (convert it with openssl pkcs12 -nodes)"
	case label == "EC PARAMETERS" || label == "DH PARAMETERS":
		return "parameters"
	default:
		return "something else"
	}
}
