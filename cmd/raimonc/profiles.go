package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"raimon/internal/client"
	"raimon/internal/command"
	"raimon/internal/configfile"
	"raimon/internal/options"
	"raimon/tunnel"
)

// defaultsTable is the table of the config file that is no tunnel: its options hold for all.
const defaultsTable = "defaults"

// profiles is what a config file says: tunnels by name, each in one line or as a table of options.
//
//	ssh = "127.0.0.1:2222 -> wss://edge.example.com/ssh"
//
//	[db]
//	listen = "127.0.0.1:5432"
//	remote = "wss://edge.example.com/db"
//	pool = 2
//
//	[defaults]
//	token = "file:/home/me/.config/raimon/token"
type profiles struct {
	file     *configfile.File
	defaults []options.Setting
	logLevel string // empty: not given
	tunnels  []*profile
	warnings []string
}

// profile is one tunnel.
type profile struct {
	name    string
	listen  []string
	remote  string
	options *options.Options

	without []string // switches that it says are off
}

// readProfiles reads the file of that name and checks all that can be checked without opening other files.
func readProfiles(name string) (*profiles, error) {
	all, err := parseProfiles(configfile.Read(name))
	if err == nil && all.hasSecrets() && othersRead(name) {
		all.warnings = append(all.warnings, name+": it has a secret in it, and other users of this machine may read it: chmod 600, or put the secret into a file of its own")
	}
	return all, err
}

// hasSecrets tells whether a secret stands in the file itself, not in another that the file names.
func (all *profiles) hasSecrets() bool {
	return slices.ContainsFunc(all.tunnels, func(p *profile) bool {
		proxy, err := url.Parse(p.options.Proxy)
		return err == nil && proxy.User != nil || slices.ContainsFunc([]string{p.options.Token, p.options.ProxyAuth, p.options.SocksAuth}, func(value string) bool {
			return value != "" && !strings.HasPrefix(value, "file:") && !strings.HasPrefix(value, "command:")
		})
	})
}

// othersRead tells whether users may read the file of that name to whom it does not belong, as far as its mode says.
func othersRead(name string) bool {
	info, err := os.Stat(name)
	return err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o044 != 0
}

func parseProfiles(file *configfile.File, err error) (*profiles, error) {
	if err != nil {
		return nil, err
	}
	table, err := file.Table()
	if err != nil {
		return nil, err
	}
	if _, ok := table["site"].([]any); ok {
		return nil, file.Wrong("site", "this is a file of raimons, the edge", "raimons -config "+file.Name+" runs it; one of raimonc has a line or a table for each tunnel")
	}
	all := &profiles{file: file}
	if err := all.readDefaults(table[defaultsTable]); err != nil {
		return nil, err
	}
	delete(table, defaultsTable)
	for _, name := range byLine(file, "", table) {
		p, err := all.read(name, table[name])
		if err != nil {
			return nil, err
		}
		all.tunnels = append(all.tunnels, p)
	}
	if len(all.tunnels) == 0 {
		return nil, file.Wrong("", "there is no tunnel in it", `add a line such as ssh = "127.0.0.1:2222 -> wss://edge.example.com/ssh"`)
	}
	return all, all.checkAddresses()
}

// byLine are the keys of a table in the order of the file.
func byLine(file *configfile.File, path string, table map[string]any) []string {
	var keys []string
	for key := range table {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(file.Line(path+a), file.Line(path+b)), strings.Compare(a, b))
	})
	return keys
}

// readDefaults reads the options that hold for all tunnels that do not say otherwise.
func (all *profiles) readDefaults(value any) error {
	if value == nil {
		return nil
	}
	table, ok := value.(map[string]any)
	if !ok {
		return all.file.Wrong(defaultsTable, defaultsTable+" is not a table", "write it as ["+defaultsTable+"], with its keys in the lines below")
	}
	settings, err := all.settings(defaultsTable, table, nil)
	if err != nil {
		return err
	}
	for _, s := range settings {
		if s.Key == "loglevel" {
			all.logLevel = s.Value
		} else {
			all.defaults = append(all.defaults, s)
		}
	}
	// The tunnels leave out what does not fit them; what no tunnel could take is wrong here.
	if _, err := options.ParseSettings(options.Client, append(slices.Clone(settings), fitting...)); err != nil {
		return all.about(defaultsTable, err)
	}
	return nil
}

// fitting is what a tunnel says for which every default has a meaning.
var fitting = []options.Setting{{Key: "ws"}, {Key: "host", Value: "a.example"}, {Key: "path", Value: "/"}, {Key: "tls"}, {Key: "sni", Value: "a.example"}, {Key: "socks"}}

// own are the keys of a tunnel that are no options.
var own = []string{"listen", "remote"}

// read reads the tunnel of that name.
func (all *profiles) read(name string, value any) (*profile, error) {
	p := &profile{name: name}
	var settings []options.Setting
	switch value := value.(type) {
	case string:
		listen, remote, err := options.Short(value)
		if err != nil {
			return nil, all.file.Wrong(name, err.Error(), fmt.Sprintf(`write %s = "127.0.0.1:2222 -> wss://edge.example.com/ssh"; for options, make it a table: [%s]`, name, name))
		}
		p.listen, p.remote = []string{listen}, remote
	case map[string]any:
		var err error
		if settings, err = all.settings(name, value, p); err != nil {
			return nil, err
		}
	default:
		return nil, all.file.Wrong(name, name+" is neither a line nor a table",
			fmt.Sprintf(`write %s = "127.0.0.1:2222 -> wss://edge.example.com/ssh", or [%s] with listen and remote below it`, name, name))
	}
	switch {
	case name == "":
		return nil, all.file.Wrong(name, "a tunnel has no name", `write ssh = "127.0.0.1:2222 -> wss://edge.example.com/ssh", where ssh is the name`)
	case len(p.listen) == 0 && p.remote == "" && options.Nearest(name, []string{defaultsTable}) != "":
		return nil, all.file.Wrong(name, name+": neither listen nor remote is given", "did you mean ["+defaultsTable+"]?")
	case len(p.listen) == 0:
		return nil, all.file.Wrong(name, name+": listen is missing", `add listen = "127.0.0.1:2222", the address for programs of this machine`)
	case p.remote == "":
		return nil, all.file.Wrong(name, name+": remote is missing", `add remote = "wss://edge.example.com/ssh", the address of the edge`)
	}
	return p, all.complete(p, settings)
}

// complete adds what the addresses say, and the defaults, and makes the options.
func (all *profiles) complete(p *profile, settings []options.Setting) (err error) {
	if p.remote, settings, err = options.Remote(p.remote, settings); err != nil {
		return all.about(p.name, err)
	}
	for n := range p.listen {
		if p.listen[n], settings, err = options.Listen(p.listen[n], settings); err != nil {
			return all.about(p.name, err)
		}
	}
	for _, key := range p.without {
		if has(settings, key) {
			return all.file.Wrong(p.name+"."+key, key+" is false, while the URL says "+key, "remove this line, or write another scheme in the URL: wss, ws, tls or tcp, or no socks://")
		}
	}
	own := settings // of a default that is a list, each item counts
	for _, s := range all.defaults {
		needs := options.Needs(options.Client, s.Key)
		if !has(own, s.Key) && !slices.Contains(p.without, s.Key) && (needs == "" || has(settings, needs)) {
			settings = append(settings, s)
		}
	}
	for key, addresses := range map[string][]string{"listen": p.listen, "remote": {p.remote}} {
		for _, address := range addresses {
			if _, _, err := tunnel.ParseAddress(address); err != nil {
				return all.file.Wrong(p.name+"."+key, err.Error(), "addresses are host:port, [ipv6]:port, :port or unix:/path")
			}
		}
	}
	p.options, err = options.ParseSettings(options.Client, settings)
	if err != nil {
		return all.about(p.name, err)
	}
	for _, warning := range p.options.Warnings {
		all.warnings = append(all.warnings, fmt.Sprintf("%s: %s: %s", all.file.Name, p.name, warning))
	}
	return nil
}

func has(settings []options.Setting, key string) bool {
	return slices.ContainsFunc(settings, func(s options.Setting) bool { return s.Key == key })
}

// settings are the options in a table. Listen and remote go to p, where there is one.
func (all *profiles) settings(name string, table map[string]any, p *profile) (settings []options.Setting, err error) {
	known := options.Keys(options.Client)
	if p != nil {
		known = append(slices.Clone(own), known...)
	}
	for _, key := range byLine(all.file, name+".", table) {
		path := name + "." + key
		switch {
		case !slices.Contains(known, key):
			return nil, all.unknown(path, key, table[key], known)
		case key == "loglevel" && p != nil:
			return nil, all.file.Wrong(path, "loglevel is for all tunnels together", "move it into ["+defaultsTable+"]")
		}
		texts, isSwitch, err := all.texts(path, key, table[key])
		if err != nil {
			return nil, err
		}
		switch {
		case key == "listen":
			p.listen = texts
		case key == "remote" && len(texts) != 1:
			return nil, all.file.Wrong(path, "remote is not a text", `write one address: remote = "wss://edge.example.com/ssh"`)
		case key == "remote":
			p.remote = texts[0]
		case isSwitch != options.IsSwitch(options.Client, key) && isSwitch:
			return nil, all.file.Wrong(path, key+" is not a text", `write it in quotes, as in "text"; many options know "off"`)
		case isSwitch != options.IsSwitch(options.Client, key):
			return nil, all.file.Wrong(path, key+" is not true or false", "write true or false, without quotes")
		case isSwitch && table[key] == false:
			if p != nil {
				p.without = append(p.without, key)
			}
		case options.IsRepeated(options.Client, key):
			for _, text := range texts {
				settings = append(settings, options.Setting{Key: key, Value: text})
			}
		case len(texts) > 1 && !options.IsList(options.Client, key):
			return nil, all.file.Wrong(path, key+" is one text, and no list", "write one of these, in quotes and without brackets")
		default:
			settings = append(settings, options.Setting{Key: key, Value: strings.Join(texts, ",")})
		}
	}
	return settings, nil
}

// unknown says which key was probably meant.
func (all *profiles) unknown(path, key string, value any, known []string) error {
	fix := "docs/client.md has all keys"
	_, isTable := value.(map[string]any)
	switch near := options.Nearest(key, known); {
	case isTable:
		fix = fmt.Sprintf("if that is a tunnel, it stands at the top of the file: [%s]", key)
	case slices.Contains(known, "client-"+key):
		fix = fmt.Sprintf("did you mean client-%s?", key)
	case near != "":
		fix = fmt.Sprintf("did you mean %s?", near)
	case slices.Contains(options.Keys(options.Server), key):
		fix = "it is for raimons: leave it away here"
	}
	return all.file.Wrong(path, fmt.Sprintf("unknown key %q", key), fix)
}

// texts makes an option of a value: a text, a number, a list of texts, or true and false.
func (all *profiles) texts(path, key string, value any) (texts []string, isSwitch bool, err error) {
	switch value := value.(type) {
	case string:
		return []string{value}, false, nil
	case int64:
		return []string{strconv.FormatInt(value, 10)}, false, nil
	case float64:
		return []string{strconv.FormatFloat(value, 'f', -1, 64)}, false, nil
	case bool:
		return nil, true, nil
	case []any:
		for _, item := range value {
			text, ok := item.(string)
			if !ok {
				return nil, false, all.file.Wrong(path, "the list has something else than texts in it", `write it as ["text", "text"]`)
			}
			texts = append(texts, text)
		}
		return texts, false, nil
	}
	return nil, false, all.file.Wrong(path, key+" is neither a text, a number nor a list of texts", `write it in quotes, as in "text", or several in brackets, as in ["text", "text"]`)
}

// about puts the mistake of an option where it stands in the file.
func (all *profiles) about(name string, err error) error {
	var option *options.Error
	if !errors.As(err, &option) {
		return all.file.Wrong(name, err.Error(), command.Hint(err))
	}
	return all.file.Wrong(all.place(name, option.Option), fmt.Sprintf("%s: %s", cmp.Or(option.Option, name), option.Problem), inFile(option.Hint))
}

// place is where the option of a tunnel stands, which may be among the defaults.
func (all *profiles) place(name, option string) string {
	if path := defaultsTable + "." + option; all.file.Line(name+"."+option) == 0 && all.file.Line(path) != 0 {
		return path
	}
	return name + "." + option
}

// optionInHint is an option as a hint has it for a command line.
var optionInHint = regexp.MustCompile(`\b([a-zA-Z-]+)=((?:Name: )?(?:<[^>]*>|[^\s;,()]+))(;?)`)

// inFile writes the options of a hint as a config file has them.
func inFile(hint string) string {
	return optionInHint.ReplaceAllStringFunc(hint, func(option string) string {
		m := optionInHint.FindStringSubmatch(option)
		between := ""
		if m[3] != "" {
			between = " and " // what a semicolon divides goes on two lines
		}
		return fmt.Sprintf("%s = %q%s", m[1], m[2], between)
	})
}

// checkAddresses refuses two tunnels on one address.
func (all *profiles) checkAddresses() error {
	type owned struct{ address, by string }
	var taken []owned
	for _, p := range all.tunnels {
		for _, address := range p.listen {
			for _, other := range taken {
				if collide(address, other.address) && (other.by != p.name || address == other.address) {
					return all.file.Wrong(p.name+".listen", fmt.Sprintf("%s listens on %s already", other.by, other.address), "each tunnel has an address of its own")
				}
			}
			taken = append(taken, owned{address, p.name})
		}
	}
	return nil
}

// collide tells whether nobody can listen on both. Where only the system knows, which it may of names and of all
// addresses of IPv6, it is asked at the start.
func collide(a, b string) bool {
	if a == b {
		return true
	}
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" || strings.HasPrefix(a, "unix:") || strings.HasPrefix(b, "unix:") {
		return false
	}
	if hostA == "" || hostB == "" {
		return true
	}
	ipA, ipB := literal(hostA), literal(hostB)
	return ipA.IsValid() && ipB.IsValid() && ipA.Is4() == ipB.Is4() && (ipA == ipB || ipA.IsUnspecified() || ipB.IsUnspecified())
}

// literal is the address that host is, if it is one.
func literal(host string) netip.Addr {
	if strings.EqualFold(host, "localhost") {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}) // as package net listens there
	}
	ip, _ := netip.ParseAddr(host)
	return ip.Unmap()
}

// optionInError is how an error that is about an option begins.
var optionInError = regexp.MustCompile(`^option "([^"]+)": `)

// build makes the tunnels, with what their options name.
func (all *profiles) build(ctx context.Context, job *command.Job) ([]*client.Tunnel, error) {
	var tunnels []*client.Tunnel
	for _, p := range all.tunnels {
		t, err := newTunnel(ctx, p.name, p.job(job))
		if err != nil {
			return nil, all.aboutBuild(p, err)
		}
		tunnels = append(tunnels, t)
	}
	return tunnels, nil
}

// job is what p asks for, as a part of whole.
func (p *profile) job(whole *command.Job) *command.Job {
	own := *whole
	own.Listen, own.Remote, own.Options, own.Log = p.listen, p.remote, p.options, whole.Log.With("tunnel", p.name)
	return &own
}

// aboutBuild puts the mistake that newTunnel has found where it stands in the file.
func (all *profiles) aboutBuild(p *profile, err error) error {
	path, problem := p.name, err.Error()
	if m := optionInError.FindStringSubmatch(problem); m != nil {
		path, problem = all.place(p.name, m[1]), m[1]+problem[len(m[0])-2:]
	}
	return all.file.Wrong(path, problem, inFile(command.Hint(err)))
}

// aboutListener puts the mistake of a listen address where it stands in the file.
func (all *profiles) aboutListener(err error, fix string) error {
	var listen *client.ListenError
	if !errors.As(err, &listen) {
		return err
	}
	return all.file.Wrong(listen.Tunnel+".listen", err.Error(), fix)
}
