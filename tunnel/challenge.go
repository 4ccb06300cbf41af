package tunnel

import (
	"crypto/tls"
	"errors"
)

// ChallengeProtocol is what a CA offers, and nothing beside it, to find out who holds a name (TLS-ALPN-01,
// RFC 8737, section 3).
const ChallengeProtocol = "acme-tls/1"

// ErrChallenge ends the connection of a CA that has what it wanted.
var ErrChallenge = errors.New("an ACME challenge was answered")

// IsChallenge tells whether hello is that of a CA which looks for the answer to TLS-ALPN-01.
func IsChallenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == ChallengeProtocol
}

// ServeChallenges makes config answer TLS-ALPN-01 probes with what its GetCertificate has for them.
// TLS.Server ends such a connection after the handshake. Probes get no tickets and are not asked for
// a client certificate; to all others nothing changes.
func ServeChallenges(config *tls.Config) {
	probes := config.Clone()
	probes.NextProtos = []string{ChallengeProtocol}
	probes.SessionTicketsDisabled = true
	probes.ClientAuth = tls.NoClientCert
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if IsChallenge(hello) {
			return probes, nil
		}
		return nil, nil
	}
}
