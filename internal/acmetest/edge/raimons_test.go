package edge_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"raimon/internal/acmetest"
	"raimon/internal/commandtest"
	"raimon/internal/tunneltest"
)

// raimons is a running edge in front of an echo.
type raimons struct {
	*commandtest.Process
	tunnels string // address where tunnels are accepted
	web     string // address where HTTP-01 is answered; empty with http=off
}

// start starts raimons, as a customer of ca. The options are completed by complete.
func start(t testing.TB, ca *acmetest.CA, options string) *raimons {
	t.Helper()
	return startAt(t, "127.0.0.1:0", complete(t, ca, options))
}

func startAt(t testing.TB, listen, options string) *raimons {
	t.Helper()
	return running(t, exec.Command(filepath.Join(bin, "raimons"), listen, tunneltest.Echo(t), options))
}

var (
	tunnelsAt = regexp.MustCompile(`"msg":"listening","address":"([^"]+)","target"`)
	webAt     = regexp.MustCompile(`"msg":"listening for http","address":"([^"]+)","for"`)
)

// running starts cmd, which runs raimons, and waits until it takes tunnels.
func running(t testing.TB, cmd *exec.Cmd) *raimons {
	t.Helper()
	e := &raimons{Process: commandtest.Start(t, cmd)}
	found, err := e.Log.Find(tunnelsAt)
	if err != nil {
		t.Fatal(err)
	}
	e.tunnels = found[1]
	if found := webAt.FindStringSubmatch(e.Log.String()); found != nil {
		e.web = found[1]
	}
	return e
}

// complete adds to options what every edge here needs and this one does not say: TLS, ca, a folder of its own, and
// no port 80.
func complete(t testing.TB, ca *acmetest.CA, options string) string {
	t.Helper()
	all := ";" + options
	for _, o := range []struct{ key, value string }{
		{"tls", ""}, {"acme-ca=", ca.Directory}, {"acme-root=", ca.Root.File}, {"http=", "off"}, {"storage=", t.TempDir()},
	} {
		if !strings.Contains(all+";", ";"+o.key) {
			all += ";" + o.key + o.value
		}
	}
	return all[1:]
}

// end ends the process as systemd does.
func (e *raimons) end(t testing.TB) {
	t.Helper()
	if status := e.signal(t, syscall.SIGTERM); status != 0 {
		t.Errorf("ended with status %d", status)
	}
}

// kill gives the process no time for anything.
func (e *raimons) kill(t testing.TB) {
	t.Helper()
	e.signal(t, os.Kill)
}

func (e *raimons) signal(t testing.TB, signal os.Signal) (status int) {
	t.Helper()
	process, err := os.FindProcess(e.PID())
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Signal(signal); err != nil {
		t.Fatal(err)
	}
	return e.Ended(t)
}

// line is one line of the log.
type line struct {
	Level, Msg, Name, Error, Hint, Issuer string
}

// lines returns the lines of the log with a message so far.
func (e *raimons) lines(t testing.TB, message string) (all []line) {
	t.Helper()
	for text := range strings.Lines(e.Log.String()) {
		var l line
		if !strings.HasSuffix(text, "\n") {
			break // it is being written
		}
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("log line %q: %v", text, err)
		}
		if l.Msg == message {
			all = append(all, l)
		}
	}
	return all
}

// failure waits for the line that says why there is no certificate, and returns it.
func (e *raimons) failure(t testing.TB) line {
	t.Helper()
	e.Log.Wait(t, `"no certificate yet".*\n`)
	all := e.lines(t, "no certificate yet")
	if all[0].Hint == "" {
		t.Errorf("no hint: %+v", all[0])
	}
	return all[0]
}

// wantQuiet wants that the log has nothing above info, but that this is not port 443.
func (e *raimons) wantQuiet(t testing.TB) {
	t.Helper()
	if n := e.Log.Count(`"level":"(WARN|ERROR)"`) - len(e.lines(t, "no CA may be able to reach us: it comes to port 443 or port 80 of the names")); n != 0 {
		t.Errorf("%d warnings or errors in the log", n)
	}
}

// file writes a file that is removed with the test.
func file(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	mode := os.FileMode(0o600)
	if strings.HasPrefix(content, "#!") {
		mode = 0o700
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}
