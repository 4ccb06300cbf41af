//go:build linux || darwin || freebsd

package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"raimon/internal/service"
)

// Take gets the listeners of the process that serves them at the Unix socket path, by the keys that it has for
// them. That process goes on accepting until commit is called, which has to be within two minutes.
//
// Commit(nil) says that we accept now, and returns when the other process has let go; its error says that the
// other one goes on, so we must not. From then on Close removes the files of the Unix sockets among the
// listeners. Commit with a reason says that we give up, and returns it. It closes nothing. Ctx ends the wait of both.
//
// Listeners that nobody uses are for the caller to close. The error matches ErrNobody where no process hands over
// at path, and errors.ErrUnsupported where the system knows no such thing.
func Take(ctx context.Context, path string) (listeners map[string]net.Listener, commit func(error) error, err error) {
	listeners, c, err := take(ctx, path)
	if err != nil {
		closeAll(listeners)
		if c != nil {
			c.Close()
		}
		if errors.Is(err, ErrNobody) {
			return nil, nil, &Error{Text: "hand-over socket " + path, Err: err, Fix: "no edge runs there: start without taking over"}
		}
		return nil, nil, &Error{Text: "hand-over socket " + path, Err: err, Fix: "the running edge goes on; its log says more"}
	}
	begun, taken := time.Now(), maps.Clone(listeners)
	commit = once(func(reason error) error {
		defer c.Close()
		stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
		defer stop()
		if reason == nil && time.Since(begun) > readyLimit-stepLimit {
			reason = errors.New("it took too long to get ready")
		}
		if reason != nil {
			text := reason.Error()
			// The reason is what matters: where this cannot be told, the end of c tells enough.
			_ = write(c, &message{Kind: kindFailed, Reason: text[:min(len(text), maxReason)]})
			return reason
		}
		if err := settle(c, stepLimit); err != nil {
			return &Error{Text: "hand-over socket " + path, Err: err, Fix: "the running edge goes on; its log says more"}
		}
		keepFiles(taken, false)
		return nil
	})
	return listeners, commit, nil
}

func take(ctx context.Context, path string) (_ map[string]net.Listener, _ *net.UnixConn, err error) {
	dialer := net.Dialer{Timeout: stepLimit}
	dialed, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, nil, fmt.Errorf("%w (%w)", ErrNobody, err)
	case err != nil:
		return nil, nil, err
	}
	c := dialed.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer func() {
		if !stop() {
			err = context.Cause(ctx)
		}
	}()
	if os.Geteuid() != 0 { // the superuser may take over from anybody
		if err := checkPeer(c); err != nil {
			return nil, c, err
		}
	}
	if err := write(c, &message{Kind: kindTake, Version: version, Process: os.Getpid()}); err != nil {
		return nil, c, err
	}
	listeners, err := receiveListeners(c)
	if err != nil {
		return listeners, c, fmt.Errorf("receive listeners: %w", err)
	}
	return listeners, c, nil
}

// settle says ready and waits for the other process to let go. The other one lets go only if we can still hear it,
// which an end of our hearing, after the limit, decides once and for all.
func settle(c *net.UnixConn, limit time.Duration) error {
	err := write(c, &message{Kind: kindReady})
	if hasGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := read(c, limit)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if closeErr := c.CloseRead(); closeErr != nil {
			return closeErr
		}
		m, err = read(c, limit) // what was said before
		if err != nil {
			return fmt.Errorf("the old process does not answer in %v", limit)
		}
	}
	switch {
	case hasGone(err):
		return nil
	case err != nil:
		return err
	case m.Kind != kindDone:
		return fmt.Errorf("the old process says %q, not %q", m.Kind, kindDone)
	}
	// Its end of c is closed after its socket. That it hangs just there need not keep us.
	if _, err := read(c, limit); err == nil {
		return errors.New("the old process says more than it should")
	}
	return nil
}

// hasGone tells whether the old process has ended, or is about to: nobody but us is left. While it goes on, it keeps
// its end open for as long as we may be on our way.
func hasGone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// receiveListeners returns those that came also where there is an error.
func receiveListeners(c *net.UnixConn) (map[string]net.Listener, error) {
	listeners := make(map[string]net.Listener)
	for {
		if err := c.SetReadDeadline(time.Now().Add(stepLimit)); err != nil {
			return listeners, err
		}
		m, files, err := receiveChunk(c)
		if err != nil {
			return listeners, err
		}
		err = adopt(listeners, m, files)
		for _, f := range files {
			f.Close() // package net has made copies
		}
		if err != nil {
			return listeners, err
		}
		if !m.More {
			return listeners, nil
		}
		if len(m.Listeners) == 0 {
			return listeners, errors.New("a message without listeners that is not the last")
		}
	}
}

func receiveChunk(c *net.UnixConn) (m *message, files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	head := make([]byte, 4)
	control := make([]byte, unix.CmsgSpace(chunk*4))
	n, used, flags, _, err := c.ReadMsgUnix(head[:1], control)
	files = descriptors(control[:used])
	switch {
	case err != nil:
		return nil, files, err
	case n == 0:
		return nil, files, io.EOF
	case flags&unix.MSG_CTRUNC != 0:
		return nil, files, errors.New("more descriptors than were announced, or than this process may open")
	}
	if _, err := io.ReadFull(c, head[1:]); err != nil {
		return nil, files, err
	}
	size, err := length(head)
	if err != nil {
		return nil, files, err
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(c, text); err != nil {
		return nil, files, err
	}
	m, err = decode(text)
	switch {
	case err != nil:
		return nil, files, err
	case m.Kind != kindListeners || m.Version != version:
		return nil, files, fmt.Errorf("the old process says %q of version %d, not %q of version %d", m.Kind, m.Version, kindListeners, version)
	case len(m.Listeners) != len(files):
		return nil, files, fmt.Errorf("%d listeners with %d descriptors", len(m.Listeners), len(files))
	}
	return m, files, nil
}

// descriptors are those in a control message; package net has asked for them not to be inherited.
func descriptors(control []byte) (files []*os.File) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil // then there are none to close
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // not what carries descriptors
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "handed over"))
		}
	}
	return files
}

// adopt makes listeners of files.
func adopt(listeners map[string]net.Listener, m *message, files []*os.File) error {
	for n, s := range m.Listeners {
		switch {
		case len(s.Address) > maxAddress:
			return fmt.Errorf("an address of %d bytes", len(s.Address))
		case listeners[s.Address] != nil:
			return fmt.Errorf("%q comes twice", s.Address)
		case len(listeners) == maxListeners:
			return fmt.Errorf("more than %d listeners", maxListeners)
		}
		l, err := net.FileListener(files[n])
		if err != nil {
			return fmt.Errorf("%q: %w", s.Address, err)
		}
		if l.Addr().Network() != s.Network {
			l.Close()
			return fmt.Errorf("%q is a %s socket, not %s", s.Address, l.Addr().Network(), s.Network)
		}
		if u, ok := l.(*net.UnixListener); ok && s.Foreign {
			l = service.Foreign{UnixListener: u}
		}
		listeners[s.Address] = l // Close leaves the file of a Unix socket, as FileListener has it
	}
	return nil
}
