//go:build linux || darwin || freebsd

package handover

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"raimon/internal/ownership"
	"raimon/internal/service"
)

const (
	folderMode = 0o700
	socketMode = 0o600
)

// Serve gives what listeners returns to a new process that takes it at the Unix socket path. It returns nil when
// one has, and says that it is ready: the caller then stops accepting. The files of Unix sockets are left to
// the new process. When ctx ends before, the error is its cause.
//
// The folder of path is for the socket alone; it is made, and closed to others. Attempts that come to nothing
// are logged, and change nothing. Listeners are those of package net, or of package service.
func Serve(ctx context.Context, path string, listeners func() map[string]net.Listener, log *slog.Logger) (err error) {
	door, err := listen(ctx, path)
	if err != nil {
		return &Error{Text: "hand-over socket " + path, Err: err, Fix: listenFix(err)}
	}
	defer door.Close()
	defer context.AfterFunc(ctx, func() { door.Close() })()
	defer func() {
		if err != nil { // else the path is the new process's
			os.Remove(path)
		}
	}()
	for {
		c, err := door.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return context.Cause(ctx)
		case err != nil:
			return &Error{Text: "hand-over socket " + path, Err: err}
		}
		process, err := give(ctx, c, listeners(), door)
		if err == nil {
			log.Info("another process has taken the listeners", "process", process)
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errSilent) {
			log.Debug("somebody has looked whether listeners are handed over")
			continue
		}
		log.Warn("listeners are not handed over", "process", process, "error", err)
	}
}

// errSilent is what comes of those who only look whether somebody is there.
var errSilent = errors.New("it has gone without a word")

// give hands listeners to the process at the other end of c, and closes c. Where it returns an error that process
// cannot believe that it has them for good. Else nobody is to be found at door any more.
func give(ctx context.Context, c *net.UnixConn, listeners map[string]net.Listener, door *net.UnixListener) (process int, err error) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := checkPeer(c); err != nil {
		return 0, err
	}
	m, err := read(c, stepLimit)
	if errors.Is(err, io.EOF) {
		return 0, errSilent
	}
	if err != nil {
		return 0, fmt.Errorf("waiting for the first word: %w", err)
	}
	if m.Kind != kindTake || m.Version != version {
		return m.Process, fmt.Errorf("it says %q of version %d, not %q of version %d", m.Kind, m.Version, kindTake, version)
	}
	process = m.Process
	if err := sendListeners(c, listeners); err != nil {
		return process, fmt.Errorf("send listeners: %w", err)
	}
	m, err = read(c, readyLimit)
	switch {
	case errors.Is(err, io.EOF):
		return process, errors.New("it has ended before it was ready")
	case err != nil:
		return process, fmt.Errorf("waiting until it is ready: %w", err)
	case m.Kind == kindFailed:
		return process, fmt.Errorf("it cannot go on: %s", strconv.QuoteToGraphic(m.Reason[:min(len(m.Reason), maxReason)]))
	case m.Kind != kindReady:
		return process, fmt.Errorf("it says %q, not %q", m.Kind, kindReady)
	}
	// From here on the files are the new process's. Where it has gone after all, they are ours again.
	keepFiles(listeners, true)
	if err := write(c, &message{Kind: kindDone}); err != nil {
		keepFiles(listeners, false)
		return process, fmt.Errorf("it has ended when it was ready: %w", err)
	}
	door.Close() // before c: the end of that is what the new process waits for
	return process, nil
}

// keepFiles says whether Close leaves the files of Unix sockets.
func keepFiles(listeners map[string]net.Listener, keep bool) {
	for _, l := range listeners {
		if l, ok := l.(interface{ SetUnlinkOnClose(bool) }); ok {
			l.SetUnlinkOnClose(!keep)
		}
	}
}

// sendListeners sends descriptors of all listeners, in messages of at most chunk.
func sendListeners(c *net.UnixConn, listeners map[string]net.Listener) error {
	if len(listeners) > maxListeners {
		return fmt.Errorf("%d listeners where %d are allowed", len(listeners), maxListeners)
	}
	addresses := make([]string, 0, len(listeners))
	for address := range listeners {
		addresses = append(addresses, address)
	}
	slices.Sort(addresses)
	if err := c.SetWriteDeadline(time.Now().Add(stepLimit)); err != nil {
		return err
	}
	for {
		now := addresses[:min(chunk, len(addresses))]
		addresses = addresses[len(now):]
		if err := sendChunk(c, now, listeners, len(addresses) > 0); err != nil {
			return err
		}
		if len(addresses) == 0 {
			return nil
		}
	}
}

func sendChunk(c *net.UnixConn, addresses []string, listeners map[string]net.Listener, more bool) error {
	m := &message{Kind: kindListeners, Version: version, More: more}
	var copies []int
	defer func() {
		for _, fd := range copies {
			unix.Close(fd)
		}
	}()
	for _, address := range addresses {
		if len(address) > maxAddress {
			return fmt.Errorf("an address of %d bytes where %d are allowed", len(address), maxAddress)
		}
		l := listeners[address]
		fd, err := duplicate(l)
		if err != nil {
			return fmt.Errorf("%s: %w", address, err)
		}
		copies = append(copies, fd)
		_, foreign := l.(service.Foreign)
		m.Listeners = append(m.Listeners, socket{Address: address, Network: l.Addr().Network(), Foreign: foreign})
	}
	text, err := encode(m)
	if err != nil {
		return err
	}
	var rights []byte
	if len(copies) > 0 {
		rights = unix.UnixRights(copies...)
	}
	// The descriptors go with the first byte; the rest is an ordinary write, which package net completes.
	if _, _, err := c.WriteMsgUnix(text[:1], rights, nil); err != nil {
		return err
	}
	_, err = c.Write(text[1:])
	return err
}

// duplicate is a descriptor of l's socket. File of package net would do, but whoever asks that for its
// descriptor makes the socket block, which l shares.
func duplicate(l net.Listener) (fd int, err error) {
	s, ok := l.(syscall.Conn)
	if !ok {
		return 0, fmt.Errorf("a %T cannot be handed over", l)
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(original uintptr) {
		fd, err = unix.FcntlInt(original, unix.F_DUPFD_CLOEXEC, 0)
	})
	if controlErr != nil {
		return 0, controlErr
	}
	return fd, os.NewSyscallError("fcntl", err)
}

// listen makes the socket path, private whatever the umask. It takes the place of one where nobody listens.
func listen(ctx context.Context, path string) (*net.UnixListener, error) {
	folder, name := filepath.Split(filepath.Clean(path))
	root, err := openFolder(folder)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := checkFree(ctx, root, path, name); err != nil {
		return nil, err
	}
	// Under a name of its own it can be closed to others, and moved into place, before anybody comes.
	fresh := rand.Text()[:8] + ".new"
	bound, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(folder, fresh), Net: "unix"})
	if err != nil {
		return nil, err
	}
	bound.SetUnlinkOnClose(false)
	err = errors.Join(root.Chmod(fresh, socketMode), ownership.Inherit(root, fresh))
	if err == nil {
		err = root.Rename(fresh, name)
	}
	if err != nil {
		bound.Close()
		return nil, errors.Join(err, root.Remove(fresh))
	}
	return bound, nil
}

// openFolder opens the folder of the socket, makes it where it is missing, and closes it to others.
func openFolder(folder string) (*os.Root, error) {
	if err := os.MkdirAll(folder, folderMode); err != nil {
		return nil, err
	}
	parent, name := filepath.Split(filepath.Clean(folder))
	if parent == "" {
		parent = "."
	}
	above, err := os.OpenRoot(parent)
	if err != nil {
		return nil, err
	}
	defer above.Close()
	info, err := above.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is in the place of the folder %s", info.Mode().Type(), folder)
	}
	if info.Mode().Perm() != folderMode {
		if err := above.Chmod(name, folderMode); err != nil {
			return nil, err
		}
	}
	if err := ownership.Inherit(above, name); err != nil {
		return nil, err
	}
	return above.OpenRoot(name)
}

// checkFree finds out that nobody listens at path, which is name in root.
func checkFree(ctx context.Context, root *os.Root, path, name string) error {
	info, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("not a socket, so it stays: %w", fs.ErrExist)
	}
	dialer := net.Dialer{Timeout: stepLimit}
	c, err := dialer.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		c.Close()
		return syscall.EADDRINUSE
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("%w (%w)", syscall.EADDRINUSE, err)
}

func listenFix(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "an edge that runs already hands over there: let the new one take from it, or name another path"
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENAMETOOLONG):
		return "the path may be too long for a socket, which has about 100 bytes: name a shorter one"
	}
	return "name a path in a folder of its own that this user may write, on a file system of this machine"
}

// checkPeer lets only our own user in, and the superuser.
func checkPeer(c *net.UnixConn) error {
	uid, err := peer(c)
	if err != nil {
		return fmt.Errorf("who is at the other end: %w", err)
	}
	own := os.Geteuid()
	if uid != own && uid != 0 {
		return fmt.Errorf("user %d is at the other end, neither %d nor root: %w", uid, own, fs.ErrPermission)
	}
	return nil
}

// once makes f harmless to call again.
func once(f func(error) error) func(error) error {
	var called sync.Once
	return func(reason error) (err error) {
		err = errors.New("said already whether the hand-over has worked")
		called.Do(func() { err = f(reason) })
		return err
	}
}
