//go:build darwin || windows

package autostart

import (
	"context"
	"errors"
	"io/fs"

	"github.com/kardianos/service"
)

// Install tells the manager of the service, which it starts from the next time on. It returns what the manager calls it.
func (s *Service) Install(context.Context) (string, error) {
	if err := s.check(); err != nil {
		return "", err
	}
	m, err := s.manager(nil)
	if err != nil {
		return "", err
	}
	if _, err := m.Status(); err == nil {
		if err := s.checkArguments(); err != nil {
			return "", err
		}
		return "", s.installedAlready(m.Platform())
	}
	return s.Name + " of " + m.Platform(), told(m.Install())
}

// Start starts the service now.
func (s *Service) Start(context.Context) error { return s.do(service.Service.Start) }

// Stop ends the service until the next start of the manager.
func (s *Service) Stop(context.Context) error { return s.do(service.Service.Stop) }

// Uninstall ends the service and makes the manager forget it.
func (s *Service) Uninstall(context.Context) error {
	return s.do(func(m service.Service) error {
		if status, err := m.Status(); err == nil && status == service.StatusRunning {
			if err := m.Stop(); err != nil {
				return err
			}
		}
		return m.Uninstall()
	})
}

// State asks the manager.
func (s *Service) State(context.Context) (state State, err error) {
	err = s.do(func(m service.Service) error {
		status, err := m.Status()
		state = State{Running: status == service.StatusRunning, Text: "stopped"}
		if state.Running {
			state.Text = "running"
		}
		return err
	})
	return state, err
}

func (s *Service) do(action func(service.Service) error) error {
	m, err := s.manager(nil)
	if err != nil {
		return err
	}
	if _, err := m.Status(); errors.Is(err, service.ErrNotInstalled) {
		return s.notInstalled()
	}
	if err := s.checkArguments(); err != nil {
		return told(err)
	}
	return told(action(m))
}

// manager is what the library makes of s. Only Run has a program for it.
func (s *Service) manager(program service.Interface) (service.Service, error) {
	return service.New(program, &service.Config{
		Name: s.Name, DisplayName: s.Name, Description: s.Description,
		Executable: s.Program, Arguments: s.Arguments, WorkingDirectory: s.Folder,
		UserName: account, Option: options(),
	})
}

func told(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return &Error{Text: err.Error(), Fix: permissionFix, Err: err}
	}
	return err
}
