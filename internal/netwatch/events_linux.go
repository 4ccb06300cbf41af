package netwatch

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// openEvents is a rtnetlink(7) socket that says something whenever links, addresses, routes or
// the rules that choose a table of routes change.
func openEvents() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("netlink socket", err)
	}
	f := os.NewFile(uintptr(fd), "netlink")
	err = subscribe(fd)
	if err == nil {
		err = f.SetReadDeadline(time.Time{}) // else nothing could end a Read
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// subscribe does without bind(2), which Android does not let apps do. To connect gives the socket an
// address too, without which it gets no events, and keeps other processes off.
func subscribe(fd int) error {
	if err := unix.Connect(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("netlink connect", err)
	}
	for _, group := range []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
		unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group); err != nil {
			return os.NewSyscallError("netlink membership", err)
		}
	}
	return nil
}

// worthALook is true of all: what was subscribed to says little else.
func worthALook([]byte) bool { return true }

// eventsLost tells that there were more events than the socket holds (netlink(7)).
func eventsLost(err error) bool { return errors.Is(err, unix.ENOBUFS) }
