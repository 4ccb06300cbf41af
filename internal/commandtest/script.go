package commandtest

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"raimon/internal/tunneltest"
	"raimon/tunnel"
)

// Scripts runs testdata/script/*.txtar. Besides testscript's own, they have these commands:
//
//	start <name> <program> [argument ...]
//	                         runs in the background and waits until it listens; $name is the address,
//	                         $name_pin the pin of a self-signed certificate
//	log <name> <regexp>      waits until the log of name matches; with ! it must not match now
//	end <name>               ends it with SIGTERM; the exit status must be 0
//	hangup <name>            sends it SIGHUP
//	status <n> <program> [argument ...]
//	                         runs to the end; the exit status must be n
//	say <address> <text>     sends text, ends its direction, and has the answer as stdout;
//	                         with ! it has to fail, the reason is in stderr
//	port <variable>          sets the variable to a free port
//
// The condition root is true for the superuser.
//
// $target is a target on 127.0.0.1:$target_port that sends back what it gets, $nobody an address where nobody listens. $certs has
// the folders a and b, each with cert.pem, key.pem and ca.pem of another CA, for the names localhost and
// a.test or b.test.
func Scripts(t *testing.T) {
	target, certs := tunneltest.Echo(t), t.TempDir()
	for _, name := range []string{"a", "b"} {
		dir := filepath.Join(certs, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		ca := tunneltest.NewCA(t)
		ca.Write(t, dir, ca.Issue(t, name+".test", "localhost"))
	}
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		Deadline:            time.Now().Add(3 * Patience),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			home := filepath.Join(env.WorkDir, ".home")
			env.Setenv("HOME", home)
			env.Setenv("XDG_CACHE_HOME", filepath.Join(home, ".cache"))
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(home, ".config"))
			env.Setenv("XDG_RUNTIME_DIR", filepath.Join(home, ".run"))
			env.Setenv("STATE_DIRECTORY", filepath.Join(home, ".state")) // root's own is not for tests
			env.Setenv("GORACE", gorace)
			env.Setenv("target", target)
			env.Setenv("target_port", target[strings.LastIndexByte(target, ':')+1:])
			env.Setenv("nobody", "127.0.0.1:1") // tcpmux: nobody has it
			env.Setenv("certs", certs)
			env.Values[processes{}] = make(map[string]*Process)
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name != "root" {
				return false, fmt.Errorf("no condition %q", name)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start":  startCommand,
			"log":    logCommand,
			"end":    endCommand,
			"hangup": hangupCommand,
			"status": statusCommand,
			"say":    sayCommand,
			"port":   portCommand,
		},
	})
}

// processes is the key of a script's processes by name.
type processes struct{}

func running(ts *testscript.TestScript, name string) *Process {
	p := ts.Value(processes{}).(map[string]*Process)[name]
	if p == nil {
		ts.Fatalf("no process %q was started", name)
	}
	return p
}

func startCommand(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 2, "start name program [argument ...]")
	name := args[0]
	p, err := start(command(ts, args[1:]))
	ts.Check(err)
	ts.Value(processes{}).(map[string]*Process)[name] = p
	ts.Defer(func() {
		p.Kill()
		ts.Logf("log of %s:\n%s", name, p.Log)
		if trouble := p.trouble(); trouble != "" {
			ts.Fatalf("%s: %s", name, trouble)
		}
	})
	ts.Setenv(name, p.Address)
	ts.Setenv(name+"_pin", p.Pin)
}

// command runs in the script's folder, with what the script sets of the environment that our programs look at.
func command(ts *testscript.TestScript, args []string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = ts.MkAbs(".")
	for _, key := range []string{
		"PATH", "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "STATE_DIRECTORY", "TMPDIR", "SYSTEMROOT", "GORACE", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
		"SSL_CERT_FILE", "SSL_CERT_DIR",
		"SS_REMOTE_HOST", "SS_REMOTE_PORT", "SS_LOCAL_HOST", "SS_LOCAL_PORT", "SS_PLUGIN_OPTIONS",
	} {
		cmd.Env = append(cmd.Env, key+"="+ts.Getenv(key))
	}
	return cmd
}

func logCommand(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 2, "log name regexp")
	pattern, err := regexp.Compile(args[1])
	ts.Check(err)
	p := running(ts, args[0])
	if !neg {
		_, err := p.Log.Find(pattern)
		ts.Check(err)
	} else if line := pattern.FindString(p.Log.String()); line != "" {
		ts.Fatalf("unexpected in the log of %s: %s", args[0], line)
	}
}

func hangupCommand(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "hangup name")
	ts.Check(running(ts, args[0]).cmd.Process.Signal(syscall.SIGHUP))
}

func endCommand(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "end name")
	p := running(ts, args[0])
	ts.Check(p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.ended:
	case <-time.After(Patience):
		ts.Fatalf("%s is still running after %v", args[0], Patience)
	}
	if status := p.cmd.ProcessState.ExitCode(); status != 0 {
		ts.Fatalf("%s ended with status %d", args[0], status)
	}
}

func statusCommand(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) >= 2, "status n program [argument ...]")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	cmd := command(ts, args[1:])
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	ts.Check(cmd.Start())
	late := time.AfterFunc(Patience, func() { cmd.Process.Kill() })
	cmd.Wait()
	if !late.Stop() {
		ts.Fatalf("still running after %v", Patience)
	}
	got := cmd.ProcessState.ExitCode()
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

func sayCommand(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 2, "say address text")
	network, name, err := tunnel.ParseAddress(args[0])
	ts.Check(err)
	if network == "unix" {
		name = ts.MkAbs(name)
	}
	answer, err := say(network, name, args[1])
	fmt.Fprint(ts.Stdout(), answer)
	if err != nil {
		fmt.Fprintln(ts.Stderr(), err)
	}
	if err != nil && !neg {
		ts.Fatalf("say: %v", err)
	}
	if err == nil && neg {
		ts.Fatalf("say: the answer is complete: %q", answer)
	}
}

func say(network, name, text string) (answer string, err error) {
	c, err := net.DialTimeout(network, name, Patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(Patience))
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.(tunnel.Conn).CloseWrite(); err != nil {
		return "", err
	}
	data, err := io.ReadAll(c)
	return string(data), err
}

func portCommand(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && len(args) == 1, "port variable")
	ts.Setenv(args[0], tunneltest.FreePort())
}

func usage(ts *testscript.TestScript, ok bool, text string) {
	if !ok {
		ts.Fatalf("usage: %s", strings.TrimSpace(text))
	}
}
