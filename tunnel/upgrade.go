package tunnel

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
)

// upgrade is what a request for the tunnel leaves behind.
type upgrade struct {
	answer  string
	peer    peerKind
	waits   bool   // the client will say when it wants its target
	again   bool   // and will use the connection for the next tunnel
	target  string // that it has chosen; empty: none
	pending []byte
}

// newUpgrade answers r (RFC 6455, section 4.2.2).
func newUpgrade(r *http.Request) *upgrade {
	up := &upgrade{peer: kindOf(r)}
	up.answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Accept: " + acceptKey(r.Header.Get("Sec-WebSocket-Key")) + "\r\n"
	if up.peer == peerRaimon {
		up.waits, up.target = AsksToWait(r), strings.Join(r.Header[targetHeader], ",")
		up.again = hasToken(r.Header[featureHeader], featureAgain)
		up.answer += featureHeader + ": " + featureEnd
		switch {
		case up.waits:
			up.answer += ", " + featureWait
		case up.target != "":
			up.answer += ", " + featureOpen
		}
		if up.again {
			up.answer += ", " + featureAgain
		}
		up.answer += "\r\n"
	}
	up.answer += "\r\n"
	return up
}

// plainUpgrade answers a request for the tunnel that came in one piece and has nothing unusual about
// it, as all clients of ours send it. It is nil for every other: what is not beyond doubt is left to
// net/http, whose answers are those of other web servers. That costs as much as all the rest of a connection.
func (w *WebSocket) plainUpgrade(head []byte, info *Info) *upgrade {
	end := bytes.Index(head, []byte("\r\n\r\n"))
	if end < 0 || end > min(probeSize, w.headerSize()) || !isPlainHead(head[:end+2]) {
		return nil
	}
	end += 4
	r, err := http.ReadRequest(bufio.NewReaderSize(bytes.NewReader(head[:end]), end))
	if err != nil || !IsUpgrade(r) || r.Header["Expect"] != nil { // net/http may have something to say to that
		return nil
	}
	r.TLS, r.RemoteAddr = info.TLS, addrString(info.Client)
	if !w.matches(r, info) {
		return nil
	}
	up := newUpgrade(r)
	up.pending = bytes.Clone(head[end:])
	return up
}

// isPlainHead tells whether each line of head ends with CR LF and is of printable ASCII, each field is
// a token followed by a colon, and there is one Host, of letters, digits, dots, hyphens and a port.
func isPlainHead(head []byte) bool {
	hosts := 0
	number := 0
	for line := range bytes.SplitSeq(bytes.TrimSuffix(head, []byte("\r\n")), []byte("\r\n")) {
		for _, b := range line {
			if b < ' ' || b > '~' {
				return false
			}
		}
		if number++; number == 1 {
			continue
		}
		name, value, found := bytes.Cut(line, []byte(":"))
		if !found || len(name) == 0 || !consistsOf(name, "-") {
			return false
		}
		if strings.EqualFold(string(name), "Host") {
			hosts++
			if !consistsOf(bytes.TrimSpace(value), "-.:") {
				return false
			}
		}
	}
	return hosts == 1
}

// consistsOf tells whether b has only letters, digits and the characters of others.
func consistsOf(b []byte, others string) bool {
	for _, c := range b {
		isLetter, isDigit := 'a' <= c|0x20 && c|0x20 <= 'z', '0' <= c && c <= '9'
		if !isLetter && !isDigit && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return true
}

// IsUpgrade tells whether r asks for a WebSocket (RFC 6455, section 4.2.1).
func IsUpgrade(r *http.Request) bool {
	key, err := base64.StdEncoding.DecodeString(r.Header.Get("Sec-WebSocket-Key"))
	return r.Method == http.MethodGet && r.ProtoMajor == 1 && r.ProtoMinor >= 1 &&
		r.ContentLength == 0 && len(r.TransferEncoding) == 0 &&
		hasToken(r.Header["Connection"], "upgrade") && hasToken(r.Header["Upgrade"], "websocket") &&
		r.Header.Get("Sec-WebSocket-Version") == "13" &&
		len(r.Header["Sec-Websocket-Key"]) == 1 && err == nil && len(key) == 16
}

// AsksToWait tells whether r, which asks for a WebSocket, comes from a client that will say later when it wants its target.
func AsksToWait(r *http.Request) bool {
	return kindOf(r) == peerRaimon && hasToken(r.Header[featureHeader], featureWait)
}

// AsksForLater tells whether r, which asks for a WebSocket, comes from a client that may want a tunnel later, be it the first one or another.
func AsksForLater(r *http.Request) bool {
	return AsksToWait(r) || kindOf(r) == peerRaimon && hasToken(r.Header[featureHeader], featureAgain)
}

// matches tells whether r, which asks for a WebSocket, asks for this tunnel.
func (w *WebSocket) matches(r *http.Request, info *Info) bool {
	if w.Match != nil {
		return w.Match(r, info)
	}
	return r.RequestURI == w.Path && (w.Host == "" || SameHost(r.Host, w.Host))
}

// SameHost tells whether the Host header of a request is the host that is expected: with its port, or
// where that has none, without.
func SameHost(header, expected string) bool {
	if strings.EqualFold(header, expected) {
		return true
	}
	bare := (&url.URL{Host: header}).Hostname()
	return !strings.Contains(expected, ":") && strings.EqualFold(bare, expected)
}

// kindOf tells by its request how the peer says and takes an end.
func kindOf(r *http.Request) peerKind {
	switch {
	case hasToken(r.Header[featureHeader], featureEnd):
		return peerRaimon
	case len(r.Header) == 4 && r.Header.Get("Connection") == "upgrade":
		return peerHalfCloses // the four that must be there, in kaminari's spelling
	case r.Header.Get("Origin") != "":
		return peerBrowser // RFC 6455, section 4.1
	}
	return peerUnknown
}

// hasToken tells whether a comma-separated header field holds token, in any case.
func hasToken(fields []string, token string) bool {
	for _, field := range fields {
		for t := range strings.SplitSeq(field, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// acceptKey answers a Sec-WebSocket-Key (RFC 6455, section 4.2.2).
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}
