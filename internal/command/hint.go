package command

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"

	"raimon/internal/options"
	"raimon/internal/text"
	"raimon/tunnel"
)

// Hint says what a user can do about err; empty if there is nothing to say.
func Hint(err error) string {
	if hint := hintOf(err); hint != "" {
		return hint
	}
	var option *options.Error
	if errors.As(err, &option) {
		return option.Hint
	}
	var proxy *tunnel.ProxyError
	if errors.As(err, &proxy) {
		if hint := proxyHint(proxy); hint != "" {
			return hint
		}
	}
	if hint := tlsHint(err); hint != "" {
		return hint
	}
	return networkHint(err)
}

// hintOf asks the error itself.
func hintOf(err error) string {
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		return h.Hint()
	}
	return ""
}

func tlsHint(err error) string {
	var (
		authority *tunnel.AuthorityError
		unknown   x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		upgrade   *tunnel.UpgradeError
		pin       *tunnel.PinError
		closed    *tunnel.CloseError
		target    *tunnel.TargetError
	)
	switch {
	case errors.As(err, &pin):
		return "something on the way may show a key of its own, and read along: use pin=" + pin.Got + " only if the edge's log has the same"
	case errors.As(err, &authority):
		return authorityHint(authority)
	case errors.As(err, &x509.SystemRootsError{}):
		return "this machine has no list of public CAs: install ca-certificates, or name the edge's CA with ca=<file>"
	case errors.As(err, &unknown):
		return "name the edge's CA with ca=<file>, or its key with pin=<the pin that raimons logs at start>"
	case errors.As(err, &hostname):
		return "sni= must be a name in the edge's certificate" + someName(hostname.Certificate)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the edge's certificate has expired, or this machine's clock is wrong"
	case errors.Is(err, tunnel.ErrNoAnswer):
		return noPlainWebSocket
	case errors.As(err, &upgrade):
		return upgradeHint(upgrade)
	case errors.Is(err, tunnel.ErrToken):
		return "raimons token prints one; token=file:/path and token=command:program have to give it and nothing else"
	case errors.Is(err, tunnel.ErrNoTargets):
		return "socks needs a raimons that is no older than this raimonc, and a web server before it, if there is one, that passes its header Raimon on"
	case errors.As(err, &target) && target.Err == nil, errors.As(err, &closed) && closed.Code == 1014:
		return targetHint(tunnel.Reason(err))
	}
	switch text := err.Error(); {
	case strings.Contains(text, "does not answer in HTTP"):
		return "no WebSocket is spoken there: is ws missing on the other side, or tls on one of them? Where alpn= has h2, leave that away"
	case strings.Contains(text, "first record does not look like a TLS handshake"):
		return "the other side does not speak TLS here: is tls missing in its options, or is this another port?"
	case strings.Contains(text, "remote error: tls: unrecognized name"):
		return "the edge has no certificate for this name: sni= must be one that it was given with acme=, or that its certificate file has"
	case strings.Contains(text, "remote error: tls: internal error"):
		return "the edge could not show a certificate, perhaps because it has not obtained one yet: its log says why"
	case strings.Contains(text, "remote error: tls: certificate required"):
		return "the edge asks for a client certificate: add client-cert= and client-key="
	case strings.Contains(text, "remote error: tls: bad certificate"), strings.Contains(text, "remote error: tls: unknown certificate authority"),
		strings.Contains(text, "remote error: tls: expired certificate"):
		return "the edge refuses the certificate of client-cert=: it is revoked, has expired, or is from a CA that the edge does not trust"
	case strings.Contains(text, "local error: tls: error decoding message"):
		// crypto/tls always asks for a staple and takes no empty one (RFC 8446, section 4.4.2.1).
		return "kaminaris without ocsp= sends an empty OCSP staple, which is not valid TLS: give it ocsp= and any file that is not empty, or run raimons there"
	}
	return ""
}

// someName is one that c is for, if there is any.
func someName(c *x509.Certificate) string {
	if c == nil || len(c.DNSNames) == 0 {
		return ""
	}
	return ", such as " + text.Shorten(text.Printable(c.DNSNames[0]), 100)
}

// targetHint is about an edge that does not give its client a target, for a reason of package tunnel.
func targetHint(reason string) string {
	switch reason {
	case tunnel.ReasonRefused:
		return "the edge itself is fine: is the program running that it forwards to, and on that port? The edge's log has the address"
	case tunnel.ReasonUnreachable, tunnel.ReasonTimeout, tunnel.ReasonName:
		return "the edge itself is fine: is its target spelt right, and can it be reached from there? The edge's log has the address"
	case tunnel.ReasonForbidden:
		return "the route's targets, in the config of the edge, do not have it: its log says which rule would"
	case tunnel.ReasonBusy:
		return "the route has as many tunnels as its max lets it: try again in a while"
	}
	return "the edge's log says why"
}

func authorityHint(err *tunnel.AuthorityError) string {
	const middle = "a proxy or firewall of this network may open TLS and read along: "
	switch {
	case err.SelfSigned:
		return "an edge that makes its own certificate is trusted with pin=<the pin that raimons logs at start>; the key that came has pin=" + err.Pin +
			", which is the edge's only if its log has the same; a CA of your own goes into ca=<file>"
	case err.GivenRoots:
		return "the file of ca=<file> has other CAs: has the edge a new certificate (or pin=)? Or " + middle + "then ca= takes the root of that"
	}
	return "if that is your CA, name its file with ca=<file>, or the edge's key with pin=<the pin that raimons logs at start>; " +
		"if it is a public one, the edge does not send its whole chain; else " + middle +
		"ask who runs it for its root and name that with ca=<file>, or use another network"
}

const noPlainWebSocket = "no plain WebSocket is spoken there: is tls missing here, or is this another port?"

// upgradeHint explains an HTTP status in place of a tunnel.
func upgradeHint(err *tunnel.UpgradeError) string {
	token := "an edge that asks for a token answers so too: then add token="
	if err.Token {
		token = "so does an edge that does not know the token: is that in its file, or has it been replaced?"
	}
	switch {
	case err.Status == http.StatusBadRequest:
		return noPlainWebSocket
	case err.Status == http.StatusServiceUnavailable:
		return "the edge has as many of these tunnels as it may: try again in a while; or a web server in front of it cannot reach it"
	case err.Status >= 500:
		return "a web server or CDN in front of the edge answers: it cannot reach the edge, or does not pass WebSocket upgrades on"
	case err.Status == http.StatusNotFound:
		return "host= and path= must be the same on both sides; a 404 is what an edge answers to anything else; " + token
	case err.Status == http.StatusMisdirectedRequest:
		return "the edge does not serve this name here, or takes the client certificate no longer: check host=, sni= and client-cert="
	case err.Status == http.StatusUnauthorized || err.Status == http.StatusForbidden:
		return "a web server answers there, behind or in front of the edge: check the address, host= and path=; " + token +
			"; a CDN may want user-agent=, or a header="
	case err.Status/100 == 3:
		return "a web server sends us elsewhere, perhaps to log in: check the address, host= and path=; an access gateway takes its service token in header="
	}
	return "another web server answers there: check the address, host= and path="
}

func networkHint(err error) string {
	var dns *net.DNSError
	var op *net.OpError
	listening := errors.As(err, &op) && op.Op == "listen"
	switch {
	case strings.Contains(err.Error(), "fwmark"):
		return "fwmark= needs Linux and root, or CAP_NET_ADMIN"
	case errors.Is(err, syscall.EADDRINUSE): // tunnel.Listen says it so on every system
		return "another program listens there (on Linux, ss -ltnp shows which): stop it or choose another port"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "each tunnel takes two files: raise the limit (ulimit -n, or LimitNOFILE= in a systemd unit)"
	case errors.Is(err, errAddressMissing) && listening:
		return "this machine does not have that address: 127.0.0.1 is for its own programs alone, no host at all, as in :443, for everybody"
	case listening && op.Net == "unix" && errors.Is(err, os.ErrPermission):
		return "this user may not make a socket there: choose another folder, or change its owner"
	case listening && errors.Is(err, os.ErrPermission):
		return "ports below 1024 need root, or on Linux: setcap cap_net_bind_service=+ep and the path of this program"
	case errors.As(err, &dns) && dns.IsNotFound:
		return "the name does not resolve here: check its spelling and this machine's DNS; raimonc can ask another name server, as in dns=9.9.9.9"
	case dns != nil && dns.IsTimeout:
		return "the name server does not answer: is this machine online? raimonc can ask another one, as in dns=9.9.9.9"
	case dns != nil:
		return "the name server cannot be asked, or fails: raimonc can ask another one, as in dns=9.9.9.9"
	case tunnel.Reason(err) == tunnel.ReasonUnreachable:
		return "this machine has no way there: is it connected (Wi-Fi, cable, VPN), and is the address right?"
	case errors.Is(err, errRefused):
		return "nothing listens there: is the program behind it running, and on that port?"
	case errors.Is(err, errReset):
		return "the other side, or something between, hangs up: another port, or a filter?"
	case errors.Is(err, tunnel.ErrTimeout):
		return "no answer in time: a firewall, a wrong port, or a slow network (timeout= allows more)"
	case errors.Is(err, fs.ErrNotExist) && inHome(err):
		return "only a shell knows what ~ is: write the whole path of that folder"
	case errors.Is(err, fs.ErrNotExist):
		return "check the path; relative ones start at the folder in which the program was started"
	case errors.Is(err, syscall.EISDIR):
		return "that is a folder: name the file in it"
	case errors.Is(err, fs.ErrPermission):
		return "the user that runs this program may not read it: check owner and mode"
	}
	return ""
}

// inHome tells whether err is about a path that begins as shells call the user's folder.
func inHome(err error) bool {
	var path *fs.PathError
	return errors.As(err, &path) && strings.HasPrefix(path.Path, "~")
}
