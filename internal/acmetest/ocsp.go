package acmetest

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"
)

const (
	ocspResource        = "ocsp"
	defaultOCSPValidity = time.Hour
)

// OCSP is the responder for the CA's certificates (RFC 6960). It signs with the key that issued them, and
// answers what the CA knows: revokeCert over ACME, or CA.Revoke, makes a certificate revoked.
type OCSP struct {
	// URL is in every certificate that the CA issues.
	URL string

	// Faults are what happens to requests; the one resource has no name.
	*Faults

	server *server
	log    *log.Logger

	mu       sync.Mutex
	pebble   *pebble
	key      crypto.Signer
	issuer   *x509.Certificate
	validity time.Duration
	ahead    time.Duration
}

// startOCSP starts a responder that serves nothing before use, for the URL must be known first.
func startOCSP(logger *log.Logger) (*OCSP, error) {
	o := &OCSP{Faults: newFaults(), log: logger, validity: defaultOCSPValidity}
	var err error
	if o.server, err = serve("", http.HandlerFunc(o.respond), nil, logger); err != nil {
		return nil, err
	}
	o.URL = "http://" + o.server.address
	return o, nil
}

func (o *OCSP) use(p *pebble) error {
	key := p.authority.GetIntermediateKey(0)
	if key == nil {
		return errors.New("OCSP: Pebble does not lend out its key")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pebble, o.key, o.issuer = p, key, p.authority.GetIntermediateCert(0).Cert
	return nil
}

// SetValidity sets how long an answer is good from the moment it is made, in whole seconds. It is an hour until
// then.
func (o *OCSP) SetValidity(d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.validity = d
}

// SetAhead sets the responder's clock ahead of ours, or behind it if d is negative.
func (o *OCSP) SetAhead(d time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ahead = d
}

// Down makes connections refused until Up.
func (o *OCSP) Down() error { return o.server.down() }

// Up ends Down. It returns an error if another program took the port meanwhile.
func (o *OCSP) Up() error { return o.server.up() }

// TryLater is a Fault of OCSP: the responder says that it cannot answer now (RFC 6960, section 2.3).
func TryLater() Fault {
	return func(w http.ResponseWriter, _ *http.Request) { writeOCSP(w, ocsp.TryLaterErrorResponse) }
}

func (o *OCSP) respond(w http.ResponseWriter, r *http.Request) {
	o.Faults.serve(ocspResource, w, r, func(w *recorder, r *http.Request) {
		request, err := readOCSP(r)
		if err != nil {
			o.log.Printf("OCSP: %v", err)
			writeOCSP(w, ocsp.MalformedRequestErrorResponse)
			return
		}
		answer, err := o.answer(request)
		if err != nil {
			o.log.Printf("OCSP: %v", err)
			answer = ocsp.InternalErrorErrorResponse
		}
		writeOCSP(w, answer)
	})
}

func writeOCSP(w http.ResponseWriter, answer []byte) {
	w.Header().Set("Content-Type", "application/ocsp-response")
	w.Write(answer)
}

// readOCSP reads a request from a POST's body or a GET's path (RFC 6960, appendix A.1).
func readOCSP(r *http.Request) (*ocsp.Request, error) {
	var der []byte
	var err error
	if r.Method == http.MethodPost {
		der, err = io.ReadAll(r.Body)
	} else {
		var text string
		if text, err = url.PathUnescape(strings.TrimPrefix(r.URL.EscapedPath(), "/")); err == nil {
			der, err = base64.StdEncoding.DecodeString(text)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	return ocsp.ParseRequest(der)
}

func (o *OCSP) answer(request *ocsp.Request) ([]byte, error) {
	o.mu.Lock()
	store, key, issuer, validity, ahead := o.pebble.store, o.key, o.issuer, o.validity, o.ahead
	o.mu.Unlock()

	ours, err := isIssuer(request, issuer)
	if err != nil {
		return nil, err
	}
	if !ours {
		return ocsp.UnauthorizedErrorResponse, nil
	}
	now := time.Now().Add(ahead).Truncate(time.Second)
	answer := ocsp.Response{
		SerialNumber: request.SerialNumber,
		Status:       ocsp.Good,
		ThisUpdate:   now,
		NextUpdate:   now.Add(validity),
		IssuerHash:   request.HashAlgorithm,
	}
	if revoked := store.GetRevokedCertificateBySerial(request.SerialNumber); revoked != nil {
		answer.Status, answer.RevokedAt = ocsp.Revoked, revoked.RevokedAt
		if revoked.Reason != nil {
			answer.RevocationReason = int(*revoked.Reason)
		}
	} else if store.GetCertificateBySerial(request.SerialNumber) == nil {
		answer.Status = ocsp.Unknown
	}
	return ocsp.CreateResponse(issuer, issuer, answer, key)
}

// isIssuer tells whether a request is about a certificate of issuer (RFC 6960, section 4.1.1).
func isIssuer(request *ocsp.Request, issuer *x509.Certificate) (bool, error) {
	if !request.HashAlgorithm.Available() {
		return false, fmt.Errorf("hash algorithm %v is not available", request.HashAlgorithm)
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}
	if _, err := asn1.Unmarshal(issuer.RawSubjectPublicKeyInfo, &info); err != nil {
		return false, err
	}
	hash := func(data []byte) []byte {
		h := request.HashAlgorithm.New()
		h.Write(data)
		return h.Sum(nil)
	}
	return bytes.Equal(request.IssuerNameHash, hash(issuer.RawSubject)) &&
		bytes.Equal(request.IssuerKeyHash, hash(info.PublicKey.RightAlign())), nil
}
