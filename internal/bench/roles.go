package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	raimon "raimon/tunnel"
)

// role does what a process of the bench other than the first one is there for.
func role(name string, args []string) error {
	switch {
	case name == "relay" && len(args) == 2:
		return relay(args[0], args[1])
	case name == "client" && len(args) == 4:
		return freshClient(args[0], args[1], args[2], args[3])
	case name == "target" && len(args) == 2:
		return target(args[0], args[1])
	}
	return fmt.Errorf("unknown role %q %q", name, args)
}

// relay is the plainest tcp relay that Go makes: io.Copy both ways, which the runtime turns into splice(2).
func relay(listen, to string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	return serve(l, func(c *net.TCPConn) {
		next, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer next.Close()
		back := make(chan struct{})
		go func() {
			defer close(back)
			copyOneWay(c, next)
		}()
		copyOneWay(next, c)
		<-back
	})
}

func copyOneWay(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close() // else the other direction would wait for ever
		return
	}
	to.(*net.TCPConn).CloseWrite()
}

// freshClient is raimonc without its session tickets, so that every handshake is a full one.
func freshClient(listen, remote, transport, ca string) error {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	layers := raimon.Transport{&raimon.TLS{ClientConfig: &tls.Config{ServerName: "localhost", RootCAs: roots}}}
	if transport == "wss" {
		layers = append(layers, &raimon.WebSocket{Host: "localhost", Path: "/tunnel"})
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	dialer := &raimon.Dialer{}
	f := &raimon.Forwarder{
		Connect: layers,
		Dial:    func(ctx context.Context, _ *raimon.Info) (raimon.Conn, error) { return dialer.Dial(ctx, remote) },
	}
	return f.Serve(context.Background(), l)
}

// What the target shall do; the first byte of a connection says it.
const (
	echo    = 'e' // send back what arrives
	discard = 'd' // read and forget
	produce = 'p' // send until the connection ends
)

// target serves two addresses: at bulk it does as it is told, at greeter it says a byte and then echoes.
func target(bulk, greeter string) error {
	b, err := net.Listen("tcp", bulk)
	if err != nil {
		return err
	}
	g, err := net.Listen("tcp", greeter)
	if err != nil {
		return err
	}
	go serve(g, func(c *net.TCPConn) {
		c.Write([]byte{'!'})
		echoBack(c)
	})
	return serve(b, func(c *net.TCPConn) {
		what := make([]byte, 1)
		if _, err := io.ReadFull(c, what); err != nil {
			return
		}
		switch what[0] {
		case echo:
			echoBack(c)
		case discard:
			discardAll(c, func(int) {})
		case produce:
			produceAll(c, func(int) {})
		}
	})
}

func serve(l net.Listener, do func(c *net.TCPConn)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			do(c.(*net.TCPConn))
		}()
	}
}

// echoBack has small buffers: thousands of connections may be open.
func echoBack(c *net.TCPConn) {
	b := make([]byte, 4<<10)
	for {
		n, err := c.Read(b)
		if n > 0 {
			if _, err := c.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// chunk is what bulk is written in, scoop the most that is taken at once.
const (
	chunk = 256 << 10
	scoop = 1 << 20
)

// produceAll writes until that fails.
func produceAll(c *net.TCPConn, sent func(int)) error {
	b := make([]byte, chunk)
	for {
		n, err := c.Write(b)
		sent(n)
		if err != nil {
			return err
		}
	}
}

// discardAll reads until that fails or all has come. The kernel drops the data without copying it
// (MSG_TRUNC, see tcp(7)): the load shall leave the processor to what is measured.
func discardAll(c *net.TCPConn, received func(int)) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	room := make([]byte, scoop) // never touched
	for {
		var n int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, _, failed = unix.Recvfrom(int(fd), room, unix.MSG_TRUNC)
			return failed != unix.EAGAIN
		})
		if err := errors.Join(err, failed); err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		received(n)
	}
}
