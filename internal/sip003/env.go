// Package sip003 makes a program a plugin of shadowsocks (SIP003): what shadowsocks tells it through the environment,
// and an end when shadowsocks has gone.
//
// Bind every address of Env.Listen to its own family ("tcp6", "tcp4"): shadowsocks asks for both "::" and "0.0.0.0",
// and a dual-stack "::" leaves no room for the other.
package sip003

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
)

// Env is what shadowsocks tells its plugin.
type Env struct {
	Listen  []string // host:port of each address to listen on, one at least; more than one only on a server
	Dial    string   // host:port to dial
	Options string   // the option string, empty if there is none
}

// envError is an environment that shadowsocks would not make.
type envError struct {
	problem, hint string
}

func (e *envError) Error() string { return e.problem }

// Hint says what to do about it.
func (e *envError) Hint() string { return e.hint }

var names = []string{"SS_REMOTE_HOST", "SS_REMOTE_PORT", "SS_LOCAL_HOST", "SS_LOCAL_PORT"}

// FromEnvironment returns what shadowsocks says, or nil and no error where the program is not started as a plugin: then
// none of the four SS_* addresses is set. An empty variable counts as not set. lookup is os.LookupEnv.
//
// The error, where only some are set or one makes no sense, has a Hint() string.
func FromEnvironment(lookup func(string) (string, bool), server bool) (*Env, error) {
	var missing, present []string
	value := make(map[string]string)
	for _, name := range names {
		if v, _ := lookup(name); v != "" {
			value[name] = v
			present = append(present, name)
		} else {
			missing = append(missing, name)
		}
	}
	if present == nil {
		return nil, nil
	}
	if missing != nil {
		return nil, &envError{
			fmt.Sprintf("shadowsocks plugin: missing %s next to %s", join(missing), join(present)),
			fmt.Sprintf("unset %s to use the command line, or let shadowsocks start this as its plugin", join(present)),
		}
	}

	remote, err := addresses("SS_REMOTE", value, server)
	if err != nil {
		return nil, err
	}
	local, err := addresses("SS_LOCAL", value, false)
	if err != nil {
		return nil, err
	}
	options, _ := lookup("SS_PLUGIN_OPTIONS")
	if server {
		return &Env{Listen: remote, Dial: local[0], Options: options}, nil
	}
	return &Env{Listen: local, Dial: remote[0], Options: options}, nil
}

// addresses joins the host and the port of prefix. A list holds several hosts with "|" between them.
func addresses(prefix string, value map[string]string, list bool) ([]string, error) {
	portName := prefix + "_PORT"
	port, err := strconv.ParseUint(value[portName], 10, 16)
	if err != nil || port == 0 {
		return nil, &envError{
			fmt.Sprintf("%s: %q is not a port", portName, value[portName]),
			"write a number from 1 to 65535",
		}
	}

	hostName := prefix + "_HOST"
	hosts := []string{value[hostName]}
	if list {
		hosts = strings.Split(value[hostName], "|")
	}
	var out []string
	for _, text := range hosts {
		host, ok := parseHost(strings.TrimSpace(text))
		if !ok {
			return nil, &envError{
				fmt.Sprintf("%s: %q is not a host", hostName, text),
				"write a name, an IPv4 or an IPv6 address, and the port in " + portName,
			}
		}
		out = append(out, net.JoinHostPort(host, strconv.FormatUint(port, 10)))
	}
	return out, nil
}

// parseHost takes a name or an address, IPv6 with or without brackets, and returns it without.
func parseHost(s string) (host string, ok bool) {
	if inner, found := strings.CutPrefix(s, "["); found {
		if s, found = strings.CutSuffix(inner, "]"); !found || !strings.Contains(s, ":") {
			return "", false
		}
	}
	if s == "" || strings.ContainsAny(s, "[]|/") {
		return "", false
	}
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
		return "", false
	}
	if strings.Contains(s, ":") {
		if _, err := netip.ParseAddr(s); err != nil {
			return "", false
		}
	}
	return s, true
}

func join(names []string) string {
	if len(names) == 1 {
		return names[0]
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " and " + names[last]
}
