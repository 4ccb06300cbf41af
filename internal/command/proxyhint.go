package command

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

	"raimon/tunnel"
)

const withCredentials = "proxy-auth=file:<path>, where the file has user:password in one line"

// proxyHint says what can be done about a proxy; empty: the proxy has no part in it.
func proxyHint(err *tunnel.ProxyError) string {
	if err.Connected {
		return behindProxyHint(err)
	}
	var (
		refusal   *tunnel.ProxyRefusal
		authority *tunnel.AuthorityError
	)
	switch {
	case errors.As(err, &refusal):
		return refusalHint(refusal, err.Credentials)
	case errors.As(err, &authority):
		return "the certificate of an https proxy has to be of a CA that this machine trusts: put its root among the system's, or use http:// if the proxy speaks that"
	case errors.Is(err, tunnel.ErrTimeout):
		return "the proxy did not answer in time: is this its address and port, and is it of another kind (http, https, socks5)? (timeout= allows more, proxy=off goes without)"
	case errors.Is(err, errRefused):
		return "nothing listens at the proxy's address: is it running, and on that port? (proxy=off goes without)"
	case errors.As(err, &tls.RecordHeaderError{}):
		return "the proxy does not speak TLS there: write http:// in place of https://"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errReset):
		return "the proxy hangs up: does it let this machine and the edge's port pass, and is it of another kind (http, https, socks5)?"
	}
	return socksHint(err)
}

// socksHint goes by the texts of golang.org/x/net/internal/socks, which has no errors of its own.
func socksHint(err *tunnel.ProxyError) string {
	switch text := err.Error(); {
	case strings.Contains(text, "the answer is not HTTP/1"), strings.Contains(text, "unexpected protocol version"):
		return "the proxy is of another kind: http, https or socks5?"
	case strings.Contains(text, "no acceptable authentication methods") && !err.Credentials:
		return "the proxy asks for a user and a password: " + withCredentials
	case strings.Contains(text, "no acceptable authentication methods"):
		return "the proxy takes no password, or only another kind of login, such as GSSAPI, which is not spoken here"
	case strings.Contains(text, "username/password authentication failed"):
		return wrongCredentials
	case strings.Contains(text, "invalid username/password"):
		return "SOCKS5 takes users and passwords of 1 to 255 bytes"
	case strings.Contains(text, "not allowed by ruleset"):
		return notAllowed
	case strings.Contains(text, "the proxy says: "):
		return notReached
	}
	return ""
}

const (
	wrongCredentials = "the proxy does not take this user and password, of proxy-auth= or in the proxy's URL: are they right, and still valid?"
	notAllowed       = "the proxy does not let this through: many allow port 443 only, or names that somebody has listed; ask who runs it"
	notReached       = "the proxy could not reach the edge: is the edge's address right, and is it known and reachable from there?"
)

func refusalHint(err *tunnel.ProxyRefusal, credentials bool) string {
	basic := slices.ContainsFunc(err.Schemes, func(s string) bool { return strings.EqualFold(s, "Basic") })
	switch {
	case err.Status == http.StatusProxyAuthRequired && len(err.Schemes) > 0 && !basic:
		return "of these none is spoken here, only Basic: run cntlm or px, which speak NTLM and Negotiate, on this machine, and name it with proxy=http://127.0.0.1:3128"
	case credentials && (err.Status == http.StatusProxyAuthRequired || err.Status == http.StatusUnauthorized): // tinyproxy
		return wrongCredentials
	case err.Status == http.StatusProxyAuthRequired:
		return "the proxy asks for a user and a password: " + withCredentials
	case err.Status == http.StatusUnauthorized, err.Status == http.StatusNetworkAuthenticationRequired, err.Status/100 == 3:
		return "the network wants a login first: open any page in a browser"
	case err.Status == http.StatusForbidden, err.Status == http.StatusUnavailableForLegalReasons:
		return notAllowed
	case err.Status == http.StatusBadRequest, err.Status == http.StatusNotFound, err.Status == http.StatusMethodNotAllowed, err.Status == http.StatusNotImplemented:
		return "that is no proxy, or it does not know CONNECT: check the address and port of the proxy"
	case err.Status >= 500:
		return notReached
	}
	return ""
}

// behindProxyHint is about what a proxy did that had said to be connected.
func behindProxyHint(err *tunnel.ProxyError) string {
	var upgrade *tunnel.UpgradeError
	switch text := err.Error(); {
	case errors.As(err, &upgrade):
		return ""
	case errors.Is(err, tunnel.ErrTimeout):
		return "the proxy said that it was connected, and then nothing came: can it reach the edge, and does it let more than web pages through? (timeout= allows more)"
	case errors.As(err, &tls.RecordHeaderError{}), strings.Contains(text, "does not answer in HTTP"):
		return "if the edge speaks " + spoken(err) + " on this port, the proxy has answered in its place, perhaps with a page to log in: open the edge's address in a browser"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errReset):
		return "the proxy said that it was connected, and then hung up: it cannot reach the edge, or does not let this through; proxy=off goes without"
	}
	return ""
}

func spoken(err error) string {
	if errors.As(err, &tls.RecordHeaderError{}) {
		return "TLS"
	}
	return "WebSocket without TLS"
}
