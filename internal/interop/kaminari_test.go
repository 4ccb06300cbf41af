//go:build interop

package interop

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"raimon/internal/tunneltest"
)

// Kaminari 0.6.1 (lightws 0.6.13) damages masked payload in two places of its own:
//
//   - its client masks in place before it writes, and masks again where the socket took nothing
//     (stream/detail/write.rs: the state is not kept over a Pending write), so mask=fixed and
//     mask=standard damage what is sent against back-pressure;
//   - its server unmasks each further read of a frame from the beginning of the key
//     (stream/detail/read.rs, ReadData), so a frame whose reads are split at no multiple of 4 is damaged.
//
// TestKaminariDamagesMasked shows both. Raimonc gives that server keys of four equal bytes, which the
// second does not harm. Nothing helps against the first: masked uploads of kaminaric go in lockstep here.

// masks are the option's values; only the first is safe with kaminaric in bulk.
var masks = []string{"skip", "fixed", "standard"}

// startKaminari starts kaminaris or kaminaric.
func startKaminari(t testing.TB, program, remote, option string) string {
	t.Helper()
	address := freePort()
	p := start(t, program, nil, address, remote, option)
	p.awaitPort(t, address)
	return address
}

// withMasks makes a case of each mask of the WebSocket ones.
func withMasks(cases []transportCase) []transportCase {
	var more []transportCase
	for _, c := range cases {
		if !strings.HasPrefix(c.name, "ws") {
			more = append(more, c)
			continue
		}
		for _, mask := range masks {
			more = append(more, transportCase{name: c.name + " " + mask, server: c.server, client: c.client + ";mask=" + mask})
		}
	}
	return more
}

// pings makes raimon send many Pings. Kaminari answers none, and must not be taken for dead.
func pings(c transportCase) string {
	if strings.HasPrefix(c.name, "ws") {
		return ";ping=200ms"
	}
	return ""
}

// kaminaricStreams is what kaminaric can carry with this mask.
func (g *target) kaminaricStreams(address, option string) map[string]func(t testing.TB) error {
	streams := g.streams(address)
	streams["idle"] = func(t testing.TB) error { return tryIdle(t, address, 2*time.Second) }
	if strings.Contains(option, "mask=") && !strings.Contains(option, "mask=skip") {
		delete(streams, "bulk")
		delete(streams, "slow target")
		delete(streams, "sizes")
		streams["short"] = func(t testing.TB) error {
			for _, n := range []int{0, 1, 125, 126, 4096} {
				if err := tryEcho(t, address, n); err != nil {
					return err
				}
			}
			return nil
		}
		streams["target first"] = func(t testing.TB) error { return g.tryDownload(t, address, megabyte, 0, 1000) }
	}
	return streams
}

// stapled gives kaminaris something to staple. Without ocsp= it staples an empty response (rustls
// 0.23 keeps the empty one that kaminari hands it), which crypto/tls refuses as malformed and which it
// cannot be told not to ask for. Nobody looks into what is stapled.
func stapled(t testing.TB, option string) string {
	t.Helper()
	if !strings.Contains(option, "tls") {
		return option
	}
	file := filepath.Join(t.TempDir(), "staple")
	if err := os.WriteFile(file, []byte("anything"), 0o600); err != nil {
		t.Fatal(err)
	}
	return option + ";ocsp=" + file
}

// trustAnything is for kaminaric, which knows no roots but Mozilla's.
func trustAnything(option string) string {
	before, _, found := strings.Cut(option, ";ca=")
	if found {
		_, after, _ := strings.Cut(option[len(before)+1:], ";")
		return strings.TrimSuffix(before+";insecure;"+after, ";")
	}
	return option
}

func TestKaminariClient(t *testing.T) {
	g := newTarget(t)
	cases := withMasks(transports(t))
	for _, c := range cases {
		if c.name == "wss skip" || c.name == "tls" {
			// It speaks HTTP/1.1 whatever was negotiated.
			cases = append(cases,
				transportCase{name: c.name + " h2", server: c.server, client: c.client + ";alpn=h2"},
				transportCase{name: c.name + " h2,http/1.1", server: c.server, client: c.client + ";alpn=h2,http/1.1"})
		}
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, edge := startRaimons(t, g.address, c.server+pings(c))
			client := startKaminari(t, "kaminaric", edge, trustAnything(c.client))
			all(t, g.kaminaricStreams(client, c.client))
		})
	}
}

func TestKaminariServer(t *testing.T) {
	g := newTarget(t)
	for _, c := range withMasks(transports(t)) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			edge := startKaminari(t, "kaminaris", g.address, stapled(t, c.server))
			_, client := startRaimonc(t, edge, c.client+pings(c))
			streams := g.streams(client)
			streams["idle"] = func(t testing.TB) error { return tryIdle(t, client, 2*time.Second) }
			all(t, streams)
		})
	}
}

// Where stapled does not help, raimonc says what would.
func TestKaminariStaplesNothing(t *testing.T) {
	g := newTarget(t)
	s := newSecrets(t)
	for _, option := range []string{s.server(), "tls;servername=localhost"} {
		edge := startKaminari(t, "kaminaris", g.address, option)
		p, client := startRaimonc(t, edge, "tls;sni=localhost;insecure")
		dial(t, client, "echo")
		p.await(t, `"hint":"[^"]*ocsp=`)
	}
}

// Without raimon masked floods are damaged as well, by either end of kaminari. If this fails kaminari has
// been mended, and the cases above need no exception.
func TestKaminariDamagesMasked(t *testing.T) {
	g := newTarget(t)
	for _, mask := range masks {
		const option = "ws;host=localhost;path=/"
		damaged := func(t testing.TB, err error) {
			switch {
			case mask == "skip" && err != nil:
				t.Error(err)
			case mask != "skip" && err == nil:
				t.Error("all has arrived whole")
			default:
				t.Log(err)
			}
		}
		t.Run("client "+mask, func(t *testing.T) {
			t.Parallel()
			// It takes a write that the kernel does not want, which a fast machine may get around.
			var err error
			for try := 0; err == nil && (try == 0 || mask != "skip" && try < 10); try++ {
				err = maskedFlood(t, option+";mask="+mask)
			}
			damaged(t, err)
		})
		t.Run("server "+mask, func(t *testing.T) {
			t.Parallel()
			edge := startKaminari(t, "kaminaris", g.address, option)
			damaged(t, oneSplitFrame(edge, mask))
		})
	}
}

// maskedFlood sends more through kaminaric than a reader with little room takes at once.
func maskedFlood(t testing.TB, option string) error {
	t.Helper()
	const n = 8 * megabyte
	edge, result, _ := maskReader(t, n)
	c := dial(t, startKaminari(t, "kaminaric", edge, option), "")
	defer c.Close()
	sent := flow(c, n-1, false)
	err := awaitMasked(t, result, n)
	c.Close()
	<-sent
	return err
}

// oneSplitFrame sends a frame to an echo target whose second half the server reads apart from the first.
func oneSplitFrame(edge, mask string) error {
	c, _, _, err := ws.Dialer{Host: "localhost"}.Dial(context.Background(), "ws://"+edge+"/")
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	payload := []byte("echo\nwhat is sent in two parts")
	h := ws.Header{Fin: true, OpCode: ws.OpBinary, Masked: true, Length: int64(len(payload))}
	if mask != "skip" {
		h.Mask = [4]byte{1, 2, 3, 4}
	}
	masked := bytes.Clone(payload)
	ws.Cipher(masked, h.Mask, 0)
	if err := ws.WriteHeader(c, h); err != nil {
		return err
	}
	const half = 10 // no multiple of 4
	if _, err := c.Write(masked[:half]); err != nil {
		return err
	}
	// The first half comes back: the server has read it apart.
	var got []byte
	for len(got) < len(payload)-len("echo\n") {
		answer, err := tunneltest.ReadFrame(c)
		if err != nil {
			return err
		}
		got = append(got, answer.Payload...)
		if len(got) == half-len("echo\n") {
			if _, err := c.Write(masked[half:]); err != nil {
				return err
			}
		}
	}
	if want := payload[len("echo\n"):]; !bytes.Equal(got, want) {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// What raimonc masks is right to the letter, in floods too: a reader of RFC 6455 that has nothing of
// raimon gets all of it.
func TestMaskedBytes(t *testing.T) {
	for _, mask := range masks {
		t.Run(mask, func(t *testing.T) {
			t.Parallel()
			const n = 8 * megabyte
			edge, result, keys := maskReader(t, n)
			_, client := startRaimonc(t, edge, "ws;host=localhost;path=/;mask="+mask)
			c := dial(t, client, "")
			if err := <-flow(c, n-1, false); err != nil {
				t.Fatal(err)
			}
			if err := awaitMasked(t, result, n); err != nil {
				t.Error(err)
			}
			switch _, zero := keys[[4]byte{}]; {
			case mask == "skip" && (len(keys) != 1 || !zero),
				mask == "fixed" && len(keys) != 1,
				mask == "standard" && len(keys) < 10:
				t.Errorf("%d keys; zero among them: %v", len(keys), zero)
			}
		})
	}
}

// maskReader is a server that reads n bytes of masked payload slowly and then gives their sum. The keys
// that it met may be looked at after that.
func maskReader(t testing.TB, n int) (address string, result chan string, keys map[[4]byte]int) {
	t.Helper()
	result = make(chan string, 1)
	keys = make(map[[4]byte]int)
	address = tunneltest.Serve(t, func(c *net.TCPConn) {
		c.SetReadBuffer(64 << 10) // without it the kernel takes megabytes, and the sender never waits
		if _, err := ws.Upgrade(c); err != nil {
			return
		}
		s := newSum()
		report := unmask(s, &slow{Reader: bufio.NewReaderSize(c, 16<<10), pause: milliseconds(1)}, n, keys)
		if s.n > 0 {
			result <- report
		}
	})
	return address, result, keys
}

// awaitMasked wants what dial and flow have sent.
func awaitMasked(t testing.TB, result chan string, n int) error {
	t.Helper()
	want := newSum()
	io.Copy(want, io.MultiReader(strings.NewReader("\n"), stream(n-1)))
	select {
	case got := <-result:
		if got != want.String() {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		return nil
	case <-time.After(patience):
		return errors.New("not all has come")
	}
}

// unmask reads frames until n bytes of payload have come, and gives their sum.
func unmask(s *sum, r io.Reader, n int, keys map[[4]byte]int) string {
	for s.n < n {
		h, err := ws.ReadHeader(r)
		if err != nil {
			return err.Error()
		}
		if !h.Masked || !h.Fin || h.OpCode != ws.OpBinary {
			return "a frame of another kind"
		}
		keys[h.Mask]++
		payload := make([]byte, h.Length)
		if _, err := io.ReadFull(r, payload); err != nil {
			return err.Error()
		}
		ws.Cipher(payload, h.Mask, 0)
		s.Write(payload)
	}
	return s.String()
}

// A target that speaks first must not lose its greeting in kaminaric, which throws away what it reads
// together with the 101: sixteen tunnels at once make it slow enough to do so.
func TestKaminariClientHearsGreetings(t *testing.T) {
	const greeting = "220 mail.example.com ESMTP\r\n"
	target := tunneltest.Serve(t, func(c *net.TCPConn) {
		io.WriteString(c, greeting)
		io.Copy(c, c)
		c.CloseWrite()
	})
	for _, c := range transports(t) {
		t.Run(c.name, func(t *testing.T) {
			_, edge := startRaimons(t, target, c.server)
			address := startKaminari(t, "kaminaric", edge, trustAnything(c.client))
			errs := make(chan error, 16)
			for range cap(errs) {
				go func() {
					for range 20 {
						if err := tryGreeting(address, greeting); err != nil {
							errs <- err
							return
						}
					}
					errs <- nil
				}()
			}
			for range cap(errs) {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// tryGreeting reads the greeting and has something echoed.
func tryGreeting(address, greeting string) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	got := make([]byte, len(greeting))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != greeting {
		return fmt.Errorf("got %q, %w, want the greeting", got, err)
	}
	if _, err := io.WriteString(c, "QUIT"); err != nil {
		return err
	}
	got = got[:4]
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "QUIT" {
		return fmt.Errorf("got %q, %w, want the echo", got, err)
	}
	return nil
}
