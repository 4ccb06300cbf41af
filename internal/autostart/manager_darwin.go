package autostart

import (
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/kardianos/service"
)

// An agent is its user's.
const account = ""

const permissionFix = "the folder ~/Library/LaunchAgents has to belong to you"

// options make an agent that is started with the login, and again ten seconds after it has ended.
func options() service.KeyValue {
	o := service.KeyValue{"UserService": true, "RunAtLoad": true, "KeepAlive": true}
	if home, err := os.UserHomeDir(); err == nil {
		o["LogDirectory"] = filepath.Join(home, "Library", "Logs")
	}
	return o
}

// checkArguments tells whether the agent of this name has other arguments.
func (s *Service) checkArguments() error {
	home, err := os.UserHomeDir()
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(home, "Library", "LaunchAgents", s.Name+".plist"))
	if err != nil {
		return err
	}
	defer f.Close()
	var agent struct {
		Strings []string `xml:"dict>array>string"` // ProgramArguments
	}
	if err := xml.NewDecoder(f).Decode(&agent); err != nil {
		return fmt.Errorf("%s: %w", f.Name(), err)
	}
	if words := agent.Strings; len(words) == 0 || !slices.Equal(words[1:], s.Arguments) {
		return s.isOther()
	}
	return nil
}

// LogHint says where the log is.
func (s *Service) LogHint() string {
	return "its log is ~/Library/Logs/" + s.Name + ".err.log"
}
