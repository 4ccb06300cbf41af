// Package options reads the option string of raimons and raimonc, such as "ws;host=example.com;path=/ws;tls".
//
// Print Options.Warnings: an option that is ignored is a warning, never an error, so that a plugin keeps running.
package options

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"raimon/internal/resolve"
)

// Side says for which of the two binaries an option string is meant.
type Side int

const (
	Client Side = iota
	Server
)

// String returns the name of the side's binary.
func (s Side) String() string {
	if s == Server {
		return "raimons"
	}
	return "raimonc"
}

// Disabled is the value of an option that switches off what it would name.
const Disabled = "off"

// Off is the Linger and the Ping of an option string that says "off" or "0".
const Off time.Duration = -1

// Options is what an option string says, checked for one side. Fields of the other side are zero.
// Files are named here, not opened.
type Options struct {
	WS         bool
	Host, Path string // free of blanks and control characters; Path may carry a query; empty only without WS, Host also on a server with mode=websocket
	Mask       string // client: "skip", "fixed" or "standard"
	Token      string // client: "file:" and a path, "command:" and a program with its arguments, or the token itself, free of blanks; empty: none

	Header    []Header // client: what else the upgrade request says; names and values that a header can carry
	UserAgent string   // client: of upgrade and CONNECT requests; empty: none is sent

	TLS                   bool
	SNI                   string   // client: not empty where TLS is true, never with a port
	ALPN                  []string // client: each 1 to 255 bytes
	Insecure              bool     // client: no verification; never together with Pins, CA or CAPEM
	CA                    string   // client: PEM file of the roots to trust instead of the system's
	CAPEM                 []byte   // client: a root to trust besides CA or the system's, from certRaw
	Pins                  [][]byte // client: SHA-256 of each SubjectPublicKeyInfo that is accepted, 32 bytes each
	ZeroRTT               bool
	ClientCert, ClientKey string // client: PEM files, both or neither

	// On a server with TLS at least one is given: Key with one of Cert and CertPEM, ServerName, ACME or OnDemand.
	Cert, Key  string // files
	CertPEM    []byte // from certRaw
	OCSP       string // file
	ServerName string // for a self-signed certificate
	Storage    string // server: folder for what has to survive a restart; "off": none; empty: the usual place

	// The values of automatic certificates; package acme knows what they may be.
	ACME     []string // names
	Email    string
	ACMECAs  []string // URLs or short names, in the order in which they are tried
	ACMERoot string   // PEM file
	EAB      []string // kid:key, in the order of ACMECAs; empty where one needs none
	Profile  string
	KeyType  string
	HTTP     string // address, or "off"; empty: not given
	DNS      string // DNS-01 provider
	OnDemand string // URL or command

	Socks     bool          // client: programs choose their target, in SOCKS5 or HTTP; only with WS
	SocksAuth string        // client: user:password, or "file:" or "command:" as in Token; empty: programs are not asked
	Pool      int           // client: connections kept ready
	Reuse     time.Duration // client: for the next program, of a connection whose tunnel has ended; zero: not at all
	Wait      time.Duration // client: for an edge that cannot be reached; zero: not at all

	Proxy      string          // client: http, https, socks5 or socks5h URL; "off": ignore the environment; empty: follow it
	ProxyAuth  string          // client: user:password, or "file:" or "command:" as in Token; empty: what Proxy has
	Resolver   *resolve.Server // client: nil: the system's
	FastOpen   bool
	Fwmark     uint32 // zero: none
	AndroidVPN bool
	LogLevel   string // debug, info, warning, error, none; empty: not given

	Timeout time.Duration // always positive
	Drain   time.Duration // zero: end at once
	Linger  time.Duration // of a half-closed tunnel without traffic; Off: no limit
	Ping    time.Duration // of silence before a Ping is sent; Off: never

	// Warnings tell in whole sentences which options were ignored and why. They hold keys, never values.
	Warnings []string
}

// Header is a field of an HTTP header.
type Header struct {
	Name  string
	Value string // or "file:" and a path, "command:" and a program with its arguments
}

// Error is an option that is missing, malformed or contradicts another one.
type Error struct {
	Option  string // its key; empty where the string cannot be split into options
	Problem string // never holds the value, which may be a secret
	Hint    string // what to write instead

	// Warnings are those of Options up to here: a misspelt option is often why another is missing.
	Warnings []string
}

func mistake(option, problem, hint string) *Error {
	return &Error{Option: option, Problem: problem, Hint: hint}
}

func (e *Error) Error() string {
	if e.Option == "" {
		return "option string: " + e.Problem
	}
	return fmt.Sprintf("option %q: %s", e.Option, e.Problem)
}

// Parse reads the option string s for one side. Its error is always an *Error.
//
// A ";" ends an option, the first "=" ends its key, a key without "=" is a switch; blanks around keys and values are
// trimmed and empty options skipped. A backslash takes the meaning from a ";", "=" or backslash after it. Before any
// other character it stands for itself: C:\x is what it looks like, but \\host\x is written \\\\host\x.
func Parse(side Side, s string) (*Options, error) {
	settings, err := Split(s)
	if err != nil {
		return nil, err
	}
	return ParseSettings(side, settings)
}

// ParseSettings is Parse for options that are apart already.
func ParseSettings(side Side, settings []Setting) (*Options, error) {
	o := defaults(side)
	given, err := o.read(side, settings)
	if err == nil {
		err = o.check(side, given)
	}
	var e *Error
	if errors.As(err, &e) {
		e.Warnings = o.Warnings
		return nil, e
	}
	return o, nil
}

func defaults(side Side) *Options {
	o := &Options{
		Timeout: defaultTimeout,
		Drain:   defaultDrain,
		Linger:  defaultLinger,
		Ping:    defaultPing,
	}
	if side == Client {
		o.Mask, o.Reuse, o.Wait = "skip", defaultReuse, defaultWait
	}
	return o
}

// read sets the fields that settings name and returns the keys that did so.
func (o *Options) read(side Side, settings []Setting) (given map[string]bool, err error) {
	given = make(map[string]bool)
	seen := make(map[string]bool)
	for _, p := range settings {
		row := lookup(side, p.Key)
		if seen[p.Key] && (row == nil || !row.repeated) {
			o.warn("option %q is repeated: the first one counts", p.Key)
			continue
		}
		seen[p.Key] = true

		if row == nil {
			o.warnUnused(side, p.Key)
			continue
		}
		if row.optional && p.Value == "" {
			continue
		}
		if err := row.apply(o, p.Value); err != nil {
			return nil, about(p.Key, err)
		}
		given[p.Key] = true
	}
	return given, nil
}

// warnUnused warns of a key that side does not know.
func (o *Options) warnUnused(side Side, key string) {
	other := Server
	if side == Server {
		other = Client
	}
	if lookup(other, key) != nil {
		o.warn("option %q has no effect in %s: it is for %s", key, side, other)
		return
	}
	if near := nearest(side, key); near != "" {
		o.warn("option %q is unknown and ignored: did you mean %q?", key, near)
		return
	}
	o.warn("option %q is unknown and ignored", key)
}

func (o *Options) check(side Side, given map[string]bool) error {
	if err := o.checkNeeds(side, given); err != nil {
		return err
	}
	if err := o.checkWebSocket(side, given); err != nil {
		return err
	}
	if side == Server {
		return o.checkServer(given)
	}
	return o.checkClient(given)
}

// checkNeeds refuses what only works under ws or tls where that is not given. Kaminari ignores such options; then
// someone who forgot "tls" believes to be encrypted.
func (o *Options) checkNeeds(side Side, given map[string]bool) error {
	for _, row := range table {
		if row.sides&only(side) == 0 || !given[row.key] {
			continue
		}
		switch {
		case row.needs == "tls" && !o.TLS:
			return mistake(row.key, "tls is not given, nothing would be encrypted",
				fmt.Sprintf("add tls, or remove %s for a tunnel without TLS", row.key))
		case row.needs == "ws" && !o.WS:
			return mistake(row.key, "ws is not given, this would be no WebSocket",
				fmt.Sprintf("add ws (mode=websocket for v2ray-plugin; in a URL it is wss:// or ws://), or remove %s for a tunnel without WebSocket", row.key))
		case row.needs == "socks" && !o.Socks:
			return mistake(row.key, "socks is not given, nobody would be asked",
				fmt.Sprintf("write socks:// before the listen address, or remove %s", row.key))
		}
	}
	return nil
}

func (o *Options) checkWebSocket(side Side, given map[string]bool) error {
	if !o.WS {
		for _, key := range []string{"ping", "reuse"} {
			if given[key] {
				o.warn("option %q has no effect without ws", key)
			}
		}
		if given["server"] {
			o.warn(`option "server": v2ray-plugin means mode=websocket unless told otherwise, here it has to be written`)
		}
		return nil
	}
	option := "ws"
	if given["mode"] {
		option = "mode"
		o.Path = cmp.Or(o.Path, "/")
		if side == Server && o.Host == "" {
			return nil // v2ray-plugin's server takes any
		}
	}
	switch {
	case o.Host == "" && o.Path == "":
		return mistake(option, "neither host nor path is given", "add host=example.com;path=/ws")
	case o.Host == "":
		return mistake(option, "host is not given", "add host=example.com, the name that both ends agree on")
	case o.Path == "":
		return mistake(option, "path is not given", "add path=/ws, or the path that both ends agree on")
	}
	return nil
}

func (o *Options) checkClient(given map[string]bool) error {
	if err := o.checkProxyAuth(); err != nil {
		return err
	}
	if o.Token != "" && slices.ContainsFunc(o.Header, func(h Header) bool { return strings.EqualFold(h.Name, "Authorization") }) {
		return mistake("header", "Authorization contradicts token", "remove one of them: the token is sent in Authorization")
	}
	if !o.TLS {
		return nil
	}
	if o.SNI == "" && given["mode"] {
		if err := setServerName(&o.SNI, hostname(o.Host)); err != nil {
			return mistake("tls", "sni is not given and host cannot stand in for it", "add sni=example.com")
		}
	}
	if given["ca"] && given["cert"] {
		o.warn(`option "cert" has no effect: it is another name for ca, which is given`)
	}
	switch {
	case o.SNI == "":
		return mistake("tls", "sni is not given", "add sni=example.com, the name in the server's certificate")
	case o.ClientCert != "" && o.ClientKey == "":
		return mistake("client-cert", "client-key is not given", "add client-key=key.pem")
	case o.ClientCert == "" && o.ClientKey != "":
		return mistake("client-key", "client-cert is not given", "add client-cert=cert.pem")
	case o.Insecure && o.Pins != nil:
		return mistake("insecure", "contradicts pin", "remove insecure: pin alone accepts a self-signed certificate with that key")
	case o.Insecure && (o.CA != "" || o.CAPEM != nil):
		return mistake("insecure", "contradicts ca, cert and certRaw", "remove insecure, so that the certificate is verified")
	}
	return nil
}

// checkProxyAuth knows nothing of the environment's proxy, which may come and go.
func (o *Options) checkProxyAuth() error {
	if o.ProxyAuth == "" {
		return nil
	}
	if o.Proxy == Disabled {
		o.warn(`option "proxy-auth" has no effect with proxy=off`)
		o.ProxyAuth = ""
	}
	if u, err := url.Parse(o.Proxy); err == nil && u.User != nil {
		return mistake("proxy-auth", "contradicts the user in proxy", "remove user and password from proxy")
	}
	return nil
}

// checkServer makes sure of a certificate: cert and key, servername, acme or on-demand. Each serves its own names.
func (o *Options) checkServer(given map[string]bool) error {
	if !o.TLS {
		o.warnWithoutACME(given)
		return nil
	}
	if given["cert"] && given["certRaw"] {
		o.warn(`option "certRaw" has no effect: cert is given`)
		o.CertPEM = nil
	}
	if err := o.checkFiles(); err != nil {
		return err
	}
	automatic := len(o.ACME) > 0 || o.OnDemand != ""
	if !automatic {
		o.warnWithoutACME(given)
		if o.Key == "" && o.ServerName == "" {
			return mistake("tls", "neither acme, cert+key nor servername is given",
				"add acme=example.com for a certificate from Let's Encrypt, cert=cert.pem;key=key.pem for your own, or servername=example.com for a self-signed one")
		}
		return nil
	}
	switch {
	case o.Storage == Disabled:
		return mistake("storage", "off contradicts acme", "certificates have to be kept, for CAs give a few a week only: name a folder, or leave storage out")
	case len(o.EAB) > max(1, len(o.ACMECAs)):
		return mistake("eab", "it has more values than acme-ca", "give one for each CA, in the same order, empty where none is needed")
	}
	return nil
}

func (o *Options) warnWithoutACME(given map[string]bool) {
	for _, row := range table {
		if row.group == automaticGroup && given[row.key] {
			o.warn("option %q has no effect without acme", row.key)
		}
	}
}

// checkFiles drops half a pair where something else serves; on its own it is a mistake.
func (o *Options) checkFiles() error {
	cert := "cert"
	if o.CertPEM != nil {
		cert = "certRaw"
	}
	hasCert, hasKey := o.Cert != "" || o.CertPEM != nil, o.Key != ""
	if hasCert && hasKey {
		return nil
	}
	instead := ""
	switch {
	case len(o.ACME) > 0:
		instead = "acme"
	case o.OnDemand != "":
		instead = "on-demand"
	case o.ServerName != "":
		instead = "servername"
	case hasCert:
		return mistake(cert, "key is not given", "add key=key.pem, the private key of the certificate")
	case hasKey:
		return mistake("key", "cert is not given", "add cert=cert.pem, the certificate of the key")
	}
	if hasCert {
		o.warn("option %q has no effect without key: %s is used", cert, instead)
	}
	if hasKey {
		o.warn(`option "key" has no effect without cert: %s is used`, instead)
	}
	if o.OCSP != "" {
		o.warn(`option "ocsp" has no effect without cert and key`)
	}
	o.Cert, o.CertPEM, o.Key, o.OCSP = "", nil, "", ""
	return nil
}

func (o *Options) warn(format string, args ...any) {
	o.Warnings = append(o.Warnings, fmt.Sprintf(format, args...))
}

// about names the option that err, the problem with a value, is about.
func about(key string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return mistake(key, e.Problem, e.Hint)
	}
	return mistake(key, err.Error(), "see the list of options with -h")
}

// hostname returns the host of "host", "host:port" and "[v6]:port".
func hostname(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}
