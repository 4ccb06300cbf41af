// Package service talks to systemd, or to whatever else starts us and knows its protocols: sd_notify(3),
// sd_watchdog_enabled(3) and sd_listen_fds(3). Without one it does nothing.
//
//	inherited, err := service.Listeners()
//	…                                  // listeners are open
//	err = service.Ready("3 sites on 2 listeners")
//	running.Go(func() { service.Watch(ctx, healthy, log) })
//	…                                  // on SIGHUP
//	err = service.Reloading()
//	…
//	err = service.Ready("5 sites on 2 listeners")
//	…                                  // ctx has ended
//	err = service.Stopping()
//
// What comes of a message, the manager does not tell: an error here is no reason to end, only to log.
package service

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Ready says that start, or reload, is over. Status is a line for people, as in Status; empty says nothing.
func Ready(status string) error { return notify(daemon.SdNotifyReady, statusLine(status)) }

// Reloading says that the configuration is being read again, until Ready is called.
func Reloading() error {
	now, err := monotonic()
	if err != nil {
		return err
	}
	// Type=notify-reload tells by the time which reload is meant, and refuses a message without it.
	return notify(daemon.SdNotifyReloading, "MONOTONIC_USEC="+strconv.FormatInt(now.Microseconds(), 10))
}

// Stopping says that the end has begun.
func Stopping() error { return notify(daemon.SdNotifyStopping) }

// Status is one line that systemctl status shows.
func Status(text string) error { return notify(statusLine(text)) }

// MainProcess says that the service is the process pid from now on. Only a process that the manager already
// listens to may say so, and pid has to be in the unit's control group.
func MainProcess(pid int) error { return notify("MAINPID=" + strconv.Itoa(pid)) }

const maxStatus = 512 // bytes

// statusLine keeps what is said for people from saying more: each line of a message is an order.
func statusLine(text string) string {
	if text == "" {
		return ""
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) > maxStatus {
		text = strings.ToValidUTF8(text[:maxStatus], "")
	}
	return "STATUS=" + text
}

func notify(lines ...string) error {
	var all []string
	for _, line := range lines {
		if line != "" {
			all = append(all, line)
		}
	}
	if len(all) == 0 {
		return nil
	}
	if _, err := daemon.SdNotify(false, strings.Join(all, "\n")); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}

// Watch tells the manager that we live, twice in the time after which it would restart us (WatchdogSec=), as long as
// healthy returns nil within that half. It returns when ctx ends, or at once where nobody wants to know; its
// error says that the manager asks for something that makes no sense.
func Watch(ctx context.Context, healthy func(context.Context) error, log *slog.Logger) error {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("watchdog of the service manager: %w", err)
	}
	if limit == 0 {
		return nil
	}
	pings := time.NewTicker(limit / 2)
	defer pings.Stop()
	var told string // the trouble that the log knows of
	for {
		trouble := ping(ctx, healthy, limit/2)
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case trouble == nil && told != "":
			log.Info("watchdog: all is well again")
			told = ""
		case trouble != nil && trouble.Error() != told:
			told = trouble.Error()
			log.Error("watchdog: the service manager will restart us unless this passes", "error", trouble, "within", limit.String())
		}
		select {
		case <-pings.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// ping says that we live, if healthy says so in time.
func ping(ctx context.Context, healthy func(context.Context) error, limit time.Duration) error {
	limited, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no sign of health in %v", limit))
	defer cancel()
	if err := healthy(limited); err != nil {
		return err
	}
	if limited.Err() != nil {
		return context.Cause(limited)
	}
	return notify(daemon.SdNotifyWatchdog)
}

// Listener is one that was open before we started.
type Listener struct {
	// Name is what the unit calls it (FileDescriptorName=): by default that of the socket unit.
	Name string
	net.Listener
}

// Foreign is a Unix listener of which the file belongs to somebody else, and stays whatever we do.
type Foreign struct{ *net.UnixListener }

// SetUnlinkOnClose changes nothing.
func (Foreign) SetUnlinkOnClose(bool) {}

// Listeners are those that the manager has opened for us, in its order; none is no error. They are told once:
// a child does not find them in its environment. Where one cannot be used, all are closed.
func Listeners() (all []Listener, err error) {
	files := inherited()
	defer func() {
		for _, f := range files {
			f.Close() // package net has made copies
		}
		if err != nil {
			for _, l := range all {
				l.Close()
			}
			all = nil
		}
	}()
	for n, f := range files {
		l, err := listener(f)
		if err != nil {
			return all, &Error{Err: fmt.Errorf("socket %d of the service manager, %q: %w", n+1, f.Name(), err)}
		}
		all = append(all, Listener{Name: f.Name(), Listener: l})
	}
	return all, nil
}

func listener(f *os.File) (net.Listener, error) {
	if err := checkListening(f); err != nil {
		return nil, err
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		return Foreign{u}, nil
	}
	return l, nil
}

// Error is about a unit that does not fit.
type Error struct{ Err error }

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// Hint says what to do.
func (e *Error) Hint() string {
	return "in the socket unit, use ListenStream= and leave Accept= at no"
}
