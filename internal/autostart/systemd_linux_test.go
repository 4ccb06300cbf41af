package autostart

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestUnit(t *testing.T) {
	s := &Service{
		Name: "raimonc-x", Description: "Tunnels of raimonc-x", Program: "/opt/a b/$1/100%/raimonc", Folder: `/home/me/50% of "it"`,
		Arguments: []string{"-config", `/home/me/50% of "it"/a\b$HOME.toml`}, Reload: []string{"reload"}, Hopeless: 23,
	}
	want := `[Unit]
Description=Tunnels of raimonc-x

[Service]
Type=notify
WorkingDirectory=/home/me/50%% of "it"
ExecStart="/opt/a b/$1/100%%/raimonc" "-config" "/home/me/50%% of \"it\"/a\\b$$HOME.toml"
ExecReload="/opt/a b/$1/100%%/raimonc" "reload"
Restart=on-failure
RestartSec=5s
RestartPreventExitStatus=23

[Install]
WantedBy=default.target
`
	if got := s.unit(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// Systemd finds the program under any name that Install takes.
func TestUnitOfStrangeNames(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip(err)
	}
	for _, name := range []string{"plain", "two words", "$HOME", "${HOME}", "100%h", "größe", "a;b|c&d", "-x", "~", "#", "{{x}}"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), name)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			program := filepath.Join(dir, name)
			if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			s := &Service{Name: "x", Description: "x", Program: program, Folder: dir, Arguments: []string{program}, Reload: []string{name}}
			if err := s.check(); err != nil {
				t.Fatal(err)
			}
			unit := filepath.Join(t.TempDir(), "x.service")
			if err := os.WriteFile(unit, []byte(s.unit()), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(analyze, "--user", "verify", unit)
			cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
			if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "x.service") {
				t.Errorf("%v\n%s\n%s", err, out, s.unit())
			}
		})
	}
}

func TestNamesThatAreRefused(t *testing.T) {
	for _, name := range []string{"/a\nb", "/a ", "/a\xff", "/a\"b", `/a\b`, "/a'b", "relative"} {
		s := &Service{Name: "x", Program: name, Folder: "/"}
		t.Setenv("PATH", t.TempDir())
		_, err := s.Install(t.Context())
		if err == nil || strings.Contains(err.Error(), "systemctl") {
			t.Errorf("%q: got %v, want that the name is refused", name, err)
		}
	}
}
