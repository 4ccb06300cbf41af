package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Command is a part of a program with a help text of its own. It is called with its name, an action,
// what the action is about, and options as everywhere.
type Command struct {
	Name string
	// Help is the text of -h, and of the name alone.
	Help string
	// Actions are the words after the name. A single one without a Word is what the command does by itself.
	Actions []Action
	// Run does the work; see Program.Run. Results go to standard output, the log does not.
	Run func(ctx context.Context, job *Job) error
}

// Action is something that a Command does.
type Action struct {
	Word     string
	Argument string // what has to follow, as messages call it; empty: nothing
	Edge     bool   // the argument is the address or URL of an edge, for Job.Remote; with -config a name of the file, or nothing
	Options  bool   // a word of options may follow
	NoConfig bool   // -config is not for it
	JSON     bool   // -json is for it
	Warnings bool   // it tells of Options.Warnings itself
}

// configArgument is the Argument that -config may name as well.
const configArgument = "file"

// command returns nil if p has none of that name.
func (p *Program) command(name string) *Command {
	n := slices.IndexFunc(p.Commands, func(c Command) bool { return c.Name == name })
	if n < 0 {
		return nil
	}
	return &p.Commands[n]
}

// parseCommand reads the words after the name of c.
func (i *invocation) parseCommand(c *Command, flags flagValues, words []string) error {
	alone := len(c.Actions) == 1 && c.Actions[0].Word == ""
	if flags.help || len(words) == 0 && !alone {
		i.done = true
		_, err := io.WriteString(i.stdout, c.Help)
		return err
	}
	called := i.Side.String() + " " + c.Name
	if alone {
		return i.parseAction(c, c.Actions[0], flags, words)
	}
	n := slices.IndexFunc(c.Actions, func(a Action) bool { return a.Word == words[0] })
	if n < 0 {
		var all []string
		for _, a := range c.Actions {
			all = append(all, called+" "+a.usage())
		}
		return &ConfigError{fmt.Errorf("%s: %q is nothing that it can do", c.Name, words[0]),
			strings.Join(all, ", or ") + "; " + called + " -h explains"}
	}
	return i.parseAction(c, c.Actions[n], flags, words[1:])
}

// parseAction reads what an action is about, and options.
func (i *invocation) parseAction(c *Command, action Action, flags flagValues, words []string) error {
	called := i.Side.String() + " " + c.Name
	name, usage := strings.TrimSpace(c.Name+" "+action.Word), strings.TrimSpace(called+" "+action.usage())
	if action.Options {
		usage += " [options]"
	}
	job := &Job{Word: c.Name, Action: action.Word, JSON: flags.json, Config: flags.config, ownWarnings: action.Warnings}
	switch {
	case flags.json && !action.JSON:
		return &ConfigError{fmt.Errorf("flag -json: %s prints one line for people", name), "its exit status says whether it went well"}
	case flags.config != "" && action.NoConfig:
		return &ConfigError{fmt.Errorf("flag -config: %s takes no file", name), usage}
	}
	byName := action.Edge && flags.config != ""
	switch {
	case action.Argument == configArgument && flags.config != "" && len(words) == 0:
		job.Argument, job.Config = flags.config, ""
	case byName && len(words) == 0, action.Argument == "":
	case len(words) == 0 || isOptions(words[0]):
		return &ConfigError{fmt.Errorf("%s: the %s is missing", name, action.Argument), usage}
	case action.Edge && !byName && !action.NoConfig && !strings.ContainsAny(words[0], ":/"):
		return &ConfigError{fmt.Errorf("address %q: the port is missing, as in %[1]s:443", words[0]),
			fmt.Sprintf("for a tunnel of a file: %s -config <file> %s", called, words[0])}
	case action.Edge && !byName:
		job.Remote, words = words[0], words[1:]
	default:
		job.Argument, words = words[0], words[1:]
	}
	if byName && len(words) > 0 {
		return &ConfigError{fmt.Errorf("flag -config: %q is one argument too many", words[0]), "options stand in the file then"}
	}
	if len(words) > 1 || len(words) == 1 && !action.Options {
		return action.tooMany(called, usage, words)
	}
	return i.prepare(flags, job, strings.Join(words, ""))
}

// tooMany is about words behind what an action takes.
func (a Action) tooMany(called, usage string, words []string) error {
	explained := called + " -h explains"
	switch {
	case a.Options:
		return &ConfigError{fmt.Errorf("%q is one argument too many", words[1]), "put quotes around the options: ';' means something to the shell; " + explained}
	case a.Argument == "" && strings.HasSuffix(words[0], ".toml"):
		return &ConfigError{fmt.Errorf("%q is one argument too many", words[0]), "for that file: " + usage + " -config " + words[0]}
	}
	return &ConfigError{fmt.Errorf("%q is one argument too many", words[0]), usage + "; " + explained}
}

// isOptions tells whether options stand where what an action is about should. No name or address has these two in it, and
// no URL before its slashes.
func isOptions(word string) bool {
	beginning, _, _ := strings.Cut(word, "://")
	return strings.ContainsAny(beginning, ";=")
}

func (a Action) usage() string {
	if a.Argument == "" {
		return a.Word
	}
	return strings.TrimSpace(a.Word + " <" + a.Argument + ">")
}

// ErrInterrupted is what Run returns when a signal has ended it before it was done.
var ErrInterrupted = errors.New("interrupted")

// ErrHungUp is the cause of the end of Run's context where whoever has started raimonc left with a SIGHUP: a terminal that was
// closed, or ssh, which ends its ProxyCommand so. As an error of Run it is not told, for nobody is there to hear it.
var ErrHungUp = fmt.Errorf("hung up: %w", context.Canceled)
