package options

import (
	"fmt"
	"time"
)

const (
	defaultTimeout = 10 * time.Second
	defaultDrain   = 10 * time.Second
	defaultLinger  = 60 * time.Second
	defaultPing    = 30 * time.Second
	defaultWait    = 15 * time.Second
	defaultReuse   = 30 * time.Second
	maxPool        = 64
)

// automaticGroup is what only matters where certificates are obtained.
const automaticGroup = "Automatic certificates (ACME)"

// option is one row of the table, from which Parse, Help and Markdown come. A key whose meaning depends on the side has
// one row for each.
type option struct {
	key      string
	arg      string // how help calls the value; empty for a switch
	sides    sides
	group    string // heading in help; rows of a group stand together
	needs    string // "ws" or "tls": refused without it
	repeated bool   // may be given several times, which elsewhere is a warning
	optional bool   // an empty value means not given, elsewhere it is an error
	help     string
	standard string                       // the default as help shows it
	set      func(*Options, string) error // returns a problem
}

// sides is a set of Side.
type sides uint

const (
	client sides = 1 << Client
	server sides = 1 << Server
	both         = client | server
)

func only(s Side) sides { return 1 << s }

func seconds(d time.Duration) string { return fmt.Sprintf("%gs", d.Seconds()) }

// lookup returns nil where side has no option of that key.
func lookup(side Side, key string) *option {
	for i := range table {
		if table[i].key == key && table[i].sides&only(side) != 0 {
			return &table[i]
		}
	}
	return nil
}

// apply sets what the option stands for. A switch may be written key, key=1 or key=true, as v2ray-plugin's users do.
func (row *option) apply(o *Options, value string) error {
	if row.arg == "" {
		if value != "" && value != "1" && value != "true" {
			return problem("it is a switch and takes no value", "write "+row.key+" to switch it on, leave it out otherwise")
		}
		return row.set(o, value)
	}
	if value == "" {
		return problem("it has no value", "write "+row.key+"="+row.arg)
	}
	return row.set(o, value)
}

var table = []option{
	{
		key: "ws", sides: both, group: "WebSocket",
		help: "speak WebSocket; host and path must be given too",
		set:  func(o *Options, _ string) error { o.WS = true; return nil },
	},
	{
		key: "host", arg: "<name>", sides: both, group: "WebSocket", needs: "ws",
		help: "the Host header, the same on both ends",
		set:  func(o *Options, v string) error { return setHost(&o.Host, v) },
	},
	{
		key: "path", arg: "</path>", sides: both, group: "WebSocket", needs: "ws",
		help: "the path, the same on both ends; it may carry a query",
		set:  func(o *Options, v string) error { return setPath(&o.Path, v) },
	},
	{
		key: "mask", arg: "skip|fixed|standard", sides: client, group: "WebSocket", needs: "ws",
		help: "skip leaves the data as it is, under a key of zero; fixed takes one random key for each connection; " +
			"standard takes a new one for every frame",
		standard: "skip",
		set: func(o *Options, v string) error {
			if v == "skipped" {
				v = "skip"
			}
			return setOneOf(&o.Mask, v, "skip", "fixed", "standard")
		},
	},
	{
		key: "token", arg: "<token>|file:<path>|command:<program>", sides: client, group: "WebSocket", needs: "ws",
		help: "show this token to an edge that asks for one; a file, or what a program prints, is read anew for each connection",
		set:  func(o *Options, v string) error { return setToken(&o.Token, v) },
	},
	{
		key: "header", arg: "<name: value>", sides: client, group: "WebSocket", needs: "ws", repeated: true,
		help: "say this too in the upgrade request, for a CDN or an access gateway; the value may be file:<path> or command:<program>, " +
			"as for token; may be given several times",
		set: func(o *Options, v string) error { return setHeader(&o.Header, v) },
	},
	{
		key: "user-agent", arg: "<text>", sides: client, group: "WebSocket", optional: true,
		help: "send this User-Agent, to an HTTP proxy too; without it none is sent",
		set:  func(o *Options, v string) error { return setUserAgent(&o.UserAgent, v) },
	},
	{
		key: "ping", arg: "<time>", sides: both, group: "WebSocket",
		help:     "send a Ping after this much silence, which keeps the line open; off sends none",
		standard: seconds(defaultPing),
		set:      func(o *Options, v string) error { return setTime(&o.Ping, v, Off) },
	},

	{
		key: "tls", sides: both, group: "TLS",
		help: "encrypt; the client needs sni, the server a certificate",
		set:  func(o *Options, _ string) error { o.TLS = true; return nil },
	},
	{
		key: "sni", arg: "<name>", sides: client, group: "TLS", needs: "tls",
		help: "the server's name, which is sent to it and looked for in its certificate",
		set:  func(o *Options, v string) error { return setServerName(&o.SNI, v) },
	},
	{
		key: "alpn", arg: "<name,...>", sides: client, group: "TLS", needs: "tls", optional: true,
		help: "the protocols to offer, such as http/1.1",
		set:  func(o *Options, v string) error { return setALPN(&o.ALPN, v) },
	},
	{
		key: "0rtt", sides: client, group: "TLS", needs: "tls",
		help: "keep session tickets across restarts, so that the first connection of the day resumes; " +
			"this is not early data",
		set: func(o *Options, _ string) error { o.ZeroRTT = true; return nil },
	},
	{
		key: "0rtt", sides: server, group: "TLS", needs: "tls",
		help: "allowed and without effect: clients resume anyway, early data is not taken",
		set:  func(o *Options, _ string) error { o.ZeroRTT = true; return nil },
	},

	{
		key: "ca", arg: "<file>", sides: client, group: "Certificates", needs: "tls",
		help: "trust the roots in this PEM file instead of the system's",
		set:  func(o *Options, v string) error { o.CA = v; return nil },
	},
	{
		key: "pin", arg: "<base64,...>", sides: client, group: "Certificates", needs: "tls",
		help: "accept only a server with one of these keys: SHA-256 of the SubjectPublicKeyInfo",
		set:  func(o *Options, v string) error { return setPins(&o.Pins, v) },
	},
	{
		key: "insecure", sides: client, group: "Certificates", needs: "tls",
		help: "accept any certificate: whoever sits on the line can read along; pin is safer",
		set:  func(o *Options, _ string) error { o.Insecure = true; return nil },
	},
	{
		key: "client-cert", arg: "<file>", sides: client, group: "Certificates", needs: "tls",
		help: "show this certificate to the server (PEM)",
		set:  func(o *Options, v string) error { o.ClientCert = v; return nil },
	},
	{
		key: "client-key", arg: "<file>", sides: client, group: "Certificates", needs: "tls",
		help: "the private key of client-cert (PEM)",
		set:  func(o *Options, v string) error { o.ClientKey = v; return nil },
	},
	{
		key: "cert", arg: "<file>", sides: server, group: "Certificates", needs: "tls",
		help: "the certificate chain (PEM), or one certificate (DER)",
		set:  func(o *Options, v string) error { o.Cert = v; return nil },
	},
	{
		key: "key", arg: "<file>", sides: server, group: "Certificates", needs: "tls",
		help: "the private key of cert (PEM or DER)",
		set:  func(o *Options, v string) error { o.Key = v; return nil },
	},
	{
		key: "ocsp", arg: "<file>", sides: server, group: "Certificates", needs: "tls", optional: true,
		help: "the OCSP response to staple (DER)",
		set:  func(o *Options, v string) error { o.OCSP = v; return nil },
	},
	{
		key: "servername", arg: "<name>", sides: server, group: "Certificates", needs: "tls", optional: true,
		help: "make a self-signed certificate for this name; cert and key win for the names that they have",
		set:  func(o *Options, v string) error { return setServerName(&o.ServerName, v) },
	},
	{
		key: "storage", arg: "<folder>|off", sides: server, group: "Certificates", optional: true,
		help: "where certificates, accounts and the keys of session tickets are kept, so that they survive a restart; " +
			"default: raimon in the user's data folder, /var/lib/raimon for root, StateDirectory= of a systemd unit",
		set: func(o *Options, v string) error { o.Storage = v; return nil },
	},

	{
		key: "acme", arg: "<name,...>", sides: server, group: automaticGroup, needs: "tls", optional: true,
		help: "obtain a certificate for each of these names and renew it: DNS names, *.names with dns=, IP addresses with profile=",
		set:  func(o *Options, v string) error { return setList(&o.ACME, v) },
	},
	{
		key: "email", arg: "<address>", sides: server, group: automaticGroup, optional: true,
		help: "the contact that the CA is told",
		set:  func(o *Options, v string) error { o.Email = v; return nil },
	},
	{
		key: "acme-ca", arg: "<ca,...>", sides: server, group: automaticGroup, optional: true,
		help: "letsencrypt, letsencrypt-staging, zerossl, google, or the URL of an ACME directory; each is tried when " +
			"those before it fail",
		standard: "letsencrypt",
		set:      func(o *Options, v string) error { return setList(&o.ACMECAs, v) },
	},
	{
		key: "acme-root", arg: "<file>", sides: server, group: automaticGroup, optional: true,
		help: "trust the roots in this PEM file too when the CA is asked: for private CAs",
		set:  func(o *Options, v string) error { o.ACMERoot = v; return nil },
	},
	{
		key: "eab", arg: "<kid:key,...>", sides: server, group: automaticGroup, optional: true,
		help: "your account with the CA (external account binding), one for each of acme-ca, empty where one needs none",
		set:  func(o *Options, v string) error { return setList(&o.EAB, v) },
	},
	{
		key: "profile", arg: "<name>", sides: server, group: automaticGroup, optional: true,
		help: "the kind of certificate, as the CA calls it, such as shortlived",
		set:  func(o *Options, v string) error { o.Profile = v; return nil },
	},
	{
		key: "key-type", arg: "p256|p384|ed25519|rsa2048|rsa4096", sides: server, group: automaticGroup, optional: true,
		help:     "the kind of private key",
		standard: "p256",
		set: func(o *Options, v string) error {
			return setOneOf(&o.KeyType, v, "p256", "p384", "ed25519", "rsa2048", "rsa4096")
		},
	},
	{
		key: "http", arg: "<address>|off", sides: server, group: automaticGroup, optional: true,
		help:     "answer the CA there (HTTP-01), and send everybody else to https",
		standard: ":80",
		set:      func(o *Options, v string) error { o.HTTP = v; return nil },
	},
	{
		key: "dns", arg: "<provider>", sides: server, group: automaticGroup, optional: true,
		help: "prove the names through the DNS (DNS-01): exec:/program, rfc2136://server/zone?key-file=... or acme-dns://server?file=...",
		set:  func(o *Options, v string) error { o.DNS = v; return nil },
	},
	{
		key: "on-demand", arg: "<url>|<command>", sides: server, group: automaticGroup, needs: "tls", optional: true,
		help: "obtain certificates for other names too, when a client asks and this says yes: the URL with ?domain=name by status 200, " +
			"the command with the name as last argument by exit status 0",
		set: func(o *Options, v string) error { o.OnDemand = v; return nil },
	},
	{
		key: "must-staple", sides: server, group: automaticGroup,
		help: "refused: CAs give no such certificates any more",
		set: func(*Options, string) error {
			return problem("CAs give no certificates with must-staple any more: Let's Encrypt ended OCSP in 2025",
				"remove must-staple; where a CA has an OCSP responder, staples are fetched anyway")
		},
	},

	{
		key: "proxy", arg: "<url>|off", sides: client, group: "Network", optional: true,
		help: "reach the server through this http, https, socks5 or socks5h proxy; without it the environment decides, " +
			"off ignores the environment",
		set: func(o *Options, v string) error { return setProxy(&o.Proxy, v) },
	},
	{
		key: "proxy-auth", arg: "<user:password>|file:<path>|command:<program>", sides: client, group: "Network", optional: true,
		help: "user and password for the proxy, of proxy or of the environment; a file, or what a program prints, is read " +
			"anew for each connection",
		set: func(o *Options, v string) error { return setLogin(&o.ProxyAuth, "proxy-auth", v) },
	},
	{
		key: "dns", arg: "<server>", sides: client, group: "Network", optional: true,
		help: "ask this name server instead of the system's: 9.9.9.9, tcp://9.9.9.9, tls://9.9.9.9 or https://9.9.9.9/dns-query; " +
			"it is asked directly, and with a proxy only for the proxy's own name",
		set: func(o *Options, v string) error { return setResolver(&o.Resolver, v) },
	},

	{
		key: "fastOpen", sides: both, group: "Network",
		help: "use TCP Fast Open where the system has it",
		set:  func(o *Options, _ string) error { o.FastOpen = true; return nil },
	},
	{
		key: "fwmark", arg: "<number>", sides: both, group: "Network",
		help: "mark outgoing packets with this number (SO_MARK, Linux)",
		set:  func(o *Options, v string) error { return setMark(&o.Fwmark, v) },
	},

	{
		key: "socks", sides: client, group: "Local programs", needs: "ws",
		help: "let programs choose where to, with SOCKS5 or HTTP CONNECT on the listen address, as far as the edge's targets allow; " +
			"socks://host:port in place of the listen address says the same",
		set: func(o *Options, _ string) error { o.Socks = true; return nil },
	},
	{
		key: "socks-auth", arg: "<user:password>|file:<path>|command:<program>", sides: client, group: "Local programs", needs: "socks",
		help: "ask programs of socks for this user and password, in SOCKS5 and HTTP; a file, or what a program prints, is read at " +
			"start and by raimonc reload",
		set: func(o *Options, v string) error { return setLogin(&o.SocksAuth, "socks-auth", v) },
	},
	{
		key: "pool", arg: "<number>", sides: client, group: "Local programs",
		help: "keep this many connections to the edge ready, so that a program waits for no handshake; towards others than " +
			"raimons with ws they reach the target at once, which then has to bear with silence",
		standard: "0",
		set:      func(o *Options, v string) error { return setCount(&o.Pool, v, maxPool) },
	},
	{
		key: "reuse", arg: "<time>", sides: client, group: "Local programs",
		help: "how long a connection to the edge is kept for the next program when the one before has ended, which saves all handshakes; " +
			"between raimons with ws; off ends it at once",
		standard: seconds(defaultReuse),
		set:      func(o *Options, v string) error { return setTime(&o.Reuse, v, 0) },
	},
	{
		key: "wait", arg: "<time>", sides: client, group: "Local programs",
		help:     "how long a program waits while the edge cannot be reached; 0 turns it away at once",
		standard: seconds(defaultWait),
		set:      func(o *Options, v string) error { return setTime(&o.Wait, v, 0) },
	},

	{
		key: "timeout", arg: "<time>", sides: both, group: "Time limits",
		help:     "how long connecting and the handshakes may take, such as 10s or 10",
		standard: seconds(defaultTimeout),
		set:      func(o *Options, v string) error { return setTimeout(&o.Timeout, v) },
	},
	{
		key: "linger", arg: "<time>", sides: both, group: "Time limits",
		help:     "how long a tunnel stays without traffic when one end has finished sending; off sets no limit",
		standard: seconds(defaultLinger),
		set:      func(o *Options, v string) error { return setTime(&o.Linger, v, Off) },
	},
	{
		key: "drain", arg: "<time>", sides: both, group: "Time limits",
		help:     "how long open tunnels may finish after SIGTERM; 0 ends them at once",
		standard: seconds(defaultDrain),
		set:      func(o *Options, v string) error { return setTime(&o.Drain, v, 0) },
	},

	{
		key: "loglevel", arg: "debug|info|warning|error|none", sides: both, group: "Log", optional: true,
		help: "how much to log",
		set: func(o *Options, v string) error {
			return setOneOf(&o.LogLevel, v, "debug", "info", "warning", "error", "none")
		},
	},

	{
		key: "mode", arg: "websocket", sides: both, group: "v2ray-plugin names",
		help: "the same as ws, but path is / and the client's sni is host unless they are given",
		set:  setMode,
	},
	{
		key: "server", sides: server, group: "v2ray-plugin names",
		help: "allowed and not needed: raimons is always the server",
		set:  func(*Options, string) error { return nil },
	},
	{
		key: "server", sides: client, group: "v2ray-plugin names",
		help: "refused: raimonc is always the client, the server is raimons",
		set: func(*Options, string) error {
			return problem("raimonc is the client", "run raimons for the server, or remove server")
		},
	},
	{
		key: "cert", arg: "<file>", sides: client, group: "v2ray-plugin names", needs: "tls",
		help: "the same as ca",
		set: func(o *Options, v string) error {
			if o.CA == "" { // ca wins, whichever comes first
				o.CA = v
			}
			return nil
		},
	},
	{
		key: "certRaw", arg: "<base64>", sides: client, group: "v2ray-plugin names", needs: "tls",
		help: "one more root to trust: PEM, or what stands between its BEGIN and END lines",
		set:  func(o *Options, v string) error { return setCertificates(&o.CAPEM, v) },
	},
	{
		key: "certRaw", arg: "<base64>", sides: server, group: "v2ray-plugin names", needs: "tls",
		help: "the certificate in place of cert: PEM, or what stands between its BEGIN and END lines",
		set:  func(o *Options, v string) error { return setCertificates(&o.CertPEM, v) },
	},
	{
		key: "mux", arg: "0", sides: both, group: "v2ray-plugin names",
		help: "only 0: each connection has a tunnel of its own",
		set:  setMux,
	},
	{
		key: "__android_vpn", sides: client, group: "v2ray-plugin names",
		help: "keep our own sockets out of the Android VPN, through protect_path",
		set:  func(o *Options, _ string) error { o.AndroidVPN = true; return nil },
	},
}
