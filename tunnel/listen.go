package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
)

// ListenConfig opens listening sockets. The zero value uses the system's defaults.
type ListenConfig struct {
	// FastOpen accepts data in the SYN (RFC 7413) where the system can; elsewhere it does nothing.
	FastOpen bool
	// Fwmark is the mark (SO_MARK) of the sockets, also of those they accept; zero means none.
	// It needs Linux and CAP_NET_ADMIN.
	Fwmark uint32
	// Log receives a warning when an address is left out; nil means slog.Default().
	Log *slog.Logger
	// Have returns a listener that is open already, to be used for an address; nil where there is none. A nil
	// function has none.
	Have func(address string) net.Listener
}

// Listen listens on every address, in the forms of ParseAddress; never on UDP. It returns the
// listeners in the order given: all, or none and an error.
//
// 0.0.0.0 is IPv4 alone. An empty host is both families, and so is [::] unless another address has
// the same port: then it is IPv6 alone, so that [::]:443 and 0.0.0.0:443 go together. Of several
// addresses, an IPv6 one is left out with a warning when the system has no IPv6.
// A host name means one of its addresses, IPv4 if it has one.
//
// A unix socket that nobody listens on is replaced; its file is removed by Close.
//
// The error matches syscall.EADDRINUSE when somebody else listens there, and fs.ErrExist when a
// unix path is a file that is not a socket.
func (c *ListenConfig) Listen(ctx context.Context, addresses ...string) ([]net.Listener, error) {
	opened, err := c.Open(ctx, addresses...)
	if err != nil {
		return nil, err
	}
	var listeners []net.Listener
	for _, address := range addresses {
		if l := opened[address]; l != nil {
			listeners = append(listeners, l)
		}
	}
	return listeners, nil
}

// Open is Listen, with the listeners by their addresses. What Have had is not closed when there is an error.
func (c *ListenConfig) Open(ctx context.Context, addresses ...string) (_ map[string]net.Listener, err error) {
	if len(addresses) == 0 {
		return nil, errors.New("listen: no address given")
	}
	listeners := make(map[string]net.Listener)
	var fresh []net.Listener
	defer func() {
		if err != nil {
			for _, l := range fresh {
				l.Close()
			}
		}
	}()
	var leftOut []error
	for i, address := range addresses {
		network, name, err := ParseAddress(address)
		if err != nil {
			return nil, err
		}
		if listeners[address] != nil {
			return nil, fmt.Errorf("listen %s: the address is given twice", address)
		}
		if c.Have != nil {
			if l := c.Have(address); l != nil {
				if tcp, ok := l.(*net.TCPListener); ok {
					inlineUrgentOf(tcp)
				}
				listeners[address] = l
				continue
			}
		}
		if network == "tcp" {
			network = family(name, portShared(addresses, i))
		}
		l, err := c.listen(ctx, network, name)
		if len(addresses) > 1 && lacksIPv6(name, err) {
			c.log().Warn("no ipv6 here, address left out", "address", address, "error", err)
			leftOut = append(leftOut, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		listeners[address] = l
		fresh = append(fresh, l)
	}
	if len(listeners) == 0 {
		return nil, errors.Join(leftOut...)
	}
	return listeners, nil
}

// family keeps literal addresses in their own family. Package net alone would open 0.0.0.0 as
// [::] for both, which shows an IPv4 service to IPv6 and collides with [::].
func family(name string, portShared bool) string {
	host, _, _ := net.SplitHostPort(name)
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return "tcp"
	case ip.Unmap().Is4():
		return "tcp4"
	case ip.IsUnspecified() && !portShared:
		return "tcp"
	default:
		return "tcp6"
	}
}

func portShared(addresses []string, i int) bool {
	port := addresses[i][strings.LastIndexByte(addresses[i], ':'):]
	for j, other := range addresses {
		if j != i && !strings.HasPrefix(other, "unix:") && strings.HasSuffix(other, port) {
			return true
		}
	}
	return false
}

// lacksIPv6 reports whether err says that the system has no IPv6 at all, not merely no such address.
func lacksIPv6(name string, err error) bool {
	host, _, _ := net.SplitHostPort(name)
	ip, parseErr := netip.ParseAddr(host)
	if parseErr != nil || !ip.Is6() || ip.Is4In6() {
		return false
	}
	// Without IPv6 in the kernel there is no such socket; with disable_ipv6 there is not even ::1.
	return errors.Is(err, errAddressFamily) ||
		errors.Is(err, errAddressMissing) && (ip.IsUnspecified() || ip.IsLoopback())
}

func (c *ListenConfig) listen(ctx context.Context, network, name string) (net.Listener, error) {
	lc := net.ListenConfig{Control: c.control, KeepAlive: acceptKeepAlive}
	lc.SetMultipathTCP(false) // its sockets know no splice and no SIOCOUTQ
	l, err := lc.Listen(ctx, network, name)
	if network == "unix" && errors.Is(err, errAddressInUse) {
		if err := removeStale(ctx, name); err != nil {
			return nil, fmt.Errorf("listen unix %s: %w", name, err)
		}
		l, err = lc.Listen(ctx, network, name)
	}
	if errors.Is(err, errAddressInUse) && !errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%w: %w", err, syscall.EADDRINUSE) // Windows has numbers of its own
	}
	return l, err
}

// removeStale removes the socket at path if nobody listens there.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // whoever had it has just gone
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("not a socket, so it stays: %w", fs.ErrExist)
	}
	var d net.Dialer
	probe, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		probe.Close()
		return syscall.EADDRINUSE
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// Any other error, such as a full queue or a missing permission, is a sign of life.
	if !errors.Is(err, errRefused) {
		return fmt.Errorf("%w (%w)", syscall.EADDRINUSE, err)
	}
	return os.Remove(path)
}

// fastOpenQueue is how many connections may have sent data and not yet finished the handshake.
const fastOpenQueue = 256

func (c *ListenConfig) control(network, _ string, raw syscall.RawConn) error {
	if network == "unix" {
		return nil
	}
	return withDescriptor(raw, func(fd uintptr) error {
		if c.FastOpen {
			acceptFastOpen(fd, fastOpenQueue)
		}
		if c.Fwmark != 0 {
			if err := setFwmark(fd, c.Fwmark); err != nil {
				return err
			}
		}
		inlineUrgent(fd)
		return keepAlive(fd)
	})
}

func (c *ListenConfig) log() *slog.Logger {
	if c.Log != nil {
		return c.Log
	}
	return slog.Default()
}

// inlineUrgentOf is inlineUrgent of a listener that somebody else has opened.
func inlineUrgentOf(l *net.TCPListener) {
	if raw, err := l.SyscallConn(); err == nil {
		_ = raw.Control(inlineUrgent)
	}
}

// withDescriptor runs do on the descriptor and returns its error.
func withDescriptor(raw syscall.RawConn, do func(fd uintptr) error) error {
	var err error
	if controlErr := raw.Control(func(fd uintptr) { err = do(fd) }); controlErr != nil {
		return controlErr
	}
	return err
}
