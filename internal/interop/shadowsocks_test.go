//go:build interop

package interop

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shadowsocks is one implementation: how its two programs are called.
type shadowsocks struct{ client, server string }

var shadowsockses = []shadowsocks{{"ss-local", "ss-server"}, {"sslocal", "ssserver"}}

// startClient starts the SOCKS end with raimonc as its plugin.
func (s shadowsocks) startClient(t testing.TB, remote, option string) (*process, string) {
	t.Helper()
	return s.start(t, s.client, remote, "raimonc", option)
}

// startServer starts the far end with raimons as its plugin.
func (s shadowsocks) startServer(t testing.TB, option string) (*process, string) {
	t.Helper()
	return s.start(t, s.server, "", "raimons", option)
}

// startPlainServer starts the far end without a plugin.
func (s shadowsocks) startPlainServer(t testing.TB) string {
	t.Helper()
	address := freePort()
	args := []string{"-k", shadowsocksPassword, "-m", shadowsocksMethod}
	if strings.HasPrefix(s.server, "ss-") {
		args = append(args, "-s", host(address), "-p", port(address))
	} else {
		args = append(args, "-s", address)
	}
	start(t, s.server, noProxy, args...).awaitPort(t, address)
	return address
}

const shadowsocksMethod, shadowsocksPassword = "aes-256-gcm", "secret"

// start gives back the address on which shadowsocks or its plugin listens.
func (s shadowsocks) start(t testing.TB, name, remote, plugin, option string) (*process, string) {
	t.Helper()
	address := freePort()
	args := []string{"-k", shadowsocksPassword, "-m", shadowsocksMethod, "--plugin", program(t, plugin)}
	if option != "" {
		args = append(args, "--plugin-opts", option)
	}
	libev := strings.HasPrefix(name, "ss-")
	switch {
	case remote == "" && libev:
		args = append(args, "-s", host(address), "-p", port(address))
	case remote == "":
		args = append(args, "-s", address)
	case libev:
		args = append(args, "-s", host(remote), "-p", port(remote), "-b", host(address), "-l", port(address))
	default:
		args = append(args, "-s", remote, "-b", address)
	}
	p := start(t, name, noProxy, args...)
	if libev { // shadowsocks-rust waits for its plugin, this one does not
		p.await(t, listening)
	}
	p.awaitPort(t, address)
	return p, address
}

// startWeb is a web server with /N for N bytes, and for uploads, of which it answers the sum.
func startWeb(t testing.TB) string {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			s := newSum()
			io.Copy(s, r.Body)
			io.WriteString(w, s.String())
			return
		}
		n, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		io.Copy(w, stream(n))
	}))
	t.Cleanup(web.Close)
	return web.URL
}

// curl runs curl without a proxy of the environment and returns what it prints.
func curl(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command(program(t, "curl"), append([]string{"-sS", "--fail", "-m", "60"}, args...)...)
	cmd.Env = append(os.Environ(), noProxy...)
	var failed strings.Builder
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("curl %q: %v: %s", args, err, trim(failed.String(), 300))
	}
	return string(out)
}

func TestShadowsocks(t *testing.T) {
	web := startWeb(t)
	for _, s := range shadowsockses {
		for _, c := range transports(t) {
			t.Run(s.client+" "+c.name, func(t *testing.T) {
				t.Parallel()
				_, edge := s.startServer(t, c.server)
				_, socks := s.startClient(t, edge, c.client)
				for _, n := range []int{0, 1, 100, 70_000, 8 * megabyte} {
					got := newSum()
					io.WriteString(got, curl(t, "--socks5-hostname", socks, web+"/"+strconv.Itoa(n)))
					if got.String() != sumOf(n) {
						t.Errorf("download: got %v, want %v", got, sumOf(n))
					}
					file := filepath.Join(t.TempDir(), "upload")
					data, _ := io.ReadAll(stream(n))
					if err := os.WriteFile(file, data, 0o600); err != nil {
						t.Fatal(err)
					}
					if got := curl(t, "--socks5-hostname", socks, "-T", file, web+"/up"); got != sumOf(n) {
						t.Errorf("upload: got %v, want %v", got, sumOf(n))
					}
				}
			})
		}
	}
}

// A plugin does not outlive the shadowsocks that started it, whatever that dies of.
func TestShadowsocksEnds(t *testing.T) {
	for _, s := range shadowsockses {
		for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			t.Run(fmt.Sprint(s.client, " ", signal), func(t *testing.T) {
				t.Parallel()
				target := newTarget(t)
				server, edge := s.startServer(t, "")
				client, socks := s.startClient(t, edge, "")
				c := socksDial(t, socks, target.address) // a tunnel is open when the end comes
				fmt.Fprintln(c, "hold", newID())
				if _, err := io.ReadFull(c, make([]byte, len("ready\n"))); err != nil {
					t.Fatal(err)
				}
				for _, p := range []*process{client, server} {
					plugins := children(t, p.Process.Pid)
					if len(plugins) == 0 {
						t.Fatalf("%s has no plugin", p.Path)
					}
					syscall.Kill(p.Process.Pid, signal)
					for _, pid := range plugins {
						eventually(t, patience/3, fmt.Sprintf("the plugin of %s ends", filepath.Base(p.Path)), func() bool { return !alive(pid) })
					}
				}
			})
		}
	}
}

// socksDial opens a connection through a SOCKS5 proxy (RFC 1928) to an IPv4 address.
func socksDial(t testing.TB, socks, address string) *net.TCPConn {
	t.Helper()
	a := net.TCPAddrFromAddrPort(addrPort(t, address))
	request := append([]byte{5, 1, 0, 1}, a.IP.To4()...)
	request = append(request, byte(a.Port>>8), byte(a.Port))
	c, err := net.Dial("tcp", socks)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	for _, step := range []struct {
		send   []byte
		answer int
	}{{[]byte{5, 1, 0}, 2}, {request, 10}} {
		if _, err := c.Write(step.send); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, step.answer)
		if _, err := io.ReadFull(c, answer); err != nil || answer[1] != 0 {
			t.Fatalf("socks: %v, %v", answer, err)
		}
	}
	return c.(*net.TCPConn)
}
