package netwatch

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// bestLook asks netlink, if this process may.
func bestLook() func() (snapshot, error) {
	if _, err := netlinkLook(); err != nil {
		return portableLook
	}
	return netlinkLook
}

func netlinkLook() (s snapshot, err error) {
	n, err := openNetlink()
	if err != nil {
		return snapshot{}, err
	}
	defer n.close()
	flags, err := n.linkFlags()
	if err != nil {
		return snapshot{}, err
	}
	if s.addresses, err = n.addresses(flags); err != nil {
		return snapshot{}, err
	}
	s.addresses = beyondLink(s.addresses)
	for i, destination := range internet {
		if s.routes[i], err = n.route(destination, flags); err != nil {
			return snapshot{}, err
		}
	}
	return s, nil
}

func systemAddresses() (map[netip.Addr]bool, error) {
	n, err := openNetlink()
	if err != nil {
		return nil, err
	}
	defer n.close()
	flags, err := n.linkFlags()
	if err != nil {
		return nil, err
	}
	return n.addresses(flags)
}

// linkFlags are the IFF flags of all interfaces (netdevice(7)).
func (n *netlink) linkFlags() (map[int32]uint32, error) {
	flags := map[int32]uint32{}
	err := n.ask(unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg), func(m *syscall.NetlinkMessage) error {
		var link unix.IfInfomsg
		if _, err := binary.Decode(m.Data, binary.NativeEndian, &link); err != nil {
			return err
		}
		flags[link.Index] = link.Flags
		return nil
	})
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return nil, nil // Android: apps learn addresses and routes only
	}
	return flags, err
}

// addresses are those that can be used, which is all if nothing is known of the interfaces.
func (n *netlink) addresses(linkFlags map[int32]uint32) (map[netip.Addr]bool, error) {
	addresses := map[netip.Addr]bool{}
	err := n.ask(unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg), func(m *syscall.NetlinkMessage) error {
		var head unix.IfAddrmsg
		if _, err := binary.Decode(m.Data, binary.NativeEndian, &head); err != nil {
			return err
		}
		if linkFlags != nil && linkFlags[int32(head.Index)]&unix.IFF_UP == 0 {
			return nil
		}
		// Duplicate address detection (RFC 4862, section 5.4) has not ended, or has found a duplicate.
		if head.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && head.Flags&unix.IFA_F_OPTIMISTIC == 0 {
			return nil
		}
		values, err := attributes(m)
		if err != nil {
			return err
		}
		value, ok := values[unix.IFA_LOCAL] // else a point-to-point link's own address would be the peer's
		if !ok {
			value = values[unix.IFA_ADDRESS]
		}
		if a, ok := netip.AddrFromSlice(value); ok {
			addresses[a] = true
		}
		return nil
	})
	return addresses, err
}

// route is the one that a packet to destination would take, whatever tables and rules lead there.
func (n *netlink) route(destination netip.Addr, linkFlags map[int32]uint32) (r route, err error) {
	value := destination.AsSlice()
	family := uint8(unix.AF_INET)
	if destination.Is6() {
		family = unix.AF_INET6
	}
	request, err := binary.Append(nil, binary.NativeEndian, struct {
		unix.RtMsg
		unix.RtAttr
	}{
		unix.RtMsg{Family: family, Dst_len: uint8(destination.BitLen())},
		unix.RtAttr{Type: unix.RTA_DST, Len: uint16(unix.SizeofRtAttr + len(value))},
	})
	if err != nil {
		return route{}, err
	}
	err = n.ask(unix.RTM_GETROUTE, 0, append(request, value...), func(m *syscall.NetlinkMessage) error {
		values, err := attributes(m)
		if err != nil {
			return err
		}
		if device := values[unix.RTA_OIF]; len(device) == 4 {
			r.device = int32(binary.NativeEndian.Uint32(device))
		}
		// RTA_VIA is a gateway of the other family.
		r.gateway = string(values[unix.RTA_GATEWAY]) + string(values[unix.RTA_VIA])
		r.down = linkFlags != nil && linkFlags[r.device]&unix.IFF_LOWER_UP == 0
		return nil
	})
	var refused refusal
	if errors.As(err, &refused) { // unreachable, prohibited, no such family: in any case no way
		return route{}, nil
	}
	return r, err
}

// netlink is a rtnetlink(7) socket for questions, which the kernel answers before sendto returns.
//
// It is never bound: Android refuses that, and the kernel gives it an address when it first sends.
type netlink struct {
	fd       int
	sequence uint32
	buffer   []byte
}

func openNetlink() (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("netlink socket", err)
	}
	return &netlink{fd: fd, buffer: make([]byte, 64<<10)}, nil // the kernel makes pieces of 32 KiB
}

func (n *netlink) close() { unix.Close(n.fd) }

// refusal is the kernel's answer to a question that it has understood.
type refusal struct{ error }

func (r refusal) Unwrap() error { return r.error }

// ask calls visit for each message of the answer. An error that the kernel answers with is a refusal.
func (n *netlink) ask(kind, flags uint16, body []byte, visit func(*syscall.NetlinkMessage) error) error {
	n.sequence++
	request, err := binary.Append(nil, binary.NativeEndian, unix.NlMsghdr{
		Len: uint32(unix.SizeofNlMsghdr + len(body)), Type: kind, Flags: unix.NLM_F_REQUEST | flags, Seq: n.sequence,
	})
	if err != nil {
		return err
	}
	if err := unix.Sendto(n.fd, append(request, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("netlink sendto", err)
	}
	for {
		size, _, err := unix.Recvfrom(n.fd, n.buffer, 0)
		if err != nil {
			return os.NewSyscallError("netlink recvfrom", err)
		}
		messages, err := syscall.ParseNetlinkMessage(n.buffer[:size])
		if err != nil {
			return os.NewSyscallError("netlink answer", err)
		}
		for _, m := range messages {
			switch {
			case m.Header.Seq != n.sequence: // the rest of an answer that was not read to its end
				continue
			case m.Header.Type == unix.NLMSG_DONE:
				return nil
			case m.Header.Type == unix.NLMSG_ERROR && len(m.Data) >= 4:
				return refusal{syscall.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))}
			}
			if err := visit(&m); err != nil {
				return err
			}
			if m.Header.Flags&unix.NLM_F_MULTI == 0 {
				return nil
			}
		}
	}
}

// attributes are the values of m by their types.
func attributes(m *syscall.NetlinkMessage) (map[uint16][]byte, error) {
	list, err := syscall.ParseNetlinkRouteAttr(m)
	if err != nil {
		return nil, os.NewSyscallError("netlink attributes", err)
	}
	values := make(map[uint16][]byte, len(list))
	for _, a := range list {
		values[a.Attr.Type] = a.Value
	}
	return values, nil
}
