package edge_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"raimon/edge"
)

// lines counts the writes beside what they say.
type lines struct {
	record
	writes int
}

func (l *lines) Write(p []byte) (int, error) {
	l.writes++
	return l.record.Write(p)
}

func TestAccessLog(t *testing.T) {
	for _, test := range []struct {
		name, target, referer, agent string
		edit                         func(*http.Request)
		want                         string
	}{
		{"plain", "/a?b=c", "https://www.test/x", "curl/8", nil, `192.0.2.1 - - [T] "GET /a?b=c HTTP/1.1" 200 5 "https://www.test/x" "curl/8"`},
		{"nothing said", "/", "", "", nil, `192.0.2.1 - - [T] "GET / HTTP/1.1" 200 5 "-" "-"`},
		{"escapes", "/", `a"b\c`, "x\ny\x1b[31m\xfc\t", nil, `192.0.2.1 - - [T] "GET / HTTP/1.1" 200 5 "a\"b\\c" "x\ny\x1b[31m\xfc\t"`},
		{"secrets", "/a?token=s1&b=c&Access_Token=s2;key=s3&monkey=d&%6bey=s4&token", "https://u:s5@www.test/?x=y&key=s6#z", "", nil,
			`192.0.2.1 - - [T] "GET /a?token=***&b=c&Access_Token=***;key=***&monkey=d&%6bey=***&token HTTP/1.1" 200 5 "https://***@www.test/?x=y&key=***#z" "-"`},
		{"secret in a proxy request", "http://u:s1@www.test/", "", "", nil, `192.0.2.1 - - [T] "GET http://***@www.test/ HTTP/1.1" 200 5 "-" "-"`},
		{"IPv6", "/", "", "", func(r *http.Request) { r.RemoteAddr = "[2001:db8::1]:443" }, `2001:db8::1 - - [T] "GET / HTTP/1.1" 200 5 "-" "-"`},
		{"unix", "/", "", "", func(r *http.Request) { r.RemoteAddr = "@" }, `- - - [T] "GET / HTTP/1.1" 200 5 "-" "-"`},
		{"HEAD", "/", "", "", func(r *http.Request) { r.Method = "HEAD" }, `192.0.2.1 - - [T] "HEAD / HTTP/1.1" 200 - "-" "-"`},
		{"HTTP/2", "/", "", "", func(r *http.Request) { r.Proto = "HTTP/2.0" }, `192.0.2.1 - - [T] "GET / HTTP/2.0" 200 5 "-" "-"`},
		{"404", "/404", "", "", nil, `192.0.2.1 - - [T] "GET /404 HTTP/1.1" 404 19 "-" "-"`},
		{"empty", "/empty", "", "", nil, `192.0.2.1 - - [T] "GET /empty HTTP/1.1" 200 - "-" "-"`},
		{"hints first", "/early", "", "", nil, `192.0.2.1 - - [T] "GET /early HTTP/1.1" 204 - "-" "-"`},
		{"panic", "/panic", "", "", nil, `192.0.2.1 - - [T] "GET /panic HTTP/1.1" 500 - "-" "-"`},
		{"long", "/" + strings.Repeat("x", 9000), "", "", nil, `192.0.2.1 - - [T] "GET /` + strings.Repeat("x", 2047) + `... HTTP/1.1" 200 5 "-" "-"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			var log lines
			h := edge.AccessLog(&log, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/404":
					http.NotFound(w, r)
				case "/empty":
				case "/early":
					w.WriteHeader(http.StatusEarlyHints)
					w.WriteHeader(http.StatusNoContent)
				case "/panic":
					panic(http.ErrAbortHandler)
				default:
					fmt.Fprint(w, "hello")
				}
			}))
			r := httptest.NewRequest("GET", test.target, nil)
			r.RemoteAddr = "192.0.2.1:1234"
			r.Header.Set("Referer", test.referer)
			r.Header.Set("User-Agent", test.agent)
			if test.edit != nil {
				test.edit(r)
			}
			func() {
				defer func() {
					if p := recover(); (p != nil) != (test.name == "panic") {
						t.Errorf("panic: %v", p)
					}
				}()
				h.ServeHTTP(httptest.NewRecorder(), r)
			}()
			got := regexp.MustCompile(`\[\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]`).ReplaceAllString(log.String(), "[T]")
			if got != test.want+"\n" || log.writes != 1 {
				t.Errorf("in %d writes:\n%swant\n%s", log.writes, got, test.want)
			}
		})
	}
}

// Tunnels are no business of the website's log, and those who ask in vain are.
func TestAccessLogHasNoTunnels(t *testing.T) {
	log := new(record)
	address := run(t, nil, &edge.Site{Behind: edge.AccessLog(log, http.NotFoundHandler()), Routes: routes(t)})
	for path, want := range map[string]string{openPath: "101", lockedPath: "404"} {
		answer := converse(t, address, strings.ReplaceAll(upgradeText, "%s", path))
		if !strings.HasPrefix(answer, "HTTP/1.1 "+want) {
			t.Errorf("%s: got %q", path, answer)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, lockedPath+` HTTP/1.1" 404 `) || !strings.HasPrefix(got, "127.0.0.1 ") {
		t.Errorf("got %q", got)
	}
}

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestLogFileFollowsItsName(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows moves no file that is open")
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "access.log")
	write(t, dir, map[string]string{"access.log": "before\n"})
	synctest.Test(t, func(t *testing.T) {
		l, err := edge.OpenLogFile(name, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		fmt.Fprintln(l, "one")
		if err := os.Rename(name, name+".1"); err != nil {
			t.Fatal(err)
		}
		if err := l.Reopen(); err != nil { // as logrotate asks for
			t.Fatal(err)
		}
		fmt.Fprintln(l, "two")
		if err := os.Rename(name, name+".2"); err != nil { // by hand
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		fmt.Fprintln(l, "three")
		write(t, dir, map[string]string{"other": "other\n"})
		if err := os.Rename(filepath.Join(dir, "other"), name); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		fmt.Fprintln(l, "four")
	})
	for suffix, want := range map[string]string{".1": "before\none\n", ".2": "two\n", "": "other\nfour\n"} {
		if got := read(t, name+suffix); got != want {
			t.Errorf("%s%s: got %q, want %q", name, suffix, got, want)
		}
	}
	if info, err := os.Stat(name + ".2"); err != nil || info.Mode().Perm()&^0o640 != 0 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// Trouble with the file is told once, and what is open stays in use.
func TestLogFileInTrouble(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows moves no folder with a file that is open")
	}
	dir := filepath.Join(t.TempDir(), "log")
	write(t, dir, map[string]string{"access.log": ""})
	name := filepath.Join(dir, "access.log")
	trouble := new(record)
	synctest.Test(t, func(t *testing.T) {
		l, err := edge.OpenLogFile(name, slogTo(trouble))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(dir, dir+".moved"); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			time.Sleep(time.Second)
			fmt.Fprintln(l, "kept")
			fmt.Fprintln(l, "kept")
		}
		if err := l.Reopen(); err == nil {
			t.Error("Reopen without a folder succeeds")
		}
		if err := os.Rename(dir+".moved", dir); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			time.Sleep(time.Second)
			fmt.Fprintln(l, "kept")
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := fmt.Fprintln(l, "late"); err != os.ErrClosed {
			t.Errorf("after Close: %v", err)
		}
		if err := l.Reopen(); err != os.ErrClosed {
			t.Errorf("after Close: %v", err)
		}
	})
	if got := read(t, name); got != strings.Repeat("kept\n", 8) {
		t.Errorf("got %q", got)
	}
	if got := trouble.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "goes on") {
		t.Errorf("told: %s", got)
	}
	if _, err := edge.OpenLogFile(filepath.Join(dir, "none", "access.log"), nil); err == nil {
		t.Error("a file in no folder is open")
	}
}

// Lines of several requests do not mix.
func TestLogFileConcurrently(t *testing.T) {
	name := filepath.Join(t.TempDir(), "access.log")
	l, err := edge.OpenLogFile(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 500) + "\n"
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				fmt.Fprint(l, line)
				if err := l.Reopen(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if read(t, name) != strings.Repeat(line, 800) {
		t.Error("lines are mixed or lost")
	}
}
