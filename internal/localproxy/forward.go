package localproxy

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httputil"
	"strings"

	"raimon/tunnel"
)

// forward is the connection of a program that sent a request with an http:// URL, as browsers and apt do. What is read
// from it is that request as the target has to see it, and no other: a second one might be for another host. The target
// is told that there is none, says so in its answer, which goes back as it is, and the program connects anew.
func (d *dialogue) forward(r *http.Request) tunnel.Conn {
	d.source.left = math.MaxInt64 // the head is complete
	body := io.Reader(r.Body)
	if r.ContentLength < 0 {
		body = newChunked(r.Body)
	}
	return &oneRequest{Conn: d.conn, request: io.MultiReader(bytes.NewReader(originHead(r)), body, silence{d.in})}
}

// originHead is the head of r for the target itself (RFC 9112, section 3.2.1), without the fields that were for a
// proxy. Its version stays: who speaks HTTP/1.0 must not be answered in chunks. There is no Via (RFC 9110,
// section 7.6.3): what runs here is nothing that a website has to know.
func originHead(r *http.Request) []byte {
	var b bytes.Buffer
	host := strings.TrimSuffix(r.URL.Host, ":")
	fmt.Fprintf(&b, "%s %s HTTP/1.%d\r\nHost: %s\r\n", r.Method, originForm(r), min(r.ProtoMinor, 1), host)
	length := r.Header.Get("Content-Length")
	dropHopByHop(r.Header)
	r.Header.Write(&b) // to memory
	switch {
	case r.ContentLength < 0:
		b.WriteString("Transfer-Encoding: chunked\r\n")
	case r.ContentLength > 0 || length != "":
		fmt.Fprintf(&b, "Content-Length: %d\r\n", r.ContentLength)
	}
	b.WriteString("Connection: close\r\n\r\n")
	return b.Bytes()
}

// originForm is the URL of r without scheme and host, to the letter.
func originForm(r *http.Request) string {
	_, rest, _ := strings.Cut(r.RequestURI, "://")
	switch i := strings.IndexAny(rest, "/?"); {
	case i < 0 && r.Method == http.MethodOptions:
		return "*" // RFC 9112, section 3.2.4
	case i < 0:
		return "/"
	case rest[i] == '?':
		return "/" + rest[i:]
	default:
		return rest[i:]
	}
}

// dropHopByHop removes what was for this connection (RFC 9110, section 7.6.1) and for the proxy.
func dropHopByHop(h http.Header) {
	for _, field := range h["Connection"] {
		for name := range strings.SplitSeq(field, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range []string{"Connection", "Keep-Alive", "Te", "Upgrade", "Content-Length"} {
		h.Del(name)
	}
	for name := range h {
		if strings.HasPrefix(name, "Proxy-") {
			delete(h, name)
		}
	}
}

// oneRequest is a connection from which one request is read in place of what comes.
type oneRequest struct {
	tunnel.Conn
	request io.Reader
}

func (o *oneRequest) Read(p []byte) (int, error) { return o.request.Read(p) }

// SetLinger lets tunnel.Relay cut the connection: an answer without a length would otherwise look complete.
func (o *oneRequest) SetLinger(seconds int) error { return setLinger(o.Conn, seconds) }

// silence reads on and gives nothing but the end.
type silence struct{ io.Reader }

func (s silence) Read([]byte) (int, error) {
	if _, err := io.Copy(io.Discard, s.Reader); err != nil {
		return 0, err
	}
	return 0, io.EOF
}

// chunked is a body in chunks (RFC 9112, section 7.1), made anew: net/http has taken apart those that came.
type chunked struct {
	body  io.Reader
	piece []byte
	out   bytes.Buffer
	in    io.WriteCloser // to out
	err   error          // of body, once it has ended
}

func newChunked(body io.Reader) *chunked {
	c := &chunked{body: body, piece: make([]byte, 16<<10)}
	c.in = httputil.NewChunkedWriter(&c.out)
	return c
}

func (c *chunked) Read(p []byte) (int, error) {
	for c.out.Len() == 0 && c.err == nil {
		var n int
		n, c.err = c.body.Read(c.piece)
		c.in.Write(c.piece[:n]) // to memory; nothing is no chunk
		if c.err == io.EOF {
			c.in.Close()
			c.out.WriteString("\r\n") // of the trailer, which is not passed on
		}
	}
	if c.out.Len() == 0 {
		return 0, c.err
	}
	return c.out.Read(p)
}
