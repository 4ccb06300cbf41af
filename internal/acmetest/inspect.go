package acmetest

import (
	"crypto/x509"
	"fmt"
	"time"

	"github.com/letsencrypt/pebble/v2/core"
)

// AccountInfo is what the CA knows of an account.
type AccountInfo struct {
	ID      string
	Contact []string // URLs, such as mailto:someone@example.com
	Status  string   // "valid" or "deactivated"
	Bound   bool     // to an external account
}

// Accounts returns the accounts in the order of their making.
func (ca *CA) Accounts() []AccountInfo {
	ca.front.mu.Lock()
	defer ca.front.mu.Unlock()
	var accounts []AccountInfo
	for _, id := range ca.front.accounts {
		a := ca.pebble.store.GetAccountByID(id)
		accounts = append(accounts, AccountInfo{
			ID: id, Contact: a.Contact, Status: a.Status, Bound: a.ExternalAccountBinding != nil,
		})
	}
	return accounts
}

// Issued returns the certificates in the order of their issue.
func (ca *CA) Issued() []*x509.Certificate { return ca.front.certificates() }

// Issuer returns the certificate that signs what the CA issues; IssuingRoot signed it.
func (ca *CA) Issuer() *x509.Certificate { return ca.pebble.authority.GetIntermediateCert(0).Cert }

// Revoke revokes a certificate, as revokeCert does, for a reason of RFC 5280, section 5.3.1.
func (ca *CA) Revoke(certificate *x509.Certificate, reason uint) error {
	found := ca.pebble.store.GetCertificateBySerial(certificate.SerialNumber)
	if found == nil {
		return fmt.Errorf("acmetest: revoke: no certificate %x was issued here", certificate.SerialNumber)
	}
	ca.pebble.store.RevokeCertificate(&core.RevokedCertificate{
		Certificate: found, RevokedAt: time.Now(), Reason: &reason,
	})
	ca.front.renewRevoked()
	return nil
}

// Revoked tells whether certificate was revoked, over ACME or by Revoke.
func (ca *CA) Revoked(certificate *x509.Certificate) bool {
	return ca.pebble.store.GetRevokedCertificateBySerial(certificate.SerialNumber) != nil
}

// SuggestRenewal sets the window in which to renew certificate. A window in the past means now.
func (ca *CA) SuggestRenewal(certificate *x509.Certificate, start, end time.Time) error {
	return ca.SetRenewalInfo(certificate, renewalInfo(start, end))
}

// SetRenewalInfo sets the body of the answer to a question for certificate's renewal information; it may
// be anything. Empty means Pebble's own.
func (ca *CA) SetRenewalInfo(certificate *x509.Certificate, body string) error {
	if err := ca.front.setRenewalInfo(certificate, body); err != nil {
		return fmt.Errorf("acmetest: set renewal information: %w", err)
	}
	return nil
}
