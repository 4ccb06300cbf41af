package edge

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxLogField is how much of one field of a request its line keeps.
const maxLogField = 2 << 10

// AccessLog writes a line to w, in one Write, for each request that next has answered: in the Combined Log Format of
// Apache, with the values of the parameters token, access_token and key left out. Requests that next
// never sees, such as those for tunnels, have none. An error of w is for w to tell, as LogFile does.
func AccessLog(w io.Writer, next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		line := &accessLine{ResponseWriter: rw, begin: time.Now()}
		unsaid := http.StatusInternalServerError // of a handler that panics
		defer func() {
			if line.status == 0 {
				line.status = unsaid
			}
			w.Write(line.combined(r))
		}()
		next.ServeHTTP(line, r)
		unsaid = http.StatusOK
	})
}

// accessLine is the answer to one request, as far as its line needs it.
type accessLine struct {
	http.ResponseWriter
	begin  time.Time
	status int
	sent   int64 // bytes of the body
}

// WriteHeader implements http.ResponseWriter.
func (l *accessLine) WriteHeader(status int) {
	if l.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		l.status = status
	}
	l.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (l *accessLine) Write(p []byte) (int, error) {
	if l.status == 0 {
		l.status = http.StatusOK
	}
	n, err := l.ResponseWriter.Write(p)
	l.sent += int64(n)
	return n, err
}

// Hijack implements http.Hijacker. What is sent after it is not counted.
func (l *accessLine) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	c, rw, err := http.NewResponseController(l.ResponseWriter).Hijack()
	if err == nil {
		l.status = http.StatusSwitchingProtocols
	}
	return c, rw, err
}

// Flush implements http.Flusher, which has no place for an error; the next Write has it.
func (l *accessLine) Flush() { l.FlushError() }

// FlushError is for http.ResponseController.
func (l *accessLine) FlushError() error {
	if l.status == 0 {
		l.status = http.StatusOK
	}
	return http.NewResponseController(l.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (l *accessLine) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// combined is the line about r.
func (l *accessLine) combined(r *http.Request) []byte {
	client, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		client = "-" // on a Unix socket
	}
	sent := "-"
	if l.sent > 0 && r.Method != http.MethodHead {
		sent = strconv.FormatInt(l.sent, 10)
	}
	return fmt.Appendf(nil, "%s - - [%s] \"%s %s %s\" %d %s \"%s\" \"%s\"\n",
		logField(client), l.begin.Format("02/Jan/2006:15:04:05 -0700"),
		logField(r.Method), logField(withoutSecrets(r.RequestURI)), logField(r.Proto), l.status, sent,
		logFieldOr(withoutSecrets(r.Referer())), logFieldOr(r.UserAgent()))
}

func logFieldOr(s string) string {
	if s == "" {
		return "-"
	}
	return logField(s)
}

// logField escapes as Apache does, so that a line stays one line and its fields can be told apart.
func logField(s string) string {
	var b strings.Builder
	for n := range len(s) {
		if b.Len() >= maxLogField {
			b.WriteString("...")
			break
		}
		switch c := s[n]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c == '\b':
			b.WriteString(`\b`)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\t':
			b.WriteString(`\t`)
		case c == '\v':
			b.WriteString(`\v`)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// withoutSecrets is a URL without the password, and without the values of parameters that let people in.
func withoutSecrets(raw string) string {
	raw = withoutPassword(raw)
	before, query, found := strings.Cut(raw, "?")
	if !found {
		return raw
	}
	var b strings.Builder
	b.WriteString(before)
	b.WriteByte('?')
	for len(query) > 0 {
		end := strings.IndexAny(query, "&;#")
		parameter, separator := query, ""
		if end >= 0 {
			parameter, separator = query[:end], query[end:end+1]
		}
		query = query[len(parameter)+len(separator):]
		name, _, hasValue := strings.Cut(parameter, "=")
		if hasValue && isSecret(name) {
			parameter = name + "=***"
		}
		b.WriteString(parameter + separator)
	}
	return b.String()
}

func isSecret(name string) bool {
	if plain, err := url.QueryUnescape(name); err == nil {
		name = plain
	}
	switch strings.ToLower(name) {
	case "token", "access_token", "key":
		return true
	}
	return false
}

// withoutPassword leaves out what stands before the @ of an authority.
func withoutPassword(raw string) string {
	scheme, rest, found := strings.Cut(raw, "://")
	if !found || strings.ContainsAny(scheme, "/?#") {
		return raw
	}
	authority := rest
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		authority = rest[:end]
	}
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		return scheme + "://***" + rest[at:]
	}
	return raw
}
