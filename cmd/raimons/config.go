package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"raimon/internal/command"
	"raimon/internal/options"
)

// configFile is what edge.toml says. docs/config.md is made of it: the tag help says what a key means, and
// standard what holds without it.
type configFile struct {
	Listen     []string `toml:"listen" help:"addresses to accept TLS connections on, such as \":443\" or \"unix:/run/raimon.sock\"" standard:"[\":443\"] without [[listener]]"`
	HTTP       string   `toml:"http" help:"where port 80 of the names arrives, for HTTP-01 challenges and redirects to https; \"off\" leaves it alone" standard:"\":80\", if it is free"`
	Storage    string   `toml:"storage" help:"folder for certificates, keys and everything else that has to survive a restart" standard:"what systemd gives, else /var/lib/raimon for root, ~/.local/share/raimon for others"`
	Timeout    string   `toml:"timeout" help:"how long handshakes and the dial to the target may take together" standard:"\"10s\""`
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

	name  string         // of the file
	lines map[string]int // of keys and tables, such as site[0].route[1].path
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
	Max     int      `toml:"max" help:"tunnels open at a time; more are refused" standard:"no limit"`
}

// configError is a mistake in a config file.
type configError struct {
	file    string
	line    int // zero: of no line in particular
	problem string
	fix     string
}

func (e *configError) Error() string {
	if e.line == 0 {
		return fmt.Sprintf("%s: %s", e.file, e.problem)
	}
	return fmt.Sprintf("%s:%d: %s", e.file, e.line, e.problem)
}

// Hint says what to do.
func (e *configError) Hint() string { return e.fix }

// IsConfig makes it a mistake of the user's, for the exit status.
func (e *configError) IsConfig() bool { return true }

const maxConfigFile = 1 << 20

// readConfig reads the file of that name and checks that each key is known and of the right kind.
func readConfig(name string) (*configFile, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, &command.ConfigError{Err: err, Fix: command.Hint(err)}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
	if err != nil {
		return nil, &command.ConfigError{Err: err, Fix: command.Hint(err)}
	}
	if len(text) > maxConfigFile {
		return nil, &configError{file: name, problem: "larger than 1 MiB", fix: "a config file is a few lines: is this the right file?"}
	}
	return parseConfig(name, text)
}

func parseConfig(name string, text []byte) (*configFile, error) {
	c := &configFile{name: name}
	decoder := toml.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(c)
	var unknown *toml.StrictMissingError
	var broken *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		return nil, unknownKey(name, &unknown.Errors[0])
	case errors.As(err, &broken):
		line, _ := broken.Position()
		if kind := kindOf(broken.Key()); kind != "" && strings.Contains(broken.Error(), "cannot decode") {
			key := broken.Key()
			return nil, &configError{file: name, line: line, problem: fmt.Sprintf("%s is not %s", key[len(key)-1], kind), fix: "write " + exampleOf[kind]}
		}
		return nil, &configError{file: name, line: line, problem: strings.TrimPrefix(broken.Error(), "toml: "), fix: "the file is TOML (https://toml.io): texts stand in quotes, lists in brackets; docs/config.md has all keys"}
	case err != nil:
		return nil, &configError{file: name, problem: strings.TrimPrefix(err.Error(), "toml: "), fix: "the file is TOML (https://toml.io)"}
	}
	c.lines = linesOf(text)
	return c, nil
}

// unknownKey says which key was probably meant.
func unknownKey(file string, e *toml.DecodeError) error {
	line, _ := e.Position()
	key := e.Key()
	last := key[len(key)-1]
	section, known := sectionOf(reflect.TypeFor[configFile](), key[:len(key)-1])
	in := ""
	if section != "" {
		in = " in " + section
	}
	fix := "known are " + strings.Join(known, ", ")
	if near := options.Nearest(last, known); near != "" {
		fix = fmt.Sprintf("did you mean %s?", near)
	} else if where := sectionsWith(reflect.TypeFor[configFile](), "", last); len(where) > 0 {
		fix = fmt.Sprintf("%s belongs to %s", last, strings.Join(where, " or "))
	}
	return &configError{file: file, line: line, problem: fmt.Sprintf("unknown key %q%s", last, in), fix: fix}
}

const (
	kindText   = "a text"
	kindTexts  = "a list of texts"
	kindNumber = "a number"
	kindSwitch = "true or false"
	kindTable  = "a table"
	kindTables = "a list of tables"
)

// exampleOf shows how values of each kind are written.
var exampleOf = map[string]string{
	kindText: `it in quotes, as in "text"`, kindTexts: `it in brackets, as in ["text", "text"]`, kindNumber: "it without quotes, as in 100",
	kindSwitch: "true or false, without quotes", kindTable: "it as [name], with its keys in the lines below", kindTables: "it as [[name]], with its keys in the lines below",
}

// kindOf says what the value of a key has to be; empty if there is no such key.
func kindOf(key []string) string {
	t := reflect.TypeFor[configFile]()
	for n, part := range key {
		found := false
		for _, f := range configKeys(t) {
			if found = f.Tag.Get("toml") == part; !found {
				continue
			}
			t = f.Type
			break
		}
		if !found {
			return ""
		}
		if t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct && n < len(key)-1 {
			t = t.Elem()
		}
	}
	return kindOfType(t)
}

func kindOfType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return kindSwitch
	case reflect.Int, reflect.Uint32:
		return kindNumber
	case reflect.Struct:
		return kindTable
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Struct {
			return kindTables
		}
		return kindTexts
	}
	return kindText
}

// sectionOf names the table at path, as users write it, and its keys.
func sectionOf(t reflect.Type, path []string) (name string, keys []string) {
	for n, part := range path {
		for _, f := range configKeys(t) {
			if f.Tag.Get("toml") == part {
				t = f.Type
				name = "[" + strings.Join(path[:n+1], ".") + "]"
				if t.Kind() == reflect.Slice {
					t, name = t.Elem(), "["+name+"]"
				}
				break
			}
		}
	}
	for _, f := range configKeys(t) {
		keys = append(keys, f.Tag.Get("toml"))
	}
	return name, keys
}

// sectionsWith are the tables below t that have the key.
func sectionsWith(t reflect.Type, path, key string) (where []string) {
	for _, f := range configKeys(t) {
		name := f.Tag.Get("toml")
		switch {
		case name == key && path == "":
			where = append(where, "the top of the file")
		case name == key:
			where = append(where, path)
		}
		below, left, right := f.Type, "[", "]"
		if below.Kind() == reflect.Slice {
			below, left, right = below.Elem(), "[[", "]]"
		}
		if below.Kind() == reflect.Struct {
			where = append(where, sectionsWith(below, left+strings.Trim(strings.Trim(path, "[]")+"."+name, ".")+right, key)...)
		}
	}
	return where
}

// configKeys are the fields of a table that stand in the file, those of embedded structs too.
func configKeys(t reflect.Type) (fields []reflect.StructField) {
	for f := range t.Fields() {
		switch {
		case f.Anonymous:
			fields = append(fields, configKeys(f.Type)...)
		case f.Tag.Get("toml") != "":
			fields = append(fields, f)
		}
	}
	return fields
}

// linesOf finds where keys and tables stand.
func linesOf(text []byte) map[string]int {
	lines := make(map[string]int)
	seen := make(map[string]int) // arrays of tables, by path
	table := ""
	var p unstable.Parser
	p.Reset(text)
	for p.NextExpression() {
		e := p.Expression()
		path, line := "", 0
		if e.Kind == unstable.KeyValue {
			path = table
		}
		var parts []string
		for it := e.Key(); it.Next(); {
			k := it.Node()
			parts = append(parts, string(k.Data))
			line = bytes.Count(text[:k.Raw.Offset], []byte("\n")) + 1
		}
		for n, part := range parts {
			if path != "" {
				path += "."
			}
			path += part
			if e.Kind == unstable.ArrayTable && n == len(parts)-1 {
				seen[path]++
			}
			if count := seen[path]; count > 0 && e.Kind != unstable.KeyValue {
				path = fmt.Sprintf("%s[%d]", path, count-1)
			}
		}
		if e.Kind != unstable.KeyValue {
			table = path
		}
		if lines[path] == 0 {
			lines[path] = line
		}
	}
	return lines
}

// wrong is a mistake at path, such as site[0].cert, or at the nearest thing around it that is in the file.
func (c *configFile) wrong(path, problem, fix string) error {
	e := &configError{file: c.name, problem: problem, fix: fix}
	for e.line = c.lines[path]; e.line == 0 && path != ""; e.line = c.lines[path] {
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return e
}
