package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"

	"raimon/tunnel"
)

// The reasons that metrics tell apart are few and fixed: what strangers do must not make more of them.

// limitReason names the limit that err is about.
func limitReason(err error) string {
	switch {
	case errors.Is(err, ErrFull):
		return "connections"
	case errors.Is(err, ErrPerAddress):
		return "per_address"
	case errors.Is(err, ErrRate):
		return "rate"
	case errors.Is(err, ErrRouteFull):
		return "route"
	}
	return "other"
}

// isLimit tells whether err is one of those that are counted as refusals.
func isLimit(err error) bool { return limitReason(err) != "other" }

// reason says in one word why a connection became no tunnel, for the log: as metrics say it.
func reason(info *tunnel.Info, err error) string {
	v, ok := info.Route.(*visit)
	switch {
	case errors.Is(err, tunnel.ErrNoTunnel):
		return "visit"
	case errors.Is(err, tunnel.ErrChallenge):
		return "challenge"
	case isLimit(err):
		return limitReason(err)
	case !ok:
		return tunnel.EndReason(err)
	}
	return failureReason(v.stage, err)
}

// targetReason says why a target could not be reached.
func targetReason(err error) string {
	var dns *net.DNSError
	var target *tunnel.TargetError
	switch {
	case errors.As(err, &target):
		return target.Reason
	case errors.As(err, &dns):
		return "name"
	case tunnel.IsTimeout(err):
		return "timeout"
	case tunnel.IsRefused(err):
		return "refused"
	case errors.Is(err, tunnel.ErrDrained), errors.Is(err, context.Canceled):
		return "shutdown"
	}
	return "other"
}

// failureReason says why a connection became no tunnel; empty where that is no failure.
func failureReason(reached stage, err error) string {
	switch {
	case errors.Is(err, tunnel.ErrNoTunnel), errors.Is(err, tunnel.ErrNotTaken), errors.Is(err, tunnel.ErrChallenge), isLimit(err):
		return ""
	case errors.Is(err, ErrAccess):
		return "access"
	case errors.Is(err, errUnknownName):
		return "unknown_name"
	case errors.Is(err, tunnel.ErrDrained), errors.Is(err, context.Canceled):
		return "shutdown"
	case tunnel.IsTimeout(err):
		return "timeout"
	case reached == arriving:
		return "proxy_header"
	}
	if reached == inHandshake {
		if reason := handshakeReason(err); reason != "" {
			return reason
		}
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "eof"
	case tunnel.IsReset(err):
		return "reset"
	case reached == inHandshake:
		return "tls"
	}
	return "other"
}

// handshakeReason says what two did not agree on in TLS; empty: it was something else. Crypto/tls has no
// types for most of its errors, so it goes by what they say.
func handshakeReason(err error) string {
	var (
		certificate certificateError
		record      tls.RecordHeaderError
		client      *tls.CertificateVerificationError
		op          *net.OpError
	)
	switch {
	case errors.As(err, &certificate):
		return "certificate"
	case errors.As(err, &record):
		return "not_tls"
	case errors.As(err, &client):
		return "client_certificate"
	case errors.As(err, &op) && op.Op == "remote error":
		return alertReason(op.Err)
	}
	text := err.Error()
	for part, reason := range map[string]string{
		"tls: no certificates configured":              "unknown_name",
		"tls: client offered only unsupported version": "tls_version",
		"tls: no cipher suite supported by both":       "tls_cipher",
		"tls: client didn't provide a certificate":     "client_certificate",
	} {
		if strings.Contains(text, part) {
			return reason
		}
	}
	return ""
}

// alerts are those that clients send in handshakes (RFC 8446, section 6.2), as crypto/tls spells them.
var alerts = []string{
	"bad certificate", "unsupported certificate", "revoked certificate", "expired certificate", "unknown certificate",
	"unknown certificate authority", "handshake failure", "protocol version not supported", "illegal parameter",
	"error decrypting message", "error decoding message", "bad record MAC", "unexpected message", "access denied",
	"internal error", "user canceled", "unrecognized name", "bad certificate status response", "missing extension", "unsupported extension",
}

func alertReason(alert error) string {
	name := strings.TrimPrefix(alert.Error(), "tls: ")
	if !slices.Contains(alerts, name) {
		return "alert_other"
	}
	return "alert_" + strings.ReplaceAll(strings.ToLower(name), " ", "_")
}
