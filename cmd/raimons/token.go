package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"raimon/edge"
	"raimon/internal/command"
)

const tokenHelp = `raimons token makes a token, by which a client shows that it may use a tunnel.

    raimons token <name>     a new token for name, as the edge's log calls the
                             client

It prints the token, for the client, and the line for the file that the edge's
config names with tokens = "...". The edge is told a hash only, so keep the
token: nobody can print it again.

    raimons token alice

The client gets it as token=<token>, or better as token=file:/path, in a file
that only its user may read: options on a command line can be seen by everybody
on the machine. A line that is removed from the file is not good any more a few
seconds later; open tunnels go on.

Flags:
  -json                      print an object with name, token and line
  -h                         print this
`

var tokenCommand = command.Command{
	Name:    "token",
	Help:    tokenHelp,
	Actions: []command.Action{{Argument: "name", NoConfig: true, JSON: true}},
	Run: func(_ context.Context, job *command.Job) error {
		t, err := newToken(job.Argument)
		if err != nil {
			return err
		}
		if job.JSON {
			return json.NewEncoder(os.Stdout).Encode(t)
		}
		return t.print(os.Stdout)
	},
}

// token is what both ends have to know.
type token struct {
	Name  string `json:"name"`
	Token string `json:"token"` // for the client
	Line  string `json:"line"`  // for the file of the edge
}

// newToken makes a random token of 256 bits.
func newToken(name string) (*token, error) {
	if !edge.IsTokenName(name) {
		return nil, &command.ConfigError{
			Err: errors.New("token: such a name cannot stand in a file of tokens"),
			Fix: "a name is one word of at most 128 bytes, such as alice or alice@laptop",
		}
	}
	random := make([]byte, 32)
	rand.Read(random) // it never fails
	text := base64.RawURLEncoding.EncodeToString(random)
	return &token{Name: name, Token: text, Line: name + " " + edge.HashToken(text)}, nil
}

func (t *token) print(w io.Writer) error {
	_, err := fmt.Fprintf(w, "# for the client, as token=... or in the file of token=file:...\n%s\n# for the edge, a line of its file of tokens\n%s\n", t.Token, t.Line)
	return err
}
