package edge

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"raimon/tunnel"
)

// ErrAccess says that a client may not use a route.
var ErrAccess = errors.New("the client may not use this route")

// Access says who may use a route: whoever fulfils all that is set. The zero value lets everybody in.
type Access struct {
	// From are the networks that clients have to come from.
	From []netip.Prefix
	// Tokens are those of which a client has to show one, in the header "Authorization: Bearer <token>" of its
	// upgrade (RFC 6750, section 2.1). Nil asks for none. Where there is no HTTP nobody can show one.
	Tokens *Tokens
	// Clients are those whose certificates may in, of all that the site's Clients lets through. Nil asks for none.
	Clients []ClientName
}

// allows tells whether the client may use the route, and in whose name: that of its token, else that of its
// certificate. R is nil where there is no HTTP.
//
// All is looked at whatever comes of it, so that the time it takes tells nothing.
func (a *Access) allows(r *http.Request, info *tunnel.Info) (user string, ok bool) {
	return a.admits(shownBy(r, info), info)
}

// shown is what a client has shown to be let in.
type shown struct {
	token [sha256.Size]byte // the hash; of nothing, which is nobody's, where there was none
	state *tls.ConnectionState
}

func shownBy(r *http.Request, info *tunnel.Info) shown {
	return shown{sha256.Sum256([]byte(bearerToken(r))), info.TLS}
}

// admits is allows for what the client has shown before.
func (a *Access) admits(s shown, info *tunnel.Info) (user string, ok bool) {
	ok = a.From == nil || a.isFrom(addressOf(info.Client))
	if a.Tokens != nil {
		name, known := a.Tokens.userOf(s.token)
		user, ok = name, ok && known
	}
	cert := verifiedCertificate(s.state)
	if a.Clients != nil {
		ok = ok && cert != nil && slices.ContainsFunc(a.Clients, func(c ClientName) bool { return c.matches(cert) })
	}
	switch {
	case !ok:
		return "", false
	case user == "" && cert != nil:
		user = nameOf(cert)
	}
	return user, true
}

func (a *Access) isFrom(ip netip.Addr) bool {
	return slices.ContainsFunc(a.From, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// bearerToken is what r shows; empty: nothing.
func bearerToken(r *http.Request) string {
	if r == nil || len(r.Header["Authorization"]) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(r.Header["Authorization"][0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.Trim(token, " ")
}

// verifiedCertificate is the client's; nil: it has shown none.
func verifiedCertificate(state *tls.ConnectionState) *x509.Certificate {
	if state == nil || len(state.VerifiedChains) == 0 || len(state.PeerCertificates) == 0 {
		return nil
	}
	return state.PeerCertificates[0]
}

// nameOf is what logs call the holder of cert.
func nameOf(cert *x509.Certificate) string {
	switch {
	case cert.Subject.CommonName != "":
		return cert.Subject.CommonName
	case len(cert.DNSNames) > 0:
		return cert.DNSNames[0]
	case len(cert.URIs) > 0:
		return cert.URIs[0].String()
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "SPKI:" + base64.StdEncoding.EncodeToString(sum[:])
}

// ClientName is what a client certificate has to have. The zero value is no certificate's; ParseClientName makes others.
type ClientName struct {
	kind  string // as users write it, without the colon
	value string // of SPKI the 32 bytes
}

const clientNameHint = `write "CN:alice", "DNS:laptop.example.com", "URI:spiffe://example.com/alice", "SPKI:" and the SHA-256 of the public key in base64, or "*" for whoever has a certificate`

// ParseClientName reads "CN:" and the common name of a certificate's subject, "DNS:" or "URI:" and one of its subject
// alternative names, "SPKI:" and the SHA-256 of its SubjectPublicKeyInfo in base64 (RFC 7469, section 2.4), or "*", which every
// certificate has. Names are compared to the letter, those of the DNS in any case. Errors have a Hint.
func ParseClientName(s string) (ClientName, error) {
	wrong := func(problem string) (ClientName, error) {
		return ClientName{}, &hintedError{fmt.Errorf("client name %q: %s", s, problem), clientNameHint}
	}
	if s == "*" {
		return ClientName{kind: s}, nil
	}
	kind, value, found := strings.Cut(s, ":")
	kind = strings.ToUpper(kind)
	switch {
	case !found || !slices.Contains([]string{"CN", "DNS", "URI", "SPKI"}, kind):
		return wrong("it does not begin with CN:, DNS:, URI: or SPKI:")
	case value == "" || strings.TrimSpace(value) != value:
		return wrong("nothing, or a blank, stands behind the colon")
	}
	switch kind {
	case "DNS":
		value = strings.ToLower(strings.TrimSuffix(value, "."))
	case "URI":
		u, err := url.Parse(value)
		if err != nil || u.Scheme == "" {
			return wrong("it is no URI")
		}
		value = u.String()
	case "SPKI":
		hash := decodeHash(value)
		if hash == nil {
			return wrong("it is not the 32 bytes of a SHA-256 in base64")
		}
		value = string(hash)
	}
	return ClientName{kind, value}, nil
}

func (c ClientName) matches(cert *x509.Certificate) bool {
	switch c.kind {
	case "*":
		return true
	case "CN":
		return cert.Subject.CommonName == c.value
	case "DNS":
		return slices.ContainsFunc(cert.DNSNames, func(name string) bool {
			return strings.EqualFold(strings.TrimSuffix(name, "."), c.value)
		})
	case "URI":
		return slices.ContainsFunc(cert.URIs, func(u *url.URL) bool { return u.String() == c.value })
	case "SPKI":
		sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
		return bytes.Equal(sum[:], []byte(c.value))
	}
	return false
}
