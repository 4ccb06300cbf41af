package acmetest

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/letsencrypt/pebble/v2/core"
)

// The resources of a CA, named as in its directory (RFC 8555, section 9.7.5; RFC 9773, section 4.1) where
// they are in it.
const (
	Directory     = "directory"
	NewNonce      = "newNonce"
	NewAccount    = "newAccount"
	NewOrder      = "newOrder"
	RevokeCert    = "revokeCert"
	KeyChange     = "keyChange"
	RenewalInfo   = "renewalInfo"
	Account       = "account"
	Orders        = "orders"
	Order         = "order"
	Authorization = "authorization"
	Challenge     = "challenge"
	Finalize      = "finalize"
	Certificate   = "certificate"
)

const (
	directoryPath = "/dir"
	finalizePath  = "/finalize-order/"
)

// resourceOf tells what a path of Pebble's stands for; "" if nothing.
func resourceOf(path string) string {
	for _, p := range [...]struct{ prefix, resource string }{
		{directoryPath, Directory},
		{"/nonce-plz", NewNonce},
		{"/sign-me-up", NewAccount},
		{"/order-plz", NewOrder},
		{"/revoke-cert", RevokeCert},
		{"/rollover-account-key", KeyChange},
		{"/draft-ietf-acme-ari-03/renewalInfo", RenewalInfo},
		{"/my-account/", Account},
		{"/list-orderz/", Orders},
		{"/my-order/", Order},
		{"/authZ/", Authorization},
		{"/chalZ/", Challenge},
		{finalizePath, Finalize},
		{"/certZ/", Certificate},
	} {
		if strings.HasPrefix(path, p.prefix) {
			return p.resource
		}
	}
	return ""
}

// front stands before Pebble: it counts, fails on demand, and evens out what would make a test depend on
// chance.
type front struct {
	pebble *pebble
	faults *Faults
	config Config

	renewal sync.RWMutex // Pebble reads a certificate's renewal information without a lock

	mu       sync.Mutex
	accounts []string // identifiers
	issued   []*x509.Certificate
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	resource := resourceOf(r.URL.Path)
	f.faults.serve(resource, w, r, func(w *recorder, r *http.Request) {
		switch resource {
		case NewAccount:
			f.newAccount(w, r)
		case Finalize:
			f.finalize(w, r)
		case RevokeCert:
			f.pebble.acme.ServeHTTP(w, r)
			f.renewRevoked()
		case RenewalInfo:
			f.renewalInfo(w, r)
		default:
			f.pebble.acme.ServeHTTP(w, r)
		}
	})
}

func (f *front) newAccount(w *recorder, r *http.Request) {
	f.pebble.acme.ServeHTTP(w, r)
	if w.status == http.StatusCreated {
		location := w.Header().Get("Location")
		f.mu.Lock()
		defer f.mu.Unlock()
		f.accounts = append(f.accounts, location[strings.LastIndexByte(location, '/')+1:])
	}
}

// issueTimeout is many times what Pebble needs to issue a certificate.
const issueTimeout = 10 * time.Second

// finalize answers after the certificate was issued, though the answer still says "processing": by the time
// that the client can know of it, its renewal window is set and Issued has it.
func (f *front) finalize(w *recorder, r *http.Request) {
	f.pebble.acme.ServeHTTP(w, r)
	if w.status != http.StatusOK {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), issueTimeout)
	defer cancel()
	order := f.pebble.store.GetOrderByID(strings.TrimPrefix(r.URL.Path, finalizePath))
	certificate := f.pebble.waitForCertificate(ctx, order)
	if certificate == nil {
		return // a validity that Pebble could not make; it never tells
	}
	f.knowByDER(order)
	f.useUp(order)
	f.suggestRenewal(certificate.Cert)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.issued = append(f.issued, certificate.Cert)
}

// knowByDER lets Pebble find the order of a certificate that another replaces: it looks for the serial number
// in hexadecimal as it is in DER, with a zero byte before a first bit of one, and keeps it without. That is
// one certificate of 256.
func (f *front) knowByDER(order *core.Order) {
	order.RLock()
	known := order.CertificateObject
	order.RUnlock()
	if serial := known.Cert.SerialNumber; serial.BitLen()%8 != 0 {
		return
	}
	asDER := *known
	asDER.ID = "00" + known.ID
	use := func(c *core.Certificate) {
		order.Lock()
		defer order.Unlock()
		order.CertificateObject = c
	}
	use(&asDER)
	defer use(known)
	if err := f.pebble.store.AddOrderByIssuedSerial(order); err != nil {
		panic(err) // the order has a certificate
	}
}

// useUp hides the order's authorizations from later orders: Pebble, told to reuse none, reuses one in a
// hundred.
func (f *front) useUp(order *core.Order) {
	if f.config.ReuseAuthorizations > 0 {
		return
	}
	order.RLock()
	authorizations := slices.Clone(order.AuthorizationObjects)
	order.RUnlock()
	for _, a := range authorizations {
		a.Lock()
		a.Identifier.Value = "used up: " + a.Identifier.Value
		a.Unlock()
	}
}

func (f *front) suggestRenewal(certificate *x509.Certificate) {
	window := f.config.RenewalWindow
	if window == nil {
		window = twoThirds
	}
	start, end := window(certificate.NotBefore, certificate.NotAfter)
	if err := f.setRenewalInfo(certificate, renewalInfo(start, end)); err != nil {
		panic(err) // Pebble has just issued it
	}
}

// minWindow is what every client takes for a window: acmez, and with it certmagic, refuses less than two
// seconds, such as the one second that Pebble suggests for revoked certificates.
const minWindow = 3 * time.Second

// twoThirds is a fiftieth of the lifetime around two thirds of it.
func twoThirds(notBefore, notAfter time.Time) (start, end time.Time) {
	lifetime := notAfter.Sub(notBefore)
	width := max(lifetime/50, minWindow)
	start = notBefore.Add(lifetime*2/3 - width/2)
	return start, start.Add(width)
}

// renewalInfo is the body of an answer (RFC 9773, section 4.2).
func renewalInfo(start, end time.Time) string {
	return fmt.Sprintf(`{"suggestedWindow": {"start": %q, "end": %q}}`,
		start.UTC().Format(time.RFC3339Nano), end.UTC().Format(time.RFC3339Nano))
}

func (f *front) setRenewalInfo(certificate *x509.Certificate, body string) error {
	f.renewal.Lock()
	defer f.renewal.Unlock()
	return f.pebble.store.SetARIResponse(certificate.SerialNumber, body)
}

func (f *front) renewalInfo(w *recorder, r *http.Request) {
	f.renewal.RLock()
	defer f.renewal.RUnlock()
	w.change = func(status int, header http.Header) {
		if status == http.StatusOK {
			setRetryAfter(header, f.config.RenewalRetryAfter)
		}
	}
	f.pebble.acme.ServeHTTP(w, r)
}

// renewRevoked suggests that revoked certificates be renewed now.
func (f *front) renewRevoked() {
	now := time.Now()
	for _, c := range f.certificates() {
		if f.pebble.store.GetRevokedCertificateBySerial(c.SerialNumber) == nil {
			continue
		}
		if err := f.setRenewalInfo(c, renewalInfo(now.Add(-time.Hour), now.Add(-time.Minute))); err != nil {
			panic(err) // Pebble forgets no certificate
		}
	}
}

func (f *front) certificates() []*x509.Certificate {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.issued)
}
