package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"raimon/internal/command"
	"raimon/internal/localproxy"
	"raimon/internal/options"
)

// proxyUser is where user and password of proxy-auth= come from; nil: it is not given.
func proxyUser(job *command.Job) (func(context.Context) (*url.Userinfo, error), error) {
	if job.Options.ProxyAuth == "" {
		return nil, nil
	}
	ask, err := loginSecret("proxy-auth").open(job.Options.ProxyAuth)
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

// localProxy hears where programs want to go. The password that they have to give is read here, once.
func localProxy(ctx context.Context, job *command.Job) (*localproxy.Layer, error) {
	layer := &localproxy.Layer{Log: job.Log}
	if job.Options.SocksAuth == "" {
		return layer, nil
	}
	s := loginSecret("socks-auth")
	ask, err := s.open(job.Options.SocksAuth)
	if err != nil {
		return nil, err
	}
	line, err := ask(ctx)
	if err != nil {
		return nil, s.mistake(err, s.fix)
	}
	layer.User, layer.Password, _ = strings.Cut(line, ":")
	if len(layer.User) > 255 || len(layer.Password) > 255 { // RFC 1929, section 2
		return nil, s.mistake(errors.New("the user or the password is longer than 255 bytes"), "SOCKS5 knows none that are longer")
	}
	return layer, nil
}

// loginSecret is a user and a password.
func loginSecret(option string) *secret {
	return &secret{
		option: fmt.Sprintf("option %q", option),
		find: func(text string) (string, bool) {
			line := strings.Trim(text, "\r\n")
			return line, options.IsLogin(line)
		},
		wrong: errors.New("it is not one line with user:password"),
		fix:   "the file holds user:password in one line and nothing else",
	}
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
