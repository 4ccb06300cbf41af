package tunnel

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
)

// ParseAddress splits an address as users write it, host:port, [v6]:port, :port or unix:/path,
// into the network ("tcp" or "unix") and the name that package net wants.
//
// Ports are numbers. Names are not looked up: each dial does that, because addresses change.
func ParseAddress(address string) (network, name string, err error) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return "unix", path, checkSocketPath(address, path)
	}
	if strings.Contains(address, "/") {
		return "", "", fmt.Errorf("address %q: write host:port or unix:/path, not a URL", address)
	}
	if !strings.HasPrefix(address, "[") && strings.Count(address, ":") > 1 {
		return "", "", fmt.Errorf("address %q: write an IPv6 address in brackets before the port, as in [2001:db8::1]:443", address)
	}
	if !strings.Contains(address, ":") || strings.HasSuffix(address, "]") {
		return "", "", fmt.Errorf("address %q: the port is missing, as in %s:443", address, address)
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", "", fmt.Errorf("address %q: write host:port or [ipv6]:port", address)
	}
	// What goes into a CONNECT request must not end its line.
	if i := strings.IndexFunc(host, func(r rune) bool { return r <= ' ' || r == 0x7f }); i >= 0 {
		return "", "", fmt.Errorf("address %q: blank or control character in the host", address)
	}
	if port == "" {
		return "", "", fmt.Errorf("address %q: the port is missing after the colon", address)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", "", fmt.Errorf("address %q: port %q is not a number from 0 to 65535", address, port)
	}
	return "tcp", net.JoinHostPort(host, port), nil
}

func checkSocketPath(address, path string) error {
	if path == "" {
		return fmt.Errorf("address %q: the path is missing, as in unix:/run/raimon.sock", address)
	}
	// One byte less than the kernel's field, for the NUL. The kernel itself says "invalid argument".
	if limit := len(syscall.RawSockaddrUnix{}.Path) - 1; len(path) > limit {
		return fmt.Errorf("address %q: a unix socket path has at most %d bytes, this one has %d", address, limit, len(path))
	}
	return nil
}
