package tunnel

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/net/http/httpguts"
)

const (
	// maxProxyHead is how many bytes the answer of a proxy may have until the stream begins.
	maxProxyHead = 64 << 10
	// refusalPage is how long the page that comes with a refusal is worth waiting for.
	refusalPage = time.Second
)

// ProxyError says what went wrong on the way through a proxy. It holds neither user nor password.
type ProxyError struct {
	Proxy       string // its address
	Connected   bool   // it had said that it was connected to the other side: Err came through it, or from it
	Credentials bool   // user and password were there to be sent
	Err         error  // a *ProxyRefusal where it answered in HTTP
}

func (e *ProxyError) Error() string {
	if e.Connected {
		return fmt.Sprintf("through proxy %s: %v", e.Proxy, e.Err)
	}
	return fmt.Sprintf("proxy %s: %v", e.Proxy, e.Err)
}

func (e *ProxyError) Unwrap() error { return e.Err }

// ProxyRefusal is the answer of an HTTP proxy that does not connect. All of it is short and printable.
type ProxyRefusal struct {
	Status  int
	Line    string   // such as "403 Forbidden"
	Schemes []string // with a 407: the kinds of authentication that it takes (RFC 9110, section 11.7.1)
	Title   string   // of the page that came with it; empty with a 407
}

func (e *ProxyRefusal) Error() string {
	switch {
	case len(e.Schemes) > 0:
		return e.Line + " (it takes " + strings.Join(e.Schemes, ", ") + ")"
	case e.Title != "":
		return fmt.Sprintf("%s (its page: %q)", e.Line, e.Title)
	}
	return e.Line
}

// askHTTP sends head, which is a CONNECT request (RFC 9110, section 9.3.6), over c and reads the head of the answer.
func askHTTP(c Conn, head []byte) (Conn, error) {
	// Some proxies refuse who connects before they have read anything.
	_, writeErr := c.Write(head)
	limited := &io.LimitedReader{R: c, N: maxProxyHead}
	r := bufio.NewReader(limited)
	for {
		answer, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
		switch {
		case err != nil && writeErr != nil:
			return nil, writeErr
		case err != nil:
			return nil, answerError(err, maxProxyHead-limited.N)
		case answer.StatusCode/100 == 2:
			// Content-Length and Transfer-Encoding mean nothing here: the stream begins after the head.
			return withPending(c, r), nil
		case answer.StatusCode/100 == 1 && answer.StatusCode != http.StatusSwitchingProtocols:
			continue
		}
		c.SetReadDeadline(time.Now().Add(refusalPage)) // nobody reads from c after that
		return nil, newRefusal(answer)
	}
}

// connectHead is one slice, so that it is one write and, with TLS, one record.
func connectHead(address, userAgent string, user *url.Userinfo) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", address, address)
	if userAgent != "" {
		fmt.Fprintf(&b, "User-Agent: %s\r\n", userAgent)
	}
	if user != nil {
		password, _ := user.Password()
		credentials := user.Username() + ":" + password
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(credentials)))
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// answerError keeps errors of the connection and replaces those of the parser, which quote up to
// 64 KiB of what the proxy sent. read is how many bytes that was.
func answerError(err error, read int64) error {
	var netErr net.Error
	switch {
	case read == maxProxyHead:
		return fmt.Errorf("the head of the answer has more than %d bytes", maxProxyHead)
	case errors.Is(err, io.ErrUnexpectedEOF) && read == 0:
		return ErrNoAnswer
	case errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &netErr):
		return fmt.Errorf("read answer: %w", err)
	default:
		return errors.New("the answer is not HTTP/1")
	}
}

func newRefusal(answer *http.Response) *ProxyRefusal {
	e := &ProxyRefusal{Status: answer.StatusCode, Line: brief(answer.Status, 200)}
	if e.Status == http.StatusProxyAuthRequired {
		e.Schemes = authSchemes(answer.Header["Proxy-Authenticate"])
	} else {
		e.Title = pageTitle(answer)
	}
	return e
}

// authSchemes are the names of the first few challenges (RFC 9110, section 11.3), of which a field may have several.
func authSchemes(fields []string) []string {
	const most, longest = 8, 32
	var schemes []string
	for _, field := range fields {
		quoted := false
		pieces := strings.FieldsFunc(field, func(r rune) bool {
			quoted = quoted != (r == '"')
			return r == ',' && !quoted
		})
		for _, piece := range pieces {
			scheme, parameter, _ := strings.Cut(strings.TrimSpace(piece), " ")
			isParameter := strings.HasPrefix(strings.TrimSpace(parameter), "=") // realm = "x"; realm="x" is no token
			known := slices.ContainsFunc(schemes, func(s string) bool { return strings.EqualFold(s, scheme) })
			if httpguts.ValidHeaderFieldName(scheme) && len(scheme) <= longest && !isParameter && !known && len(schemes) < most {
				schemes = append(schemes, scheme)
			}
		}
	}
	return schemes
}

var titlePattern = regexp.MustCompile(`(?is)<title[^>]*>([^<]*)`)

// pageTitle is what the page that came with a refusal calls itself; empty if it is none, or does not come soon.
func pageTitle(answer *http.Response) string {
	kind, _, err := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if err != nil || kind != "text/html" || answer.Header.Get("Content-Encoding") != "" {
		return ""
	}
	page, _ := io.ReadAll(answer.Body) // a page that is cut may have a title
	title := titlePattern.FindSubmatch(page)
	if title == nil {
		return ""
	}
	return brief(html.UnescapeString(string(title[1])), 80)
}

// brief makes what a stranger has sent fit for a terminal: one line of at most limit characters.
func brief(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r) || r == unicode.ReplacementChar:
			return -1
		}
		return r
	}, text)
	runes := []rune(strings.Join(strings.Fields(text), " "))
	if len(runes) > limit {
		return string(runes[:limit]) + "…"
	}
	return string(runes)
}
