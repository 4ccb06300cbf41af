package autostart

import (
	"os"
	"path/filepath"

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

// LogHint says where the log is.
func (s *Service) LogHint() string {
	return "its log is ~/Library/Logs/" + s.Name + ".err.log"
}
