package edge_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
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
