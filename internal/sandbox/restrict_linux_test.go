package sandbox_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"raimon/internal/sandbox"
)

// Variables that make this test binary a process behind walls. Lists have blanks between.
const (
	childVariable = "RAIMON_SANDBOX_TEST_CHILD"
	readVariable  = "RAIMON_SANDBOX_TEST_READ"
	writeVariable = "RAIMON_SANDBOX_TEST_WRITE"
	runVariable   = "RAIMON_SANDBOX_TEST_RUN"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	if err := child(); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// child restricts itself, and then does what it is told, a line at a time.
func child() error {
	list := func(variable string) []string { return strings.Fields(os.Getenv(variable)) }
	s, err := sandbox.Restrict(sandbox.Paths{Read: list(readVariable), Write: list(writeVariable), Run: list(runVariable)})
	if err != nil {
		return err
	}
	fmt.Println(s.State)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if words[0] == "missing" {
			fmt.Println(strings.Join(s.Missing(sandbox.Paths{Read: words[1:]}), " "))
			continue
		}
		if err := do(words[0], words[1:]); err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println("ok")
	}
	return nil
}

func do(verb string, words []string) error {
	switch verb {
	case "read":
		_, err := os.ReadFile(words[0])
		return err
	case "list":
		_, err := os.ReadDir(words[0])
		return err
	case "write":
		return os.WriteFile(words[0], []byte("text"), 0o600)
	case "move":
		return os.Rename(words[0], words[1])
	case "remove":
		return os.Remove(words[0])
	case "run":
		return exec.Command(words[0], words[1:]...).Run()
	case "threads": // each of many has the walls
		errs := make([]error, 16)
		var all, ready sync.WaitGroup
		ready.Add(len(errs))
		for n := range errs {
			all.Go(func() {
				runtime.LockOSThread() // and the thread ends with its goroutine
				ready.Done()
				ready.Wait()
				if _, err := os.ReadFile(words[0]); !errors.Is(err, fs.ErrPermission) {
					errs[n] = fmt.Errorf("a thread gets %v", err)
				}
			})
		}
		all.Wait()
		return errors.Join(errs...)
	case "dial":
		c, err := net.Dial(words[0], words[1])
		if err != nil {
			return err
		}
		return c.Close()
	case "listen":
		l, err := net.Listen(words[0], words[1])
		if err != nil {
			return err
		}
		return l.Close()
	case "system": // what Go itself looks up in files
		if _, err := net.LookupHost("localhost"); err != nil {
			return err
		}
		if _, err := time.LoadLocation("Europe/Berlin"); err != nil && zones() {
			return err
		}
		for _, path := range []string{"/etc/resolv.conf", "/proc/self/status", "/proc/sys/net/core/somaxconn"} {
			if _, err := os.ReadFile(path); err != nil {
				return err
			}
		}
		f, err := os.Open("/dev/urandom")
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.ReadFull(f, make([]byte, 8)); err != nil {
			return err
		}
		return os.WriteFile("/dev/null", []byte("x"), 0)
	}
	return fmt.Errorf("unknown verb %q", verb)
}

func zones() bool {
	_, err := os.Stat("/usr/share/zoneinfo/Europe/Berlin")
	return err == nil
}

// confined is a process behind walls.
type confined struct {
	in  io.WriteCloser
	out *bufio.Scanner
}

func confine(t testing.TB, paths sandbox.Paths) *confined {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1", readVariable+"="+strings.Join(paths.Read, " "),
		writeVariable+"="+strings.Join(paths.Write, " "), runVariable+"="+strings.Join(paths.Run, " "))
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	c := &confined{in: in, out: bufio.NewScanner(out)}
	state := c.line(t)
	switch {
	case strings.HasPrefix(state, "off: "):
		t.Skip(state)
	case !strings.HasPrefix(state, "landlock abi "):
		t.Fatalf("the child says %q", state)
	}
	return c
}

func (c *confined) line(t testing.TB) string {
	t.Helper()
	if !c.out.Scan() {
		t.Fatalf("the child has ended: %v", c.out.Err())
	}
	return c.out.Text()
}

// ask has the child do something, and returns what came of it.
func (c *confined) ask(t testing.TB, words ...string) string {
	t.Helper()
	if _, err := fmt.Fprintln(c.in, strings.Join(words, " ")); err != nil {
		t.Fatal(err)
	}
	return c.line(t)
}

func (c *confined) may(t testing.TB, words ...string) {
	t.Helper()
	if got := c.ask(t, words...); got != "ok" {
		t.Errorf("%v: %s, want ok", words, got)
	}
}

func (c *confined) mayNot(t testing.TB, words ...string) {
	t.Helper()
	if got := c.ask(t, words...); !strings.Contains(got, "permission denied") {
		t.Errorf("%v: %s, want permission denied", words, got)
	}
}

func save(t testing.TB, path string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func link(t testing.TB, target, path string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	cert, other := save(t, filepath.Join(dir, "certs", "cert.pem")), save(t, filepath.Join(dir, "other", "secret"))
	site := filepath.Dir(save(t, filepath.Join(dir, "site", "index.html")))
	page := save(t, filepath.Join(site, "below", "page.html"))
	storage := filepath.Join(dir, "storage")
	moved := save(t, filepath.Join(storage, "a", "file"))

	c := confine(t, sandbox.Paths{Read: []string{cert, site}, Write: []string{storage}})

	c.may(t, "read", cert)
	c.may(t, "read", page)
	c.may(t, "list", site)
	c.mayNot(t, "write", cert)
	c.mayNot(t, "write", page)
	c.mayNot(t, "remove", page)
	c.mayNot(t, "read", other)
	c.mayNot(t, "list", filepath.Dir(other))
	c.mayNot(t, "list", dir)
	c.mayNot(t, "write", filepath.Join(dir, "new"))
	c.mayNot(t, "run", "/bin/true")

	c.may(t, "write", filepath.Join(storage, "new"))
	c.may(t, "write", filepath.Join(storage, "new")) // truncates
	if err := os.Mkdir(filepath.Join(storage, "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.may(t, "move", moved, filepath.Join(storage, "b", "file"))
	c.may(t, "remove", filepath.Join(storage, "b", "file"))

	// A renewed certificate is another file.
	save(t, cert+".new")
	if err := os.Rename(cert+".new", cert); err != nil {
		t.Fatal(err)
	}
	c.may(t, "read", cert)

	c.may(t, "system")
	c.may(t, "threads", other)
}

// As certbot has it, and as Kubernetes has it.
func TestLinks(t *testing.T) {
	dir := t.TempDir()
	save(t, filepath.Join(dir, "archive", "a.test", "cert1.pem"))
	certbot := link(t, "../../archive/a.test/cert1.pem", filepath.Join(dir, "live", "a.test", "cert.pem"))
	save(t, filepath.Join(dir, "secret", "..1", "tls.crt"))
	link(t, "..1", filepath.Join(dir, "secret", "..data"))
	kubernetes := link(t, "..data/tls.crt", filepath.Join(dir, "secret", "tls.crt"))
	save(t, filepath.Join(dir, "www", "releases", "1", "index.html"))
	site := link(t, "releases/1", filepath.Join(dir, "www", "current"))
	outside := save(t, filepath.Join(dir, "archive", "b.test", "cert1.pem"))

	c := confine(t, sandbox.Paths{Read: []string{certbot, kubernetes, site}})

	for range 2 {
		c.may(t, "read", certbot)
		c.may(t, "read", kubernetes)
		c.may(t, "read", filepath.Join(site, "index.html"))
		c.mayNot(t, "read", outside)

		save(t, filepath.Join(dir, "archive", "a.test", "cert2.pem"))
		link(t, "../../archive/a.test/cert2.pem", certbot)
		save(t, filepath.Join(dir, "secret", "..2", "tls.crt"))
		link(t, "..2", filepath.Join(dir, "secret", "..data"))
		save(t, filepath.Join(dir, "www", "releases", "2", "index.html"))
		link(t, "releases/2", site)
	}
}

func TestNetworkStaysFree(t *testing.T) {
	dir := t.TempDir()
	elsewhere := filepath.Join(t.TempDir(), "s")
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": elsewhere} {
		l, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		c := confine(t, sandbox.Paths{Write: []string{filepath.Join(dir, "s")}})
		c.may(t, "dial", network, l.Addr().String())
		c.may(t, "listen", "tcp", "127.0.0.1:0")
		c.may(t, "listen", "unix", filepath.Join(dir, "s"))
		c.mayNot(t, "listen", "unix", elsewhere+"2")
	}
}

func TestPrograms(t *testing.T) {
	dir := t.TempDir()
	hook := filepath.Join(dir, "hook")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\nexec cat \"$1\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	secret := save(t, filepath.Join(t.TempDir(), "secret"))
	readable := save(t, filepath.Join(t.TempDir(), "f"))

	c := confine(t, sandbox.Paths{Read: []string{readable}, Run: []string{hook}})

	c.may(t, "run", hook, readable)
	if got := c.ask(t, "run", hook, secret); got == "ok" {
		t.Error("a program that we start reads what we may not")
	}
}

func TestMissing(t *testing.T) {
	dir := t.TempDir()
	inside, outside := save(t, filepath.Join(dir, "a", "cert.pem")), save(t, filepath.Join(dir, "b", "cert.pem"))
	escape := link(t, "../b/cert.pem", filepath.Join(dir, "a", "link.pem"))
	c := confine(t, sandbox.Paths{Read: []string{inside}})
	next := filepath.Join(dir, "a", "next.pem") // not there yet, but it can be read once it is
	for _, test := range []struct{ path, want string }{
		{inside, ""}, {next, ""}, {filepath.Join(dir, "a", "below", "f"), ""}, {"/etc/ssl/certs/x.pem", ""},
		{outside, outside}, {escape, escape}, {filepath.Join(dir, "c", "f"), filepath.Join(dir, "c", "f")}, {dir, dir},
	} {
		if got := c.ask(t, "missing", test.path); got != test.want {
			t.Errorf("%s: missing is %q, want %q", test.path, got, test.want)
		}
	}
}

func TestFolderThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1", writeVariable+"="+filepath.Join(dir, "a", "b"), readVariable+"=", runVariable+"=")
	out, err := cmd.Output()
	if strings.HasPrefix(string(out), "off: ") {
		t.Skip(string(out))
	}
	if err == nil || !strings.Contains(string(out), filepath.Join(dir, "a", "b")) {
		t.Errorf("got %q, %v; want an error about the path", out, err)
	}
}

// Raimon is built without cgo, and these tests, where they look for races, with it: both have their own way to
// reach all threads.
func TestWithoutCgo(t *testing.T) {
	if os.Getenv("CGO_ENABLED") == "0" || testing.Short() {
		t.Skip("the other tests do that, or -short is set")
	}
	cmd := exec.Command("go", "test", "-count=1", "-run", "^TestFiles$", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
