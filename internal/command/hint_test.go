package command

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"raimon/internal/options"
	"raimon/tunnel"
)

func TestHint(t *testing.T) {
	_, missing := options.Parse(options.Server, "tls")
	listen := func(err syscall.Errno) error {
		return &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", err)}
	}
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for name, test := range map[string]struct {
		err  error
		want string // a part of it; empty: no hint
	}{
		"nothing known":      {errors.New("no idea"), ""},
		"end of stream":      {io.EOF, ""},
		"own hint":           {&ConfigError{fs.ErrNotExist, "look elsewhere"}, "look elsewhere"},
		"option":             {missing, "servername=example.com"},
		"other key":          {&tunnel.PinError{Got: "abc="}, "pin=abc="},
		"unknown CA":         {x509.UnknownAuthorityError{}, "ca=<file>"},
		"self-signed":        {&tunnel.AuthorityError{SelfSigned: true, Pin: "abc="}, "the key that came has pin=abc="},
		"private CA":         {&tunnel.AuthorityError{}, "ca=<file>"},
		"another CA":         {&tunnel.AuthorityError{GivenRoots: true}, "has other CAs"},
		"no CAs at all":      {x509.SystemRootsError{}, "install ca-certificates"},
		"access gateway":     {&tunnel.UpgradeError{Status: 302}, "header="},
		"CDN":                {&tunnel.UpgradeError{Status: 403}, "user-agent="},
		"other name":         {x509.HostnameError{Certificate: &x509.Certificate{}}, "sni="},
		"name to take":       {x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"edge\x1b.test", "b.test"}}}, "sni= must be a name in the edge's certificate, such as edge\ufffd.test"},
		"no WebSocket":       {errors.New("websocket handshake: the peer does not answer in HTTP"), "is ws missing on the other side"},
		"no network":         {dial(os.NewSyscallError("connect", syscall.ENETUNREACH)), "is it connected (Wi-Fi"},
		"expired":            {x509.CertificateInvalidError{Reason: x509.Expired}, "clock"},
		"no TLS there":       {tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, "does not speak TLS"},
		"no upgrade":         {&tunnel.UpgradeError{Status: 404}, "host= and path="},
		"no upgrade, token":  {&tunnel.UpgradeError{Status: 404, Token: true}, "does not know the token"},
		"no upgrade, none":   {&tunnel.UpgradeError{Status: 404}, "add token="},
		"login":              {&tunnel.UpgradeError{Status: 401}, "add token="},
		"login, token":       {&tunnel.UpgradeError{Status: 403, Token: true}, "does not know the token"},
		"other site":         {&tunnel.UpgradeError{Status: 421}, "client-cert="},
		"no token":           {tunnel.ErrToken, "raimons token"},
		"no raimons":         {tunnel.ErrNoTargets, "no older than this raimonc"},
		"no certificate":     {errors.New("remote error: tls: certificate required"), "add client-cert="},
		"revoked":            {errors.New("remote error: tls: bad certificate"), "revoked"},
		"port in use":        {listen(syscall.EADDRINUSE), "another program listens there"},
		"foreign address":    {listen(syscall.EADDRNOTAVAIL), "127.0.0.1 is for its own programs alone"},
		"low port":           {listen(syscall.EACCES), "root"},
		"nobody listens":     {dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), "nothing listens there"},
		"no such name":       {dial(&net.DNSError{IsNotFound: true}), "does not resolve"},
		"name server away":   {dial(&net.DNSError{IsTimeout: true}), "online"},
		"name server broken": {dial(&net.DNSError{IsTemporary: true}), "dns="},
		"too slow by name":   {fmt.Errorf("%w: %w", tunnel.ErrTimeout, &net.DNSError{IsTimeout: true}), "dns="},
		"too slow":           {tunnel.ErrTimeout, "timeout="},
		"no such file":       {&fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist}, "check the path"},
		"~ in a path":        {&fs.PathError{Op: "open", Path: "~/x", Err: fs.ErrNotExist}, "only a shell knows"},
		"unreadable file":    {&fs.PathError{Op: "open", Path: "x", Err: fs.ErrPermission}, "owner and mode"},
		"no right to listen": {fmt.Errorf("listen: %w", listen(syscall.EPERM)), "root"},
	} {
		t.Run(name, func(t *testing.T) {
			got := Hint(fmt.Errorf("some step: %w", test.err))
			if (test.want == "") != (got == "") || !strings.Contains(got, test.want) {
				t.Errorf("hint of %v: %q, want one with %q", test.err, got, test.want)
			}
		})
	}
}
