package localproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// maxHost is how many bytes a name has at most: what fits into a SOCKS5 request.
const maxHost = 255

// parseTarget makes host:port of what a program has asked for, an IPv6 address in brackets. Host is an address
// or a name of letters, digits, dots, hyphens and underscores: that is what names in DNS have, with those of other
// scripts as xn--, and it can be shown in logs and passed on in requests as it is.
func parseTarget(host, port string) (string, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return "", fmt.Errorf("port %.20q is not a number from 1 to 65535", port)
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return "", errors.New("an address with a zone means nothing at the other end")
		}
		return netip.AddrPortFrom(addr.Unmap(), uint16(n)).String(), nil
	}
	if err := checkName(host); err != nil {
		return "", err
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("the host is missing")
	case len(name) > maxHost:
		return fmt.Errorf("the host has %d bytes; at most %d can be", len(name), maxHost)
	case strings.EqualFold(name, "unix"):
		// tunnel.ParseAddress would take unix:80 for a socket of this machine.
		return errors.New("the host unix cannot be told from a socket's path; unix. with a dot is the same name")
	}
	for _, r := range name {
		isLetter, isDigit := 'a' <= r|0x20 && r|0x20 <= 'z', '0' <= r && r <= '9'
		if !isLetter && !isDigit && r != '.' && r != '-' && r != '_' {
			return fmt.Errorf("the host %q has %q in it", name, r)
		}
	}
	return nil
}
