//go:build interop

package interop

import (
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// clients are the programs that use the sites, each with what it does again and again.
func (h *house) clients(t testing.TB) map[string]func(testing.TB) error {
	t.Helper()
	_, one := startRaimonc(t, h.address, h.tunnel("/one"))
	_, two := startRaimonc(t, h.address, h.tunnel("/two"))
	kaminari := startKaminari(t, "kaminaric", h.address, trustAnything(h.tunnel("/two")))
	v2ray := freePort()
	startV2ray(t, h.address, v2ray, "tls;mode=websocket;mux=0;host=web.test;path=/one;cert="+h.ca.IssuingRoot, v2ray)
	stunnel := freePort()
	startStunnel(t, fmt.Sprintf("client = yes\naccept = %s\nconnect = %s\nsni = raw.test\nCAfile = %s\nverifyChain = yes\n", stunnel, h.address, h.rawRoots), stunnel)
	_, raw := startRaimonc(t, h.address, "tls;sni=raw.test;ca="+h.rawRoots)

	_, private := startRaimonc(t, h.address, h.tunnel("/private")+";token=file:"+writeFile(t, "token", h.token+"\n"))

	clients := map[string]func(t testing.TB) error{
		// Each tells of what lies behind: only the right target has the report.
		"raimonc to one":     func(t testing.TB) error { return h.one.tryDownload(t, one, 70_000, 0, 70_000) },
		"raimonc to two":     func(t testing.TB) error { return h.two.tryDownload(t, two, 70_000, 0, 70_000) },
		"kaminaric to two":   func(t testing.TB) error { return h.two.tryDownload(t, kaminari, 70_000, 0, 70_000) },
		"raimonc to raw":     func(t testing.TB) error { return h.raw.tryDownload(t, raw, 70_000, 0, 70_000) },
		"stunnel to raw":     func(t testing.TB) error { return h.raw.tryDownload(t, stunnel, 70_000, 0, 70_000) },
		"raimonc, a token":   func(t testing.TB) error { return h.two.tryDownload(t, private, 70_000, 0, 70_000) },
		"curl, no token":     h.tryPrivate,
		"v2ray-plugin":       func(t testing.TB) error { return tryOpenEcho(t, v2ray, 70_000) },
		"raimonc in bulk":    func(t testing.TB) error { return tryEcho(t, one, 4*megabyte) },
		"kaminaric in bulk":  func(t testing.TB) error { return tryEcho(t, kaminari, 4*megabyte) },
		"openssl to raw":     h.tryOpenSSL,
		"redirect":           h.tryRedirect,
		"curl --http1.1":     func(t testing.TB) error { return h.tryCurl(t, "--http1.1", "1.1") },
		"curl --http2":       func(t testing.TB) error { return h.tryCurl(t, "--http2", "2") },
		"curl to the passed": h.tryPassed,
	}
	for n, s := range shadowsockses {
		clients[s.client] = func(t testing.TB) error {
			got := newSum()
			io.WriteString(got, curl(t, "--socks5-hostname", h.socks[n], h.web.URL+"/data/70000"))
			if got.String() != sumOf(70_000) {
				return fmt.Errorf("got %v, want %v", got, sumOf(70_000))
			}
			return nil
		}
	}
	return clients
}

// tryCurl asks two sites for pages, and sends something up, with one protocol.
func (h *house) tryCurl(t testing.TB, flag, version string) error {
	t.Helper()
	// One connection carries both.
	out := h.curl(t, flag, "-o", "/dev/null", "-o", "/dev/null", "-w", "%{http_code} %{http_version} %{num_connects} %{size_download}\n",
		h.url("web.test", "/data/70000"), h.url("web.test", "/data/1000"))
	if want := fmt.Sprintf("200 %[1]s 1 70000\n200 %[1]s 0 1000\n", version); out != want {
		return fmt.Errorf("got %q, want %q", out, want)
	}
	got := newSum()
	io.WriteString(got, h.curl(t, flag, h.url("web.test", "/data/300000")))
	if got.String() != sumOf(300_000) {
		return fmt.Errorf("got %v, want %v", got, sumOf(300_000))
	}
	out = h.curl(t, flag, "-T", filepath.Join(filepath.Dir(h.config), "edge.toml"), h.url("web.test", "/upload"))
	if n, _, _ := strings.Cut(out, " "); n == "0" || n == "" {
		return fmt.Errorf("an upload arrives as %q", out)
	}
	out = h.curl(t, flag, "-o", "/dev/null", "-w", "%{http_code} %{http_version}", h.url("files.test", "/small"))
	if want := "200 " + version; out != want {
		return fmt.Errorf("got %q, want %q", out, want)
	}
	return nil
}

// tryPrivate asks for a tunnel without the token that it takes, and is told what the website says of such a path.
func (h *house) tryPrivate(t testing.TB) error {
	t.Helper()
	out := h.curl(t, "--no-fail", "--http1.1", "-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-H", "Sec-WebSocket-Version: 13",
		"-H", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "-o", "/dev/null", "-w", "%{http_code}", h.url("web.test", "/private"))
	if want := "404"; out != want {
		return fmt.Errorf("got %q, want %q", out, want)
	}
	return nil
}

// tryPassed meets the certificate of the site behind, which the edge has not.
func (h *house) tryPassed(t testing.TB) error {
	t.Helper()
	out := curl(t, "--http2", "--cacert", h.passed.roots, "--connect-to", "::"+h.address, "-o", "/dev/null", "-w", "%{http_code} %{http_version}",
		h.url("pass.test", "/small"))
	if want := "200 2"; out != want {
		return fmt.Errorf("got %q, want %q", out, want)
	}
	return nil
}

// tryRedirect asks port 80.
func (h *house) tryRedirect(t testing.TB) error {
	t.Helper()
	out := curl(t, "--connect-to", "::"+h.publicEdge.web, "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", "http://web.test/page")
	if !strings.HasPrefix(out, "30") || !strings.Contains(out, " https://web.test") {
		return fmt.Errorf("got %q, want a redirect to https", out)
	}
	return nil
}

// tryOpenSSL reads from the raw site what its target sends.
func (h *house) tryOpenSSL(t testing.TB) error {
	t.Helper()
	cmd := exec.CommandContext(minute(t), program(t, "openssl"), "s_client", "-connect", h.address, "-servername", "raw.test", "-quiet",
		"-CAfile", h.rawRoots, "-verify_return_error")
	cmd.Stdin = strings.NewReader("close 70000\n")
	var failed strings.Builder
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w: %s", err, trim(failed.String(), 1000))
	}
	got := newSum()
	got.Write(out)
	if got.String() != sumOf(70_000) {
		return fmt.Errorf("got %v, want %v", got, sumOf(70_000))
	}
	return nil
}

// errands are transfers that last as long as everything does: until ctx ends, or longer than that.
func (h *house) errands(t testing.TB) map[string]func(context.Context, testing.TB) error {
	t.Helper()
	_, one := startRaimonc(t, h.address, h.tunnel("/one"))
	_, raw := startRaimonc(t, h.address, "tls;sni=raw.test;ca="+h.rawRoots)
	kaminari := startKaminari(t, "kaminaric", h.address, trustAnything(h.tunnel("/two")))
	v2ray := freePort()
	startV2ray(t, h.address, v2ray, "tls;mode=websocket;mux=0;host=web.test;path=/one;cert="+h.ca.IssuingRoot, v2ray)
	errands := map[string]func(context.Context, testing.TB) error{
		"slow curl --http1.1": func(_ context.Context, t testing.TB) error { return h.trySlowCurl(t, "--http1.1") },
		"slow curl --http2":   func(_ context.Context, t testing.TB) error { return h.trySlowCurl(t, "--http2") },
		"slow curl to the passed": func(_ context.Context, t testing.TB) error {
			return wantBigFile(t, "--cacert", h.passed.roots, "--connect-to", "::"+h.address, h.url("pass.test", "/big"))
		},
	}
	for name, address := range map[string]string{"raimonc": one, "raimonc to raw": raw, "kaminaric": kaminari, "v2ray-plugin": v2ray} {
		errands["one tunnel of "+name] = func(ctx context.Context, t testing.TB) error {
			c := dial(t, address, "echo")
			defer c.Close()
			return tryThroughout(ctx, c)
		}
	}
	for n, s := range shadowsockses {
		errands["one tunnel of "+s.client] = func(ctx context.Context, t testing.TB) error {
			c := socksDial(t, h.socks[n], h.one.address)
			defer c.Close()
			if _, err := io.WriteString(c, "echo\n"); err != nil {
				return err
			}
			return tryThroughout(ctx, c)
		}
	}
	return errands
}

func (h *house) trySlowCurl(t testing.TB, flag string) error {
	t.Helper()
	return wantBigFile(t, flag, "--cacert", h.ca.IssuingRoot, "--connect-to", "::"+h.address, h.url("files.test", "/big"))
}

// wantBigFile takes most of a minute for the big file.
func wantBigFile(t testing.TB, args ...string) error {
	t.Helper()
	got := newSum()
	io.WriteString(got, curl(t, append([]string{"--limit-rate", "500k", "-m", "180"}, args...)...))
	if got.String() != sumOf(bigFile) {
		return fmt.Errorf("got %v, want %v", got, sumOf(bigFile))
	}
	return nil
}

// tryThroughout has pieces echoed at a slow pace until ctx ends, all in one tunnel.
func tryThroughout(ctx context.Context, c *net.TCPConn) error {
	sent, got, piece := stream(1<<40), newSum(), make([]byte, 10_007)
	want := newSum()
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	for ctx.Err() == nil {
		c.SetDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(sent, piece); err != nil {
			return err
		}
		want.Write(piece)
		if _, err := c.Write(piece); err != nil {
			return fmt.Errorf("after %d: %w", got.n, err)
		}
		if _, err := io.ReadFull(c, piece); err != nil {
			return fmt.Errorf("after %d: %w", got.n, err)
		}
		got.Write(piece)
		<-pace.C
	}
	if got.String() != want.String() {
		return fmt.Errorf("%v came back, want %v", got, want)
	}
	return nil
}
