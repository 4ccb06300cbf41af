package main

import (
	"context"
	"net"
	"net/netip"
	"strings"

	"raimon/internal/command"
	"raimon/tunnel"
)

// token is where the token of token= comes from; nil: there is none.
func token(job *command.Job) (func(context.Context) (string, error), error) {
	if job.Options.Token == "" {
		return nil, nil
	}
	warnClear(job, "token")
	return tokenSecret().open(job.Options.Token)
}

func tokenSecret() *secret {
	return &secret{
		option: `option "token"`,
		find: func(text string) (string, bool) {
			token := strings.TrimSpace(text)
			return token, tunnel.IsToken(token)
		},
		wrong: tunnel.ErrToken,
		fix:   "the file holds the token and nothing else",
	}
}

// warnClear says that what goes over the network can be read there.
func warnClear(job *command.Job, what string) {
	if !job.Options.TLS && !staysHere(job.Remote) {
		job.Log.Warn("the "+what+" goes over the network in the clear: whoever sits on the line can use it",
			"hint", "add tls on both ends")
	}
}

// staysHere tells whether nobody else hears what is said to address.
func staysHere(address string) bool {
	kind, name, err := tunnel.ParseAddress(address)
	if err != nil || kind == "unix" {
		return err == nil
	}
	host, _, err := net.SplitHostPort(name)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "" || strings.EqualFold(host, "localhost") || err == nil && ip.Unmap().IsLoopback()
}
