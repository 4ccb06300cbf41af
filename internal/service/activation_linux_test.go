package service_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"raimon/internal/service"
)

// childVariable makes this test binary a service that was started by systemd.
const childVariable = "RAIMON_SERVICE_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case "":
		os.Exit(m.Run())
	case "adopt": // what systemd does between fork and exec
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	if err := child(os.Stdout); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// child tells what it has inherited, and answers one connection on each.
func child(out io.Writer) error {
	all, err := service.Listeners()
	if err != nil {
		return err
	}
	again, err := service.Listeners()
	if err != nil || len(again) > 0 || os.Getenv("LISTEN_FDS") != "" {
		return fmt.Errorf("told twice: %v, %w", again, err)
	}
	for _, l := range all {
		fmt.Fprintln(out, l.Name, l.Addr().Network(), l.Addr())
	}
	fmt.Fprintln(out, "ready")
	var errs []error
	for _, l := range all {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		_, err = io.WriteString(c, l.Name)
		errs = append(errs, err, c.Close(), l.Close())
	}
	return errors.Join(errs...)
}

// start starts a child, and returns what it says until it is ready.
func start(t testing.TB, cmd *exec.Cmd) (lines []string) {
	t.Helper()
	for s := bufio.NewScanner(launch(t, cmd)); s.Scan(); {
		if s.Text() == "ready" {
			return lines
		}
		lines = append(lines, s.Text())
	}
	return lines
}

// launch starts cmd until the test ends, and returns its standard output.
func launch(t testing.TB, cmd *exec.Cmd) io.Reader {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return out
}

func file(t testing.TB, l interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestListeners(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	path := filepath.Join(t.TempDir(), "s")
	unix, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=adopt", "LISTEN_FDS=2", "LISTEN_FDNAMES=https:local")
	cmd.ExtraFiles = []*os.File{file(t, tcp.(*net.TCPListener)), file(t, unix.(*net.UnixListener))}

	lines := start(t, cmd)

	want := []string{"https tcp " + tcp.Addr().String(), "local unix " + path}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Fatalf("the child says\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	for _, l := range []net.Listener{tcp, unix} {
		c, err := net.Dial(l.Addr().Network(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(c); err != nil || len(text) == 0 {
			t.Errorf("%s: got %q, %v; want the listener's name", l.Addr(), text, err)
		}
		c.Close()
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the file of the manager's socket has gone: %v", err)
	}
}

func TestUnfitSockets(t *testing.T) {
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	connected, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	ordinary, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer ordinary.Close()
	for name, f := range map[string]*os.File{
		"a datagram socket": file(t, udp), "a connection": file(t, connected.(*net.TCPConn)), "an ordinary file": ordinary,
	} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"=adopt", "LISTEN_FDS=2", "LISTEN_FDNAMES=https:odd")
		cmd.ExtraFiles = []*os.File{file(t, tcp.(*net.TCPListener)), f}
		lines := start(t, cmd)
		if got := strings.Join(lines, "\n"); !strings.HasPrefix(got, `error: socket 2 of the service manager, "odd"`) {
			t.Errorf("%s: the child says %q, want an error about socket 2", name, got)
		}
	}
}

// The program that systemd has for trying out services.
func TestSystemdSocketActivate(t *testing.T) {
	activate, err := exec.LookPath("systemd-socket-activate")
	if err != nil {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command(activate, "--listen="+path, "--fdname=https", "--setenv="+childVariable+"=plain", os.Args[0])
	out := launch(t, cmd)
	var c net.Conn
	eventually(t, "nobody listens", func() bool { // the first connection starts the child
		c, err = net.Dial("unix", path)
		return err == nil
	})
	defer c.Close()
	if text, err := io.ReadAll(c); err != nil || string(text) != "https" {
		t.Errorf("got %q, %v; want the listener's name", text, err)
	}
	if text, err := io.ReadAll(out); err != nil || !strings.HasPrefix(string(text), "https unix "+path) {
		t.Errorf("the child says %q, %v", text, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
