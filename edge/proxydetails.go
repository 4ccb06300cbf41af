package edge

import (
	"crypto/tls"
	"strings"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"

	"raimon/tunnel"
)

// maxProxyDetail bounds what comes from clients and goes into a PROXY header: server names have at most 253 bytes, and
// common names 64 characters (RFC 5280, appendix A.1). What is longer is left out.
const maxProxyDetail = 256

// proxyDetails are what a PROXY header of version 2 says beside the addresses: server name, ALPN and TLS.
func proxyDetails(info *tunnel.Info) ([]proxyproto.TLV, error) {
	var all []proxyproto.TLV
	all = appendDetail(all, proxyproto.PP2_TYPE_AUTHORITY, info.ServerName)
	state := info.TLS
	if state == nil {
		return all, nil
	}
	all = appendDetail(all, proxyproto.PP2_TYPE_ALPN, state.NegotiatedProtocol)
	ssl, err := tlsDetails(state).Marshal()
	return append(all, ssl), err
}

func tlsDetails(state *tls.ConnectionState) tlvparse.PP2SSL {
	ssl := tlvparse.PP2SSL{Client: tlvparse.PP2_BITFIELD_CLIENT_SSL, Verify: 1}
	ssl.TLV = appendDetail(ssl.TLV, proxyproto.PP2_SUBTYPE_SSL_VERSION, strings.Replace(tls.VersionName(state.Version), " ", "v", 1))
	ssl.TLV = appendDetail(ssl.TLV, proxyproto.PP2_SUBTYPE_SSL_CIPHER, cipherName(state.CipherSuite))
	if len(state.PeerCertificates) == 0 {
		return ssl
	}
	ssl.Client |= tlvparse.PP2_BITFIELD_CLIENT_CERT_SESS
	if !state.DidResume {
		ssl.Client |= tlvparse.PP2_BITFIELD_CLIENT_CERT_CONN
	}
	if len(state.VerifiedChains) > 0 {
		ssl.Verify = 0
	}
	ssl.TLV = appendDetail(ssl.TLV, proxyproto.PP2_SUBTYPE_SSL_CN, state.PeerCertificates[0].Subject.CommonName)
	return ssl
}

func appendDetail(all []proxyproto.TLV, kind proxyproto.PP2Type, value string) []proxyproto.TLV {
	if value == "" || len(value) > maxProxyDetail {
		return all
	}
	return append(all, proxyproto.TLV{Type: kind, Value: []byte(value)})
}

// opensslNames turns what TLS 1.2 calls its suites into what OpenSSL does.
var opensslNames = strings.NewReplacer("CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305", "3DES_EDE_CBC", "DES-CBC3",
	"_WITH_", "-", "AES_128", "AES128", "AES_256", "AES256", "_CBC", "", "_", "-")

// cipherName is the name of a suite as OpenSSL has it, which is what targets know; the specification of the header has
// only an example.
func cipherName(suite uint16) string {
	name := tls.CipherSuiteName(suite)
	if !strings.Contains(name, "_WITH_") { // TLS 1.3, where all agree
		return name
	}
	return opensslNames.Replace(strings.TrimPrefix(strings.TrimPrefix(name, "TLS_"), "RSA_WITH_"))
}
