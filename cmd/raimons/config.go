package main

import "raimon/internal/configfile"

// configFile is what edge.toml says. docs/config.md is made of it: the tag help says what a key means, and
// standard what holds without it.
type configFile struct {
	Listen     []string `toml:"listen" help:"addresses to accept TLS connections on, such as \":443\" or \"unix:/run/raimon.sock\"" standard:"[\":443\"] without [[listener]]"`
	HTTP       string   `toml:"http" help:"where port 80 of the names arrives, for HTTP-01 challenges and redirects to https; \"off\" leaves it alone" standard:"\":80\", if it is free"`
	Storage    string   `toml:"storage" help:"folder for certificates, keys and everything else that has to survive a restart" standard:"what systemd gives, else /var/lib/raimon for root, ~/.local/share/raimon for others"`
	Timeout    string   `toml:"timeout" help:"how long handshakes and the dial to the target may take together; the head of each request has as long" standard:"\"10s\""`
	Linger     string   `toml:"linger" help:"how long a tunnel stays without traffic when one end has finished sending; \"off\" sets no limit" standard:"\"60s\""`
	Drain      string   `toml:"drain" help:"how long open tunnels may finish after SIGTERM; \"0\" ends them at once" standard:"\"10s\""`
	Ping       string   `toml:"ping" help:"after how much silence a WebSocket Ping is sent; \"off\" sends none" standard:"\"30s\""`
	FastOpen   bool     `toml:"fast-open" help:"accept data in the first packet of known clients (RFC 7413)"`
	Fwmark     uint32   `toml:"fwmark" help:"mark of all sockets, for policy routing; on Linux, as root"`
	LogLevel   string   `toml:"log-level" help:"debug, info, warning, error or none" standard:"\"info\""`
	LogTunnels string   `toml:"log-tunnels" help:"level of the line about each tunnel that ended well" standard:"\"info\""`

	ACME      acmeSection       `toml:"acme" help:"how certificates are obtained, for the sites that have certificate = \"acme\""`
	Limits    limitSection      `toml:"limits" help:"what strangers can make us do"`
	Admin     adminSection      `toml:"admin" help:"metrics and status; off without listen"`
	Listeners []listenerSection `toml:"listener" help:"one more listener, for what listen cannot say"`
	Sites     []siteSection     `toml:"site" help:"what is served under some names; at least one"`

	from *configfile.File
}

type acmeSection struct {
	Email    string   `toml:"email" help:"where the CA can reach you"`
	CA       []string `toml:"ca" help:"CAs in the order in which they are tried: letsencrypt, letsencrypt-staging, zerossl, google, or the URL of a directory" standard:"[\"letsencrypt\"]"`
	Root     string   `toml:"root" help:"PEM file of the root of a private CA's own https"`
	EAB      []string `toml:"eab" help:"kid:key for each CA that wants an account of yours, in the order of ca; \"file:/path\" reads it from a file"`
	Profile  string   `toml:"profile" help:"what the CA calls the kind of certificate, such as shortlived"`
	KeyType  string   `toml:"key-type" help:"p256, p384, ed25519, rsa2048 or rsa4096" standard:"\"p256\""`
	DNS      string   `toml:"dns" help:"how DNS-01 challenges are answered, as the option dns= says it; needed for wildcards"`
	OnDemand string   `toml:"on-demand" help:"URL or command that decides on names beside those of the sites; the site without names serves them"`
}

type limitSection struct {
	Connections int    `toml:"connections" help:"open at a time, of everybody" standard:"what the limit of open files allows"`
	WhenFull    string `toml:"when-full" help:"\"queue\" lets more wait in the kernel's queue, \"refuse\" resets them" standard:"\"queue\""`
	PerAddress  int    `toml:"per-address" help:"open at a time from one IPv4 address, or one /64 of IPv6; -1 sets no limit" standard:"a quarter of connections"`
	Rate        int    `toml:"rate" help:"new ones a second from one such address, and twice as many at once; -1 sets no limit" standard:"1000"`
	HeaderSize  int    `toml:"header-size" help:"bytes that the head of a request may have, 8192 to 1048576" standard:"65536"`
	IdleTimeout string `toml:"idle-timeout" help:"how long a connection is kept on which no request is under way; the head of the next has to be there by then" standard:"\"60s\""`
	BodyTimeout string `toml:"body-timeout" help:"how long a visitor of the website may send nothing of a body, or take less than 32 KiB of an answer" standard:"\"60s\""`
}

type adminSection struct {
	Listen string `toml:"listen" help:"address, such as \"127.0.0.1:9180\" or \"unix:/run/raimon/admin.sock\"; anything but loopback and Unix sockets needs token-file"`
	Token  string `toml:"token-file" help:"file with the bearer token that every request has to carry"`
}

type listenerSection struct {
	Address   string   `toml:"address" help:"host:port, :port or unix:/path"`
	Plain     bool     `toml:"plain" help:"no TLS, for loopback or behind a proxy that speaks it; sites are then found by the Host header"`
	ProxyFrom []string `toml:"proxy-from" help:"networks from which each connection begins with a PROXY header, v1 or v2, such as [\"10.0.0.0/8\"]"`
}

type siteSection struct {
	Names []string `toml:"names" help:"server names, such as [\"edge.example.com\", \"*.example.com\"]; without it the site is for all other names"`
	Label string   `toml:"label" help:"what logs and metrics call the site" standard:"its first name, or \"default\""`

	Pass string `toml:"pass" help:"address to which connections go untouched, TLS and all"`

	Certificate string `toml:"certificate" help:"\"acme\", \"files\" or \"self-signed\"" standard:"\"files\" with cert, else \"acme\""`
	Cert        string `toml:"cert" help:"PEM file of the certificate and its chain"`
	Key         string `toml:"key" help:"PEM file of the private key" standard:"the key in cert"`
	OCSP        string `toml:"ocsp" help:"file of the OCSP response to staple"`

	Target string `toml:"target" help:"makes the site a tunnel without HTTP to this address"`
	Proxy  string `toml:"proxy-protocol" help:"\"v1\" or \"v2\": the header by which the target learns the client's address"`
	accessSection

	Root     string `toml:"root" help:"folder of the website that everybody sees who is no tunnel"`
	Upstream string `toml:"upstream" help:"URL of the web server that everybody sees who is no tunnel, such as \"http://127.0.0.1:8080\""`
	Redirect string `toml:"redirect" help:"URL to which everybody is sent who is no tunnel"`

	AccessLog string `toml:"access-log" help:"file that gets a line in Combined Log Format for each request to the website" standard:"no such log"`

	ClientCA       string `toml:"client-ca" help:"PEM file of the CAs whose client certificates are asked for"`
	ClientCRL      string `toml:"client-crl" help:"file of their revocation lists, PEM or DER"`
	ClientRequired bool   `toml:"client-required" help:"refuse the handshake of whoever has none" standard:"true with target"`

	Routes []routeSection `toml:"route" help:"a tunnel, found by its path"`
}

type routeSection struct {
	Path    string   `toml:"path" help:"path of the upgrade request, to the letter, with its query if it has one"`
	Host    string   `toml:"host" help:"the Host header that the request must have" standard:"any of the site's names"`
	Target  string   `toml:"target" help:"address to which the tunnel goes: host:port or unix:/path"`
	Targets []string `toml:"targets" help:"what clients may choose instead, such as [\"10.0.0.0/8:22\", \"*.internal:443\", \"[2001:db8::]/32:8000-8100\"]; needs from, tokens or clients" standard:"nothing"`
	Label   string   `toml:"label" help:"what logs and metrics call the route" standard:"its path"`
	Proxy   string   `toml:"proxy-protocol" help:"\"v1\" or \"v2\": the header by which the target learns the client's address"`
	accessSection
}

// accessSection says who may use a tunnel.
type accessSection struct {
	From    []string `toml:"from" help:"networks that clients have to come from, such as [\"192.0.2.0/24\"]"`
	Tokens  string   `toml:"tokens" help:"file of the tokens of which a client has to show one; raimons token makes them"`
	Clients []string `toml:"clients" help:"client certificates that may in: CN:, DNS:, URI: or SPKI: and a value, or \"*\" for all of client-ca"`
	Max     int      `toml:"max" help:"tunnels open at a time" standard:"no limit"`
	Full    string   `toml:"when-full" help:"\"refuse\" turns more than max away, \"queue\" lets as many again wait for a place, for timeout at most" standard:"\"refuse\""`
}

// readConfig reads the file of that name and checks that each key is known and of the right kind.
func readConfig(name string) (*configFile, error) {
	return decodeConfig(configfile.Read(name))
}

func decodeConfig(file *configfile.File, err error) (*configFile, error) {
	if err != nil {
		return nil, err
	}
	c := &configFile{from: file}
	if err := file.Decode(c); err != nil {
		return nil, err
	}
	return c, nil
}

// wrong is a mistake at path, such as site[0].cert, or at the nearest thing around it that is in the file.
func (c *configFile) wrong(path, problem, fix string) error { return c.from.Wrong(path, problem, fix) }
