package autostart

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/kardianos/service"
	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc/mgr"
)

// account has few rights: the file of the configuration may well be open to programs that are no administrator's.
const account = `NT AUTHORITY\LocalService`

const permissionFix = "services of Windows are looked after by administrators: use a terminal that runs as one"

// options make a service that is started with the machine, and again when its process breaks off.
func options() service.KeyValue {
	return service.KeyValue{
		service.StartType: service.ServiceStartAutomatic,
		service.OnFailure: service.OnFailureRestart, service.OnFailureDelayDuration: "5s", service.OnFailureResetPeriod: 3600,
	}
}

// checkArguments tells whether the service of this name has other arguments. Everybody may ask that.
func (s *Service) checkArguments() error {
	m, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return fmt.Errorf("service manager: %w", err)
	}
	defer windows.CloseServiceHandle(m)
	name, err := windows.UTF16PtrFromString(s.Name)
	if err != nil {
		return err
	}
	handle, err := windows.OpenService(m, name, windows.SERVICE_QUERY_CONFIG)
	if err != nil {
		return fmt.Errorf("service %s: %w", s.Name, err)
	}
	installed := &mgr.Service{Name: s.Name, Handle: handle}
	defer installed.Close()
	config, err := installed.Config()
	if err != nil {
		return fmt.Errorf("service %s: %w", s.Name, err)
	}
	arguments := ""
	for _, a := range s.Arguments {
		arguments += " " + windows.EscapeArg(a)
	}
	if !strings.HasSuffix(config.BinaryPathName, arguments) {
		return s.isOther()
	}
	return nil
}

// LogHint says where the log is.
func (s *Service) LogHint() string {
	return "its log is in the event viewer, under Windows Logs, Application, with the source " + s.Name + "; it runs as " + account + ", who has to be able to read its files"
}

// Run runs a program: start, which returns when it runs, and run, which returns when ctx has ended and it has. Where
// the manager has started this process as the service of that name, it is answered meanwhile, the folder becomes the
// working folder, and logTo is given the manager's log. An error of start is then one that no restart mends.
func Run(ctx context.Context, name, folder string, logTo func(io.Writer), start, run func(context.Context) error) error {
	if service.Interactive() {
		if err := start(ctx); err != nil {
			return err
		}
		return run(ctx)
	}
	if err := os.Chdir(folder); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := &Service{Name: name}
	m, err := s.manager(&managed{ctx: ctx, stop: stop, start: start, run: run, ended: make(chan struct{})})
	if err != nil {
		return err
	}
	events, err := m.SystemLogger(nil)
	if err != nil {
		return fmt.Errorf("event log: %w", err)
	}
	logTo(eventLog{events})
	return m.Run()
}

// managed is a program as the library wants it.
type managed struct {
	ctx        context.Context
	stop       context.CancelFunc
	start, run func(context.Context) error
	ended      chan struct{}
}

// Start begins.
func (m *managed) Start(s service.Service) error {
	if err := m.start(m.ctx); err != nil {
		m.say(s, err)
		return err
	}
	go func() {
		defer close(m.ended)
		if err := m.run(m.ctx); err != nil && m.ctx.Err() == nil {
			m.say(s, err)
			os.Exit(1) // the manager restarts what breaks off
		}
	}()
	return nil
}

// Stop ends, and waits for the end.
func (m *managed) Stop(service.Service) error {
	m.stop()
	<-m.ended
	return nil
}

// say puts the reason for an end where it is looked for.
func (m *managed) say(s service.Service, err error) {
	if events, openErr := s.SystemLogger(nil); openErr == nil {
		events.Error(err.Error())
	}
}

// eventLog takes log lines.
type eventLog struct{ service.Logger }

func (e eventLog) Write(line []byte) (int, error) { return len(line), e.Info(string(line)) }
