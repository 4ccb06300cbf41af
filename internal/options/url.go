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
	if strings.Contains(remote, ";") {
		return "", nil, urlMistake(glued, gluedHint)
	}
	if !strings.Contains(remote, "://") {
		return remote, settings, checkPlain(remote)
	}
	u, err := url.Parse(remote)
	if err != nil {
		return "", nil, urlMistake("it is no URL"+whyNot(remote, err), "write wss://edge.example.com/path")
	}
	scheme, known := schemes[u.Scheme]
	switch {
	case u.User != nil:
		return "", nil, urlMistake(withUser, withUserHint)
	case u.Scheme == "https" || u.Scheme == "http":
		return "", nil, urlMistake(u.Scheme+" is no kind of tunnel", "write "+map[string]string{"https": "wss", "http": "ws"}[u.Scheme]+strings.TrimPrefix(remote, u.Scheme))
	case !known:
		return "", nil, urlMistake("its scheme is none of wss, ws, tls and tcp", "write wss://edge.example.com/path")
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

// What is said of more than one kind of address.
const (
	glued        = `it has a ";" in it`
	gluedHint    = "options are a word of their own behind the addresses, in quotes: wss://edge.example.com/ssh '<options>'; in a config file they are lines of a table"
	withUser     = "it has a user in it"
	withUserHint = "an edge asks for a token: leave the user away and add token="
)

// checkPlain finds in what is no URL what was probably meant to be one.
func checkPlain(remote string) error {
	switch {
	case !strings.Contains(remote, "/") || strings.HasPrefix(remote, "unix:"):
		return nil
	case strings.Contains(remote, "@"):
		return urlMistake(withUser, withUserHint)
	}
	meant, rest := "wss", remote
	for scheme := range schemes {
		after, found := strings.CutPrefix(remote, scheme)
		if bare := strings.TrimLeft(after, ":/"); found && bare != after {
			meant, rest = scheme, bare
		}
	}
	return urlMistake("it is neither a URL nor host:port", "write "+meant+"://"+rest)
}

// whyNot is what package url says of it, unless that may be a part of a password.
func whyNot(remote string, err error) string {
	var wrong *url.Error
	if !errors.As(err, &wrong) || strings.Contains(remote, "@") {
		return ""
	}
	return ": " + wrong.Err.Error()
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

func listenMistake(problem, hint string) error {
	return &Error{Option: "listen", Problem: problem, Hint: hint}
}

// Listen reads a listen address, which may say in front, with socks://, that programs choose their target: then that is added
// to settings. Its error is an *Error.
func Listen(listen string, settings []Setting) (string, []Setting, error) {
	scheme, rest, isURL := strings.Cut(listen, "://")
	rest = strings.TrimSuffix(rest, "/")
	_, isEdge := schemes[scheme]
	switch {
	case strings.Contains(listen, ";"):
		return "", nil, listenMistake(glued, gluedHint)
	case listen != "" && strings.Trim(listen, "0123456789") == "":
		return "", nil, listenMistake("it is a port without an address", "write 127.0.0.1:"+listen)
	case !isURL || scheme == "unix":
		return listen, settings, nil
	case strings.Contains(rest, "@"):
		return "", nil, listenMistake(withUser, "leave the user away and add socks-auth=")
	case isEdge:
		return "", nil, listenMistake("it is the URL of an edge", "the edge comes second: first the address for programs of this machine, as in 127.0.0.1:2222")
	case scheme != "socks":
		return "", nil, listenMistake("its scheme is not socks", "write socks://"+rest)
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
