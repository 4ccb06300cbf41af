package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"raimon/internal/command"
	"raimon/internal/options"
)

// proxyUser is where user and password of proxy-auth= come from; nil: it is not given.
func proxyUser(job *command.Job) (func(context.Context) (*url.Userinfo, error), error) {
	if job.Options.ProxyAuth == "" {
		return nil, nil
	}
	s := &secret{
		option: `option "proxy-auth"`,
		find: func(text string) (string, bool) {
			line := strings.Trim(text, "\r\n")
			return line, options.IsProxyAuth(line)
		},
		wrong: errors.New("it is not one line with user:password"),
		fix:   "the file holds user:password in one line and nothing else",
	}
	ask, err := s.open(job.Options.ProxyAuth)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (*url.Userinfo, error) {
		line, err := ask(ctx)
		if err != nil {
			return nil, err
		}
		user, password, _ := strings.Cut(line, ":")
		return url.UserPassword(user, password), nil
	}, nil
}

// header is where the fields of header= and user-agent= come from; nil: there are none.
func header(job *command.Job) (func(context.Context) (http.Header, error), error) {
	o := job.Options
	if len(o.Header) == 0 && o.UserAgent == "" {
		return nil, nil
	}
	values := make([]func(context.Context) (string, error), len(o.Header))
	for i, field := range o.Header {
		s := headerSecret(field.Name)
		var err error
		if values[i], err = s.open(field.Value); err != nil {
			return nil, err
		}
		if strings.HasPrefix(field.Value, "file:") || strings.HasPrefix(field.Value, "command:") {
			warnClear(job, "header "+field.Name)
		}
	}
	return func(ctx context.Context) (http.Header, error) {
		header := make(http.Header)
		if o.UserAgent != "" {
			header["User-Agent"] = []string{o.UserAgent}
		}
		for i, field := range o.Header {
			value, err := values[i](ctx)
			if err != nil {
				return nil, fmt.Errorf("header %s: %w", field.Name, err)
			}
			header[field.Name] = []string{value} // in the user's spelling, which Set would change
		}
		return header, nil
	}, nil
}

func headerSecret(name string) *secret {
	return &secret{
		option: `option "header": ` + name,
		find: func(text string) (string, bool) {
			value := strings.TrimSpace(text)
			return value, options.IsHeaderValue(value)
		},
		wrong: fmt.Errorf("it is empty, longer than %d bytes, or more than one line", secretLimit),
		fix:   "the file holds the value and nothing else",
	}
}
