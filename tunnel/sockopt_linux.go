package tunnel

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// acceptFastOpen is best effort: what a kernel refuses is an ordinary handshake.
// It also takes bit 2 of the sysctl net.ipv4.tcp_fastopen.
func acceptFastOpen(fd uintptr, queue int) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN, queue)
}

// connectFastOpen is best effort: what a kernel refuses is an ordinary handshake.
func connectFastOpen(fd uintptr) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)
}

// acceptKeepAlive leaves keep-alive as the listener has it: accepted connections inherit that (tcp(7)),
// which saves four calls for each.
const acceptKeepAlive = -1

// keepAlive sets what package net would set on each connection.
func keepAlive(fd uintptr) error {
	for _, o := range []struct{ level, option, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
	} {
		if err := unix.SetsockoptInt(int(fd), o.level, o.option, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

func setFwmark(fd uintptr, mark uint32) error {
	if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return fmt.Errorf("fwmark %d: %w", mark, os.NewSyscallError("setsockopt", err))
	}
	return nil
}

// protectTimeout is how long an Android VPN may take to protect one socket.
const protectTimeout = 3 * time.Second

// protect asks the VPN that listens at path to keep the socket fd out of itself, as shadowsocks-libev and
// v2ray-plugin do: the descriptor goes over with one byte, one byte comes back, zero for success.
func protect(ctx context.Context, fd uintptr, path string) error {
	ctx, cancel := context.WithTimeout(ctx, protectTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("protect: %w", err)
	}
	defer c.Close()
	var answer [1]byte
	err = interruptible(ctx, c, func() error {
		if _, _, err := c.(*net.UnixConn).WriteMsgUnix([]byte{'!'}, unix.UnixRights(int(fd)), nil); err != nil {
			return err
		}
		_, err := io.ReadFull(c, answer[:])
		return err
	})
	if err != nil {
		return fmt.Errorf("protect %s: %w", path, err)
	}
	if answer[0] != 0 {
		return fmt.Errorf("protect %s: refused with %d", path, answer[0])
	}
	return nil
}
