// Package sockets lets commands talk to running processes of the same program: HTTP with JSON, over a Unix socket that
// each process has in a private folder.
//
// Who can open a socket can give orders. So it is for the owner of the folder alone, and for the superuser.
package sockets

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"raimon/internal/ownership"
)

const (
	extension = ".sock"

	folderMode = 0o700
	socketMode = 0o600

	dialLimit = 2 * time.Second
)

// Folder is where processes are found.
type Folder struct {
	// Root is made where it is missing. Name is the folder in it that has the sockets, and nothing else.
	Root, Name string
	// Of is what messages call a process that serves here, such as "edge".
	Of string
	// OwnerFix says what to do where the folder is somebody else's, PlaceFix where no socket can be made in it.
	OwnerFix, PlaceFix string
}

func (f *Folder) path() string { return filepath.Join(f.Root, f.Name) }

// Find returns the processes that serve in f; none is no error.
func (f *Folder) Find(ctx context.Context) ([]*Process, error) {
	if err := f.checkOwner(); err != nil {
		return nil, &Error{Text: err.Error(), Fix: f.OwnerFix}
	}
	names, err := f.names()
	if errors.Is(err, fs.ErrPermission) {
		return nil, &Error{Text: err.Error(), Fix: f.OwnerFix}
	}
	if err != nil {
		return nil, err
	}
	var found []*Process
	for _, name := range names {
		if !f.dead(ctx, name) {
			pid, _, _ := strings.Cut(name, "-")
			found = append(found, &Process{PID: pid, folder: f, name: name})
		}
	}
	return found, ctx.Err()
}

// checkOwner refuses to talk to what another user may have put in place of our processes.
func (f *Folder) checkOwner() error {
	info, err := os.Lstat(f.path())
	switch {
	case err != nil:
		return nil // names says why, or there is nothing
	case !info.IsDir():
		return fmt.Errorf("%s is no folder: %s", f.path(), info.Mode().Type())
	case !ours(info):
		return fmt.Errorf("%s belongs to another user", f.path())
	}
	return nil
}

// names are those of all sockets in f, dead ones too.
func (f *Folder) names() ([]string, error) {
	entries, err := os.ReadDir(f.path())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), extension) {
			names = append(names, entry.Name())
		}
	}
	return names, err
}

// dead tells whether nobody listens any more. One that does not answer lives.
func (f *Folder) dead(ctx context.Context, name string) bool {
	c, err := f.dial(ctx, name)
	if err == nil {
		c.Close()
		return false
	}
	return errors.Is(err, errRefused) || errors.Is(err, fs.ErrNotExist)
}

func (f *Folder) dial(ctx context.Context, name string) (c net.Conn, err error) {
	err = withPath(f.path(), name, func(path string) (err error) {
		dialer := net.Dialer{Timeout: dialLimit}
		c, err = dialer.DialContext(ctx, "unix", path)
		return err
	})
	return c, err
}

// listen makes a socket of a name that no other process has, whatever process ids mean to it.
func (f *Folder) listen() (listener net.Listener, remove func(), err error) {
	if err := f.make(); err != nil {
		return nil, nil, err
	}
	name := fmt.Sprintf("%d-%s%s", os.Getpid(), rand.Text()[:8], extension)
	err = withPath(f.path(), name, func(path string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err == nil {
			l.SetUnlinkOnClose(false) // the path may have been good for now only
			listener = l
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	path := filepath.Join(f.path(), name)
	remove = sync.OnceFunc(func() { os.Remove(path) })
	if err := f.protect(name); err != nil {
		remove()
		listener.Close()
		return nil, nil, err
	}
	return listener, remove, nil
}

// make makes the folder, private whatever the umask and whoever made it.
func (f *Folder) make() error {
	if err := os.MkdirAll(f.Root, folderMode); err != nil {
		return err
	}
	root, err := os.OpenRoot(f.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Mkdir(f.Name, folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := root.Lstat(f.Name)
	if err != nil {
		return err
	}
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is in its place, and no folder", info.Mode().Type())
	case !ours(info):
		return errors.New("the folder belongs to another user")
	}
	if err := private(root, f.Name, info, folderMode); err != nil {
		return err
	}
	return ownership.Inherit(root, f.Name)
}

// protect closes the new socket to others; until now the folder did that alone.
func (f *Folder) protect(name string) error {
	root, err := os.OpenRoot(f.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	name = filepath.Join(f.Name, name)
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if err := private(root, name, info, socketMode); err != nil {
		return err
	}
	return ownership.Inherit(root, name)
}

// sweep removes the sockets of those who were killed.
func (f *Folder) sweep(ctx context.Context) {
	names, err := f.names()
	if err != nil {
		return // who lists them says why
	}
	for _, name := range names {
		if !f.dead(ctx, name) {
			continue
		}
		// Between its bind and its listen a socket of the living refuses too, for microseconds.
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return
		}
		if f.dead(ctx, name) {
			os.Remove(filepath.Join(f.path(), name))
		}
	}
}
