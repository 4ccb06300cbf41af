package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"raimon/internal/autostart"
	"raimon/internal/command"
)

const serviceHelp = `raimonc service has the tunnels of a config file start with your login, and
again when they fail.

    raimonc service install -config <file>     check the file, and have it
                                               started from the next login on
    raimonc service start -config <file>       start it now
    raimonc service status -config <file>      say whether it runs
    raimonc service stop -config <file>        end it until the next login
    raimonc service uninstall -config <file>   end it, and forget it

Each file is a service of its own, with the name of the file: raimonc-tunnels
for tunnels.toml. It runs this very program in the folder of the file, where
relative names in the file start. After an update of raimonc at the same place,
stop and start it; after a move, uninstall and install it. After a change of the
file, raimonc reload.

  Linux     a user unit of systemd, raimonc-tunnels.service in
            ~/.config/systemd/user. The log:
            journalctl --user -u raimonc-tunnels. To start with the machine
            instead of the login, and to outlive the logout:
            loginctl enable-linger
  macOS     a launchd agent, ~/Library/LaunchAgents/raimonc-tunnels.plist.
            The log: ~/Library/Logs/raimonc-tunnels.err.log
  Windows   a service, for administrators to install; it starts with the
            machine. It runs as LOCAL SERVICE, who has to be able to read the
            file and what that names. The log is in the event viewer

Exit status: 0 when it is done (status: when it runs), 1 when not, 23 when the
file is wrong.
`

var serviceCommand = command.Command{
	Name: "service", Help: serviceHelp,
	Actions: []command.Action{{Word: "install"}, {Word: "start"}, {Word: "status"}, {Word: "stop"}, {Word: "uninstall"}},
	Run:     runService,
}

func runService(ctx context.Context, job *command.Job) error {
	if job.Config == "" {
		return &command.ConfigError{Err: fmt.Errorf("service %s: -config is missing", job.Action), Fix: "raimonc service " + job.Action + " -config <file>"}
	}
	file, err := filepath.Abs(job.Config)
	if err != nil {
		return err
	}
	s, err := newService(file)
	if err != nil {
		return err
	}
	done := ""
	switch job.Action {
	case "install":
		return installService(ctx, job, s, file)
	case "start":
		done, err = "started", startService(ctx, job, s, file)
	case "stop":
		done, err = "stopped", s.Stop(ctx)
	case "uninstall":
		done, err = "uninstalled", s.Uninstall(ctx)
	case "status":
		done, err = serviceState(ctx, s)
	}
	if err != nil {
		return explained(err, file)
	}
	fmt.Fprintf(job.Stdout, "%s: %s\n", s.Name, done)
	return nil
}

// newService is what starts raimonc with the file of that absolute name.
func newService(file string) (*autostart.Service, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("where this program is: %w", err)
	}
	name := serviceName(file)
	return &autostart.Service{
		Name: name, Description: "Tunnels of " + name, Program: program, Folder: filepath.Dir(file),
		Arguments: []string{"-config", file}, Reload: []string{"reload", "-config", file}, Hopeless: command.ExitConfig,
	}, nil
}

// serviceName is what the service for a config file is called, in characters that every manager takes.
func serviceName(file string) string {
	stem := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
	return "raimonc-" + strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '-'
	}, stem)
}

// checkService returns the number of tunnels that s would start with.
func checkService(ctx context.Context, job *command.Job, s *autostart.Service, file string) (tunnels int, err error) {
	if err := os.Chdir(s.Folder); err != nil { // where s starts
		return 0, err
	}
	return checkFile(ctx, job, file)
}

// startService starts s. Where the manager just says that it has failed, the file may tell why.
func startService(ctx context.Context, job *command.Job, s *autostart.Service, file string) error {
	err := s.Start(ctx)
	if err == nil || errors.Is(err, autostart.ErrNotInstalled) || errors.Is(err, autostart.ErrOther) {
		return err
	}
	if _, wrong := checkService(ctx, job, s, file); wrong != nil {
		return wrong
	}
	return err
}

// installService installs s if it would start.
func installService(ctx context.Context, job *command.Job, s *autostart.Service, file string) error {
	tunnels, err := checkService(ctx, job, s, file)
	if err != nil {
		return err
	}
	where, err := s.Install(ctx)
	if err != nil {
		return explained(err, file)
	}
	fmt.Fprintf(job.Stdout, "%s is fine: %s\n%s: installed as %s\n", file, counted(tunnels), s.Name, where)
	fmt.Fprintln(job.Stdout, "it starts with the next login; raimonc service start does so now")
	return nil
}

// serviceState says how s does. It fails unless that runs.
func serviceState(ctx context.Context, s *autostart.Service) (string, error) {
	state, err := s.State(ctx)
	if err == nil && !state.Running {
		err = &autostart.Error{Text: s.Name + " does not run: " + state.Text, Fix: s.LogHint()}
	}
	return state.Text, err
}

// explained says how what is not there gets there, and what to do about a file of the same name.
func explained(err error, file string) error {
	if errors.Is(err, autostart.ErrNotInstalled) {
		return &autostart.Error{Text: err.Error(), Fix: "raimonc service install -config " + asWord(file), Err: err}
	}
	if errors.Is(err, autostart.ErrOther) {
		return &autostart.Error{Text: err.Error(), Fix: "the service is named after its file, and another file has this name: call one of them otherwise", Err: err}
	}
	return err
}

// asWord is file as a shell takes it, as far as blanks go.
func asWord(file string) string {
	if strings.Contains(file, " ") {
		return `"` + file + `"`
	}
	return file
}
