//go:build !linux

package netwatch

import "net/netip"

func bestLook() func() (snapshot, error) { return portableLook }

func systemAddresses() (map[netip.Addr]bool, error) { return portableAddresses() }
