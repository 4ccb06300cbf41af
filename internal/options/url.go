package options

import (
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
)

// schemes are the forms in which the URL of an edge comes, with the port that stands for none.
var schemes = map[string]struct {
	port    string
	ws, tls bool
}{
	"wss": {"443", true, true}, "ws": {"80", true, false}, "tls": {"443", false, true}, "tcp": {"", false, false},
}

// Remote reads the address of an edge. It may be a URL, such as wss://edge.example.com/ssh: then it becomes
// host:port, and what the URL says is added to settings, unless they say it otherwise. Its error is an *Error.
func Remote(remote string, settings []Setting) (string, []Setting, error) {
	if !strings.Contains(remote, "://") {
		return remote, settings, nil
	}
	u, err := url.Parse(remote)
	if err != nil {
		return "", nil, urlMistake("it is no URL", "write wss://edge.example.com/path")
	}
	scheme, known := schemes[u.Scheme]
	switch {
	case u.Scheme == "https" || u.Scheme == "http":
		return "", nil, urlMistake(u.Scheme+" is no kind of tunnel", "write "+map[string]string{"https": "wss", "http": "ws"}[u.Scheme]+strings.TrimPrefix(remote, u.Scheme))
	case !known:
		return "", nil, urlMistake("its scheme is none of wss, ws, tls and tcp", "write wss://edge.example.com/path")
	case u.User != nil:
		return "", nil, urlMistake("it has a user in it", "an edge asks for a token: leave the user away and add token=")
	case u.Hostname() == "":
		return "", nil, urlMistake("the host is missing", "write wss://edge.example.com/path")
	case u.Fragment != "" || strings.HasSuffix(remote, "#"):
		return "", nil, urlMistake(`it has a "#" in it`, "write %23 for one that belongs to the path")
	case u.Port() == "" && scheme.port == "":
		return "", nil, urlMistake("the port is missing", "write tcp://"+u.Host+":443")
	case !scheme.ws && (u.RequestURI() != "/" || u.RawQuery != ""):
		return "", nil, urlMistake("a tunnel without WebSocket has no path", "leave the path away, or write wss in place of "+u.Scheme)
	}
	return address(u, scheme.port), implied(settings, u, scheme.ws, scheme.tls), nil
}

// implied are settings with what u says beside the address.
func implied(settings []Setting, u *url.URL, ws, tls bool) []Setting {
	var says []Setting
	if ws {
		says = append(says, Setting{"ws", ""}, Setting{"host", u.Host}, Setting{"path", u.RequestURI()})
	}
	if tls {
		says = append(says, Setting{"tls", ""}, Setting{"sni", u.Hostname()})
	}
	all := slices.Clone(settings)
	for _, s := range says {
		if !slices.ContainsFunc(settings, func(given Setting) bool { return given.Key == s.Key }) {
			all = append(all, s)
		}
	}
	return all
}

func address(u *url.URL, port string) string {
	if u.Port() != "" {
		port = u.Port()
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func urlMistake(problem, hint string) error {
	return &Error{Option: "remote", Problem: problem, Hint: hint}
}

// socksScheme stands before a listen address where programs choose their target.
const socksScheme = "socks://"

// Listen reads a listen address, which may say in front that programs choose their target: then that is added to
// settings.
func Listen(listen string, settings []Setting) (string, []Setting, error) {
	rest, found := strings.CutPrefix(listen, socksScheme)
	if !found {
		return listen, settings, nil
	}
	rest = strings.TrimSuffix(rest, "/")
	if strings.Contains(rest, "@") {
		return "", nil, &Error{Option: "listen", Problem: "it has a user in it", Hint: "leave the user away and add socks-auth="}
	}
	if !slices.ContainsFunc(settings, func(given Setting) bool { return given.Key == "socks" }) {
		settings = append(slices.Clone(settings), Setting{"socks", ""})
	}
	return rest, settings, nil
}

// Short takes "listen -> remote" apart, as a config file has it in one line. More words than that are options.
func Short(text string) (listen, remote string, err error) {
	listen, remote, found := strings.Cut(text, "->")
	listen, remote = strings.TrimSpace(listen), strings.TrimSpace(remote)
	if !found || listen == "" || remote == "" || strings.ContainsAny(listen+remote, " \t") {
		return "", "", errors.New(`it is not of the form "listen -> remote"`)
	}
	return listen, remote, nil
}
