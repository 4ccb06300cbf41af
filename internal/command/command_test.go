package command

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"raimon/internal/options"
)

func noEnvironment(string) (string, bool) { return "", false }

// parse is what a start of the client with these arguments comes to.
func parse(args ...string) (*invocation, error) {
	i := &invocation{
		Program: &Program{Side: options.Client, Help: "how to call it\n", Commands: []Command{
			{Name: "stdio", Help: "how to call stdio\n", Actions: []Action{{Argument: "remote", Edge: true, Options: true, NoConfig: true}}},
		}},
		stdout: new(bytes.Buffer), stderr: new(bytes.Buffer),
	}
	return i, i.parse(args, noEnvironment)
}

func TestArguments(t *testing.T) {
	for name, test := range map[string]struct {
		args    string
		word    string
		listen  []string
		timeout string
	}{
		"two addresses":     {args: ":1 b:2", listen: []string{":1"}, timeout: "10s"},
		"options":           {args: ":1 b:2 timeout=3", listen: []string{":1"}, timeout: "3s"},
		"flags first":       {args: "-v -log-format json :1 b:2 timeout=3", listen: []string{":1"}, timeout: "3s"},
		"flags in between":  {args: ":1 -v b:2 -log-format=json timeout=3", listen: []string{":1"}, timeout: "3s"},
		"flags last":        {args: ":1 b:2 timeout=3 -v", listen: []string{":1"}, timeout: "3s"},
		"two dashes":        {args: "--v :1 b:2", listen: []string{":1"}, timeout: "10s"},
		"end of flags":      {args: "-- :1 b:2", listen: []string{":1"}, timeout: "10s"},
		"word":              {args: "stdio b:2 timeout=3", word: "stdio", timeout: "3s"},
		"unix":              {args: "unix:sock b:2", listen: []string{"unix:sock"}, timeout: "10s"},
		"Android VPN alone": {args: "-V :1 b:2", listen: []string{":1"}, timeout: "10s"},
	} {
		t.Run(name, func(t *testing.T) {
			i, err := parse(strings.Fields(test.args)...)
			if err != nil {
				t.Fatal(err)
			}
			job := i.job
			if job.Word != test.word || !slices.Equal(job.Listen, test.listen) || job.Remote != "b:2" || job.Plugin ||
				job.Options.Timeout.String() != test.timeout {
				t.Errorf("%+v with %+v", job, job.Options)
			}
		})
	}
}

func TestHelpWinsOverMistakesInWords(t *testing.T) {
	i, err := parse("nonsense", "-h", "1", "2", "3")
	if err != nil || !i.done || !strings.HasPrefix(i.stdout.(*bytes.Buffer).String(), "how to call it\n") {
		t.Errorf("got %v, %q; want the help", err, i.stdout)
	}
}

func TestFail(t *testing.T) {
	i, parseErr := parse(":1", "b:2", "tls;sny=example.com")
	for _, test := range []struct {
		err    error
		status int
		want   string
	}{
		{errors.New("line down"), ExitFailed, "raimonc: line down\n"},
		{&ConfigError{errors.New("no such file"), "make one"}, ExitConfig, "raimonc: no such file\nraimonc: hint: make one\n"},
		{parseErr, ExitConfig, "raimonc: option \"sny\" is unknown and ignored: did you mean \"sni\"?\n" +
			"raimonc: option \"tls\": sni is not given\n" +
			"raimonc: hint: add sni=example.com, the name in the server's certificate\n"},
	} {
		stderr := new(bytes.Buffer)
		i.stderr = stderr
		if status := i.fail(test.err); status != test.status || stderr.String() != test.want {
			t.Errorf("fail(%v): status %d, %q; want %d, %q", test.err, status, stderr, test.status, test.want)
		}
	}
}

func TestLogger(t *testing.T) {
	for _, test := range []struct{ format, level, want string }{
		{"", "", `"msg":"info"`},
		{"json", "", `"msg":"info"`},
		{"text", "", `msg=info`},
		{"text", "debug", `msg=debug`},
		{"text", "warning", `msg=warn`},
		{"text", "error", `msg=error`},
		{"text", "none", ``},
	} {
		var b bytes.Buffer
		log := newLogger(&b, test.format, levels[test.level])
		log.Debug("debug")
		log.Info("info")
		log.Warn("warn")
		log.Error("error")
		first, _, _ := strings.Cut(b.String(), "\n")
		if test.want == "" && first != "" || !strings.Contains(first, test.want) {
			t.Errorf("format %q, level %q: the first line is %q, want %q in it", test.format, test.level, first, test.want)
		}
	}
}

// parseServer is what a start of the server with these arguments comes to.
func parseServer(args ...string) (*invocation, error) {
	i := &invocation{
		Program: &Program{Side: options.Server, Help: "how to call it\n", Commands: []Command{{
			Name: "certs", Help: "how to call certs\n",
			Actions: []Action{{Word: "list", Options: true, JSON: true}, {Word: "renew", Argument: "name", Options: true}, {Word: "forget"}},
		}}},
		stdout: new(bytes.Buffer), stderr: new(bytes.Buffer),
	}
	return i, i.parse(args, noEnvironment)
}

func TestCommandArguments(t *testing.T) {
	for args, want := range map[string]Job{
		"certs list":                  {Action: "list"},
		"certs list -json storage=/x": {Action: "list", JSON: true, Options: &options.Options{Storage: "/x"}},
		"-v certs -log-format json renew a.test storage=/x": {Action: "renew", Argument: "a.test", Options: &options.Options{Storage: "/x", LogLevel: "debug"}},
		"certs renew a.test -v":                             {Action: "renew", Argument: "a.test", Options: &options.Options{LogLevel: "debug"}},
	} {
		t.Run(args, func(t *testing.T) {
			i, err := parseServer(strings.Fields(args)...)
			if err != nil {
				t.Fatal(err)
			}
			if want.Options == nil {
				want.Options = &options.Options{}
			}
			got := i.job
			if got.Word != "certs" || got.Action != want.Action || got.Argument != want.Argument || got.JSON != want.JSON ||
				got.Options.Storage != want.Options.Storage || got.Options.LogLevel != want.Options.LogLevel {
				t.Errorf("%+v with %+v", got, got.Options)
			}
		})
	}
}

func TestCommandHelp(t *testing.T) {
	for args, want := range map[string]string{
		"certs":         "how to call certs\n",
		"certs -h":      "how to call certs\n",
		"-h certs list": "how to call certs\n",
		"certs x -h":    "how to call certs\n",
	} {
		i, err := parseServer(strings.Fields(args)...)
		if got := i.stdout.(*bytes.Buffer).String(); err != nil || !i.done || got != want {
			t.Errorf("%s: got %v, %q; want %q", args, err, got, want)
		}
	}
}

func TestCommandMistakes(t *testing.T) {
	for args, want := range map[string]struct{ text, hint string }{
		"certs lst":                   {`"lst"`, "raimons certs list, or raimons certs renew <name>, or raimons certs forget; raimons certs -h explains"},
		"certs renew":                 {"the name is missing", "raimons certs renew <name> [options]"},
		"certs renew storage=/x":      {"the name is missing", "raimons certs renew <name> [options]"},
		"certs list storage=/x acme":  {`"acme" is one argument too many`, "quotes"},
		"certs renew a.test -json":    {"-json", "exit status"},
		"-json :1 b:2":                {"-json", "raimons -h"},
		"cert list":                   {`"cert" is neither`, "did you mean raimons certs?"},
		"certificates":                {`"certificates" is neither`, "did you mean raimons certs?"},
		"certs list storage=/x;=":     {"option", ""},
		"certs list -log-format=yaml": {"-log-format", "-h"},
		"certs forget storage=/x":     {`"storage=/x" is one argument too many`, "raimons certs forget; raimons certs -h explains"},
		"certs forget edge.toml":      {`"edge.toml" is one argument too many`, "for that file: raimons certs forget -config edge.toml"},
		"crets list":                  {`"crets" is neither`, "did you mean raimons certs?"},
		"help":                        {`"help" is neither`, "did you mean raimons -help?"},
		"443 b:2":                     {`"443" is neither`, "write :443"},
		"-tls :1 b:2":                 {"-tls", "tls is an option: it has no dash"},
		"-tsl :1 b:2":                 {"-tsl", "raimons -h"},
		"-v=2 :1 b:2":                 {"-v", "raimons -h"},
	} {
		_, err := parseServer(strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), want.text) || !strings.Contains(Hint(err), want.hint) {
			t.Errorf("%s: got %v (hint %q), want %q (hint %q)", args, err, Hint(err), want.text, want.hint)
		}
	}
}
