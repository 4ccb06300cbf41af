package autostart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Install writes a user unit and has it start with the next login. It returns the name of the file.
func (s *Service) Install(ctx context.Context) (string, error) {
	if err := s.check(); err != nil {
		return "", err
	}
	if strings.ContainsAny(s.Program, `"'\`) || strings.HasSuffix(s.Folder, `\`) {
		return "", &Error{Text: fmt.Sprintf("%q: systemd knows no such name", s.Program), Fix: "move it to a folder without quotes and backslashes in its name"}
	}
	if err := s.systemctl(ctx, "show", "--property=Version"); err != nil {
		return "", err
	}
	file, err := s.unitFile()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return "", err
	}
	if err := write(file, s.unit()); errors.Is(err, fs.ErrExist) {
		if err := s.installed(); errors.Is(err, ErrOther) {
			return "", err
		}
		return "", s.installedAlready(file)
	} else if err != nil {
		return "", err
	}
	for _, step := range [][]string{{"daemon-reload"}, {"enable", s.unitName()}} {
		if err := s.systemctl(ctx, step...); err != nil {
			return "", errors.Join(err, os.Remove(file))
		}
	}
	return file, nil
}

// write makes a new file, whole or not at all.
func write(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(name)
	}
	return err
}

// Start starts the service now.
func (s *Service) Start(ctx context.Context) error {
	if err := s.installed(); err != nil {
		return err
	}
	return s.systemctl(ctx, "start", s.unitName())
}

// Stop ends the service until the next login.
func (s *Service) Stop(ctx context.Context) error {
	if err := s.installed(); err != nil {
		return err
	}
	return s.systemctl(ctx, "stop", s.unitName())
}

// Uninstall ends the service and removes the unit.
func (s *Service) Uninstall(ctx context.Context) error {
	if err := s.installed(); err != nil {
		return err
	}
	file, err := s.unitFile()
	if err != nil {
		return err
	}
	if err := s.systemctl(ctx, "disable", "--now", s.unitName()); err != nil {
		return err
	}
	if err := os.Remove(file); err != nil {
		return err
	}
	return s.systemctl(ctx, "daemon-reload")
}

// State asks the manager.
func (s *Service) State(ctx context.Context) (State, error) {
	if err := s.installed(); err != nil {
		return State{}, err
	}
	text, err := s.output(ctx, "show", "--property=ActiveState,SubState,UnitFileState", s.unitName())
	if err != nil {
		return State{}, err
	}
	properties := make(map[string]string)
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		properties[key] = value
	}
	active := properties["ActiveState"]
	return State{
		Running: active == "active" || active == "reloading",
		Text:    fmt.Sprintf("%s (%s), %s", active, properties["SubState"], properties["UnitFileState"]),
	}, nil
}

// LogHint says where the log is.
func (s *Service) LogHint() string { return "journalctl --user -u " + s.Name + " shows its log" }

// installed tells whether s is, and not another one of its name.
func (s *Service) installed() error {
	file, err := s.unitFile()
	if err != nil {
		return err
	}
	unit, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s.notInstalled()
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(unit)) {
		if strings.HasPrefix(line, "ExecStart=") && strings.HasSuffix(strings.TrimSpace(line), quoted(s.Arguments)) {
			return nil
		}
	}
	return s.isOther()
}

func (s *Service) unitName() string { return s.Name + ".service" }

// unitFile is where systemd looks for units of this user (systemd.unit(5)).
func (s *Service) unitFile() (string, error) {
	dir, err := os.UserConfigDir()
	return filepath.Join(dir, "systemd", "user", s.unitName()), err
}

// unit is the text of the unit. The program has to say that it is ready (see package service), so that Start tells of a
// file that is wrong, or of a port that is taken.
//
// It has nothing that implies NoNewPrivileges=: that would take the capabilities of the program's file away, with which
// some listen below port 1024, and what programs that it runs may need.
func (s *Service) unit() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("[Unit]")
	line("Description=%s", s.Description)
	line("")
	line("[Service]")
	line("Type=notify")
	line("WorkingDirectory=%s", strings.ReplaceAll(s.Folder, "%", "%%"))
	line("ExecStart=%s", s.commandLine(s.Arguments))
	if s.Reload != nil {
		line("ExecReload=%s", s.commandLine(s.Reload))
	}
	line("Restart=on-failure")
	line("RestartSec=5s")
	if s.Hopeless != 0 {
		line("RestartPreventExitStatus=%d", s.Hopeless)
	}
	line("")
	line("[Install]")
	line("WantedBy=default.target")
	return b.String()
}

// commandLine quotes for systemd.service(5). Variables are looked for in arguments alone.
func (s *Service) commandLine(arguments []string) string {
	return `"` + strings.ReplaceAll(s.Program, "%", "%%") + `"` + quoted(arguments)
}

// quoted is arguments as they stand behind a program, each after a space.
func quoted(arguments []string) string {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`, `$`, `$$`)
	var b strings.Builder
	for _, a := range arguments {
		b.WriteString(` "` + escape.Replace(a) + `"`)
	}
	return b.String()
}

func (s *Service) systemctl(ctx context.Context, args ...string) error {
	_, err := s.output(ctx, args...)
	return err
}

// output runs systemctl for this user and returns what it says.
func (s *Service) output(ctx context.Context, args ...string) (string, error) {
	program, err := exec.LookPath("systemctl")
	if err != nil {
		return "", &Error{Text: "there is no systemctl here, and no other service manager is known on Linux", Fix: s.byHand(), Err: err}
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, append([]string{"--user", "--no-pager"}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	said := strings.Join(strings.Fields(stderr.String()), " ")
	if said == "" {
		said = err.Error()
	}
	e := &Error{Text: fmt.Sprintf("systemctl --user %s: %s", args[0], said), Err: err}
	switch {
	case strings.Contains(said, "bus"):
		e.Fix = "systemd has no manager for this user here: log in as the user, not with su or sudo; or " + s.byHand()
	case args[0] == "start":
		e.Fix = s.LogHint()
	}
	return "", e
}
