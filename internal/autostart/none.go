//go:build !linux && !darwin && !windows

package autostart

import "context"

// Install fails: no service manager is known here.
func (s *Service) Install(context.Context) (string, error) { return "", s.none() }

// Start fails.
func (s *Service) Start(context.Context) error { return s.none() }

// Stop fails.
func (s *Service) Stop(context.Context) error { return s.none() }

// Uninstall fails.
func (s *Service) Uninstall(context.Context) error { return s.none() }

// State fails.
func (s *Service) State(context.Context) (State, error) { return State{}, s.none() }

// LogHint says where the log is.
func (s *Service) LogHint() string { return "" }

func (s *Service) none() error {
	return &Error{Text: "no service manager is known on this system", Fix: s.byHand()}
}
