package localproxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// hearHTTP reads on to a request that gets a connection. Most programs send the first without a password, and once
// more with it when they are told (RFC 9110, section 11.7.1).
func (d *dialogue) hearHTTP() (*asking, error) {
	told := false
	for {
		r, err := http.ReadRequest(d.in)
		if err != nil && told {
			return nil, fmt.Errorf("http proxy request: login: none came when it was asked for: %w", d.headError(err))
		}
		if err != nil {
			return nil, fmt.Errorf("http proxy request: %w", d.headError(err))
		}
		target, err := requestTarget(r)
		if err != nil {
			return nil, fmt.Errorf("http proxy request: %w", err)
		}
		if d.layer.isKnown(r) {
			return d.asking(r, target), nil
		}
		if err := d.askLogin(r); err != nil {
			return nil, fmt.Errorf("http proxy request: %w", err)
		}
		told = true
	}
}

// headError is err, of net/http, in the words of this package: what a parser says quotes what came, a password too.
func (d *dialogue) headError(err error) error {
	switch {
	case d.source.err != nil && err != io.EOF: // in the middle of the head
		return unexpected(d.source.err)
	case d.source.err != nil:
		return err
	case d.source.left == 0:
		return refuseHTTP(http.MethodGet, http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("it is longer than %d bytes", maxHead))
	}
	return refuseHTTP(http.MethodGet, http.StatusBadRequest, "it is not HTTP/1.1")
}

// requestTarget is where r wants to go: a CONNECT to host:port (RFC 9112, section 3.2.3), or any other method with an
// http:// URL (section 3.2.2). What a web page can make a browser send here, in the belief that a web server is
// there, has neither.
func requestTarget(r *http.Request) (string, error) {
	host, port := r.URL.Hostname(), r.URL.Port()
	switch {
	case r.ProtoMajor != 1:
		return "", refuseHTTP(r.Method, http.StatusHTTPVersionNotSupported, "it is not HTTP/1.1")
	case r.Method == http.MethodConnect:
		if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
			return "", refuseHTTP(r.Method, http.StatusBadRequest, "a CONNECT has no body")
		}
		var err error
		if host, port, err = net.SplitHostPort(r.RequestURI); err != nil {
			return "", refuseHTTP(r.Method, http.StatusBadRequest, "a CONNECT names host:port, or [ipv6]:port")
		}
	case r.URL.Scheme == "":
		return "", refuseHTTP(r.Method, http.StatusBadRequest, "this is a proxy and no web server: a request needs CONNECT, or a URL with http://")
	case r.URL.Scheme != "http":
		return "", refuseHTTP(r.Method, http.StatusNotImplemented, "of the schemes, only http is served without CONNECT")
	case r.URL.User != nil:
		return "", refuseHTTP(r.Method, http.StatusBadRequest, "a user in the URL is not passed on") // RFC 9110, section 4.2.4
	case port == "":
		port = "80"
	}
	target, err := parseTarget(host, port)
	if err != nil {
		return "", refuseHTTP(r.Method, http.StatusBadRequest, err.Error())
	}
	return target, nil
}

// isKnown checks Proxy-Authorization (RFC 7617, section 2), if anybody is asked for it.
func (l *Layer) isKnown(r *http.Request) bool {
	if !l.asksLogin() {
		return true
	}
	// Its form is that of Authorization, which net/http reads.
	given := http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}
	user, password, ok := given.BasicAuth()
	return ok && l.isLogin(user, password)
}

const challenge = "Proxy-Authenticate: Basic realm=\"raimonc\", charset=\"UTF-8\"\r\n"

// askLogin keeps the connection for the next try, unless r has a body, which may be long, or the program wants to leave.
func (d *dialogue) askLogin(r *http.Request) error {
	const text = "this proxy asks for a user and a password"
	if r.Close || !r.ProtoAtLeast(1, 1) || r.ContentLength != 0 {
		return &refusal{err: errLogin, hint: loginHint, answer: httpAnswer(r.Method, http.StatusProxyAuthRequired, text, challenge+"Connection: close\r\n")}
	}
	_, err := d.conn.Write(httpAnswer(r.Method, http.StatusProxyAuthRequired, text, challenge))
	return err
}

// asking is r, waiting for its answer: for a CONNECT that is ours, for other requests that of the target.
func (d *dialogue) asking(r *http.Request, target string) *asking {
	a := &asking{bare: d.conn, target: target}
	a.no = func(why reason) []byte {
		return httpAnswer(r.Method, why.status, target+": "+why.text, "Connection: close\r\n")
	}
	if r.Method == http.MethodConnect {
		a.Conn, a.yes = d.rest(), []byte("HTTP/1.1 200 Connection established\r\n\r\n")
	} else {
		a.Conn = d.forward(r)
	}
	return a
}

// refuseHTTP answers a request that gets no connection. The answer says nothing of CORS: no page of another origin may read it.
func refuseHTTP(method string, status int, text string) error {
	return &refusal{err: errors.New(text), answer: httpAnswer(method, status, text, "Connection: close\r\n")}
}

// httpAnswer is a whole answer with a line for people; fields are header lines with their ends.
func httpAnswer(method string, status int, text, fields string) []byte {
	var b strings.Builder
	text = "raimonc: " + text + "\n"
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	fmt.Fprintf(&b, "Content-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nContent-Length: %d\r\n%s\r\n", len(text), fields)
	if method != http.MethodHead {
		b.WriteString(text)
	}
	return []byte(b.String())
}
