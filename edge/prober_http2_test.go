package edge_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"raimon/edge"
	"raimon/internal/tunneltest"
)

// A prober that speaks HTTP/2 cannot tell the path of a tunnel either. Tunnels are HTTP/1.1 only, so this holds
// for those that are open to everybody too.
func TestProberSeesNoTunnelOverHTTP2(t *testing.T) {
	ca := tunneltest.NewCA(t)
	certificate := ca.Issue(t, "edge.test", "other.test")
	folder, err := edge.Folder(website(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name        string
		certificate *tls.Certificate
		probes      uint64
	}{{"plain", nil, 400}, {"tls", &certificate, 200}} {
		t.Run(test.name, func(t *testing.T) {
			suspects := suspectsOf(t, folder, test.certificate, &tls.Config{RootCAs: ca.Pool, ServerName: "edge.test", NextProtos: []string{"h2"}})
			var seeds []uint64
			for seed := range test.probes {
				seeds = append(seeds, seed)
			}
			each(t, seeds, func(seed uint64) error {
				err := compare(suspects, func(c net.Conn, path string, patience time.Duration) string {
					return visibleFrames(c, frames(rand.New(rand.NewPCG(seed, 8)), path), patience)
				})
				if err != nil {
					return fmt.Errorf("seed %d: %w", seed, err)
				}
				return nil
			})
		})
	}
}

// Who has agreed on h2 may speak HTTP/1.1 all the same, as programs do that offer h2 by mistake. Who speaks neither is
// hung up on without a word of HTTP/1.1, as by net/http alone.
func TestAfterAgreeingOnHTTP2(t *testing.T) {
	ca := tunneltest.NewCA(t)
	certificate := ca.Issue(t, "edge.test")
	config := &tls.Config{RootCAs: ca.Pool, ServerName: "edge.test", NextProtos: []string{"h2"}}
	suspects := suspectsOf(t, http.NotFoundHandler(), &certificate, config)
	alone := httptest.NewUnstartedServer(http.NotFoundHandler())
	alone.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	alone.EnableHTTP2 = true
	alone.Config.ErrorLog = log.New(io.Discard, "", 0)
	alone.StartTLS()
	t.Cleanup(alone.Close)
	netHTTP := suspect{"net/http", nobodyPath, func() (net.Conn, error) { return tls.Dial("tcp", alone.Listener.Addr().String(), config) }}

	const request = "GET %s HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n"
	for name, test := range map[string]struct {
		sent   probe
		answer string // how it begins; empty: there is none
	}{
		"a request":               {probe{text: request}, "HTTP/1.1 404 "},
		"of HTTP/1.0":             {probe{text: strings.Replace(request, "1.1", "1.0", 1)}, "HTTP/1.0 404 "},
		"with an odd method":      {probe{text: "M-SEARCH" + request[3:]}, "HTTP/1.1 404 "},
		"in two pieces":           {probe{text: request, split: 1}, "HTTP/1.1 404 "},
		"cut within its version":  {probe{text: request, split: 20}, "HTTP/1.1 404 "},
		"with a malformed field":  {probe{text: "GET %s HTTP/1.1\r\nHost : edge.test\r\n\r\n"}, "HTTP/1.1 400 "},
		"no preface":              {probe{text: "INVALID CONNECTION PREFACE\r\n\r\n"}, ""},
		"half a preface":          {probe{text: "PRI * HTTP/2.0\r\n\r\nno more of it"}, ""},
		"a preface of HTTP/3":     {probe{text: "PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n"}, ""},
		"a request of HTTP/0.9":   {probe{text: "GET /as/it/was/once/upon/a/time\r\n"}, ""},
		"a frame without preface": {probe{text: strings.Repeat("\x00\x00\x00\x04\x00\x00\x00\x00\x00", 3)}, ""},
		"a blank in front":        {probe{text: " " + request}, ""},
		"TLS in TLS":              {probe{text: "\x16\x03\x01" + strings.Repeat("\x02", 100)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, s := range suspects {
				c, err := s.dial()
				if err != nil {
					t.Fatal(err)
				}
				seen := visible(c, test.sent, s.path, 10*time.Second)
				if test.answer == "" && seen != `""; end` {
					t.Errorf("%s: got %s, want nothing but the end", s.name, seen)
				}
				if !strings.HasPrefix(seen, `"`+test.answer) || !strings.HasSuffix(seen, "; end") {
					t.Errorf("%s: got %s, want %q and the end", s.name, seen, test.answer)
				}
			}
			c, err := netHTTP.dial()
			if err != nil {
				t.Fatal(err)
			}
			// It has sent its settings before it reads.
			if seen := visible(c, test.sent, netHTTP.path, 10*time.Second); strings.Contains(seen, "HTTP/1") || !strings.HasSuffix(seen, "; end") {
				t.Errorf("net/http, which the edge is to be like: %s", seen)
			}
		})
	}
}

// frames is a conversation about path, with up to three mistakes.
func frames(r *rand.Rand, path string) []byte {
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&out, nil)
	f.AllowIllegalWrites = true
	f.WriteSettings()
	for stream := uint32(1); stream <= uint32(1+2*r.IntN(3)); stream += 2 {
		fields := [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "edge.test"}, {":path", path}}
		if r.IntN(3) == 0 { // RFC 8441
			fields = append([][2]string{{":protocol", "websocket"}}, fields...)
			fields[1][1] = "CONNECT"
		}
		fields = append(fields, [2]string{"sec-websocket-version", "13"}, [2]string{"sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="})
		for range r.IntN(4) {
			fields = editFields(r, fields, path)
		}
		end := r.IntN(3) > 0
		writeHeaders(r, f, stream, end, fields)
		if !end {
			f.WriteData(stream, r.IntN(3) > 0, make([]byte, r.IntN(3000)))
		}
		editFrames(r, f, stream)
	}
	return out.Bytes()
}

func editFields(r *rand.Rand, fields [][2]string, path string) [][2]string {
	n := r.IntN(len(fields))
	odd := [][2]string{
		{"connection", "upgrade"}, {"upgrade", "websocket"}, {"host", "edge.test"}, {"host", "other.test"}, {"te", "trailers"}, {"te", "gzip"}, {"content-length", "5"}, {"content-length", "x"},
		{"transfer-encoding", "chunked"}, {"expect", "100-continue"}, {"X-Upper", "x"}, {"x y", "z"}, {"x", "a\x00b"}, {"x", "a\r\nb"}, {":unknown", "x"}, {":path", path}, {":status", "200"}, {"", "x"},
		{"x", strings.Repeat("x", 1+r.IntN(70<<10))}, {"range", "bytes=0-"}, {"cookie", "a=b"}, {"priority", "u=1"},
	}
	switch r.IntN(4) {
	case 0:
		return append(fields[:n:n], fields[n+1:]...)
	case 1:
		return append(fields, fields[n])
	case 2:
		values := map[string][]string{
			":method": {"HEAD", "POST", "OPTIONS", "CONNECT", "get", "G T", ""}, ":scheme": {"http", "", "wss"}, ":authority": {"other.test", "unknown.test", "", "edge.test:443", "u@edge.test", "a b"},
			":path": {"", "*", path + "?x", "/x/.." + path, "https://edge.test" + path, path + "\x00", path + " x", path[1:], "//" + path},
		}[fields[n][0]]
		if values == nil {
			return fields
		}
		fields[n][1] = values[r.IntN(len(values))]
		return fields
	}
	return append(fields, odd[r.IntN(len(odd))])
}

// writeHeaders sends fields in one frame or several, at times without the end.
func writeHeaders(r *rand.Rand, f *http2.Framer, stream uint32, end bool, fields [][2]string) {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, field := range fields {
		e.WriteField(hpack.HeaderField{Name: field[0], Value: field[1], Sensitive: true}) // leaves the table as it is
	}
	if r.IntN(20) == 0 {
		block.Write([]byte{0xff, 0xff, 0xff, 0xff, 0xff})
	}
	first := true
	for rest := block.Bytes(); first || len(rest) > 0; first = false {
		part := rest[:min(len(rest), 1+r.IntN(16384))]
		rest = rest[len(part):]
		last := len(rest) == 0 && r.IntN(30) > 0
		if first {
			f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: part, EndStream: end, EndHeaders: last})
		} else {
			f.WriteContinuation(stream, last, part)
		}
	}
}

// editFrames says something else that is right, odd or wrong.
func editFrames(r *rand.Rand, f *http2.Framer, stream uint32) {
	switch r.IntN(24) {
	case 0:
		f.WriteRSTStream(stream+2, http2.ErrCodeCancel)
	case 1:
		f.WritePing(false, [8]byte{1})
	case 2:
		f.WriteWindowUpdate(stream+2, 10)
	case 3:
		f.WriteWindowUpdate(0, 1<<31-1)
	case 4:
		f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5})
	case 5:
		f.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 5})
	case 6:
		f.WriteRawFrame(0x77, 0, stream, []byte("x"))
	case 7:
		f.WriteGoAway(0, http2.ErrCodeNo, nil)
	case 8:
		f.WriteData(stream+4, true, []byte("x"))
	case 9:
		f.WritePushPromise(http2.PushPromiseParam{StreamID: stream, PromiseID: 2, EndHeaders: true})
	case 10:
		f.WriteRawFrame(http2.FramePing, 0, 0, []byte("short"))
	case 11:
		f.WritePriority(stream+2, http2.PriorityParam{StreamDep: stream + 2})
	}
}

// visibleFrames is what comes back, stream by stream: their order among each other is chance.
func visibleFrames(c net.Conn, sent []byte, patience time.Duration) string {
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	go c.Write(sent) // a server that has enough does not read it all
	f := http2.NewFramer(io.Discard, &patient{c, patience})
	decoder := hpack.NewDecoder(4096, nil)
	seen := make(map[uint32]string)
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return fmt.Sprint(seen, ending(err))
		}
		h := frame.Header()
		text := fmt.Sprintf("[%s %x", h.Type, h.Flags)
		switch frame := frame.(type) {
		case *http2.WindowUpdateFrame: // its moment is chance
			continue
		case *http2.HeadersFrame:
			fields, err := decoder.DecodeFull(frame.HeaderBlockFragment())
			for _, field := range fields {
				if field.Name != "date" {
					text += fmt.Sprintf(" %s: %s", field.Name, field.Value)
				}
			}
			if err != nil {
				text += err.Error()
			}
		case *http2.DataFrame:
			text += fmt.Sprintf(" %q", frame.Data())
		case *http2.SettingsFrame:
			frame.ForeachSetting(func(s http2.Setting) error { text += " " + s.String(); return nil })
		case *http2.GoAwayFrame:
			text += fmt.Sprintf(" %d %s %q", frame.LastStreamID, frame.ErrCode, frame.DebugData())
		case *http2.RSTStreamFrame:
			text += " " + frame.ErrCode.String()
		case *http2.PingFrame:
			text += fmt.Sprintf(" %x", frame.Data)
		}
		seen[h.StreamID] += text + "]"
	}
}

// patient waits so long for each Read.
type patient struct {
	net.Conn
	patience time.Duration
}

func (p *patient) Read(b []byte) (int, error) {
	p.SetReadDeadline(time.Now().Add(p.patience))
	return p.Conn.Read(b)
}
