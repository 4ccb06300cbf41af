//go:build unix

package tunnel

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Urgent data is carried like all other, in its place, and what stands behind it too: whichever end it comes from, whoever has opened the
// listener, bare and in frames.
func TestUrgentData(t *testing.T) {
	for _, upwards := range []bool{true, false} {
		for _, had := range []bool{true, false} {
			for _, framed := range []bool{true, false} {
				t.Run(fmt.Sprintf("up=%v had=%v framed=%v", upwards, had, framed), func(t *testing.T) {
					carryUrgent(t, upwards, had, framed)
				})
			}
		}
	}
}

func carryUrgent(t *testing.T, upwards, had, framed bool) {
	var c ListenConfig
	if had {
		c.Have = func(address string) net.Listener {
			var lc net.ListenConfig
			lc.SetMultipathTCP(false) // which knows no such option
			l, err := lc.Listen(t.Context(), "tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
	}
	l := listenOn(t, c, "127.0.0.1:0")[0]
	far, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	program, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	dialed, err := new(Dialer).Dial(t.Context(), far.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	target, err := far.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()

	over := make(chan error, 2)
	relay := func(a, b Conn) {
		_, _, err := Relay(t.Context(), a, b, time.Minute)
		a.Close()
		b.Close()
		over <- err
	}
	relays := 1
	if framed {
		relays = 2
		w := &WebSocket{Host: "localhost", Path: "/"}
		x, y := socketPair(t)
		go relay(accepted.(Conn), newFrames(x, true, w, peerRaimon, nil))
		go relay(newFrames(y, false, w, peerRaimon, nil), dialed)
	} else {
		go relay(accepted.(Conn), dialed)
	}

	from, to := program.(*net.TCPConn), target.(*net.TCPConn)
	if !upwards {
		from, to = to, from
	}
	to.CloseWrite()
	part := bytes.Repeat([]byte("."), 1<<20)
	go func() {
		defer from.CloseWrite()
		for range 5 {
			from.Write(part)
			sendUrgent(t, from, '!')
		}
		from.Write(part)
	}()
	want := append(bytes.Repeat(append(bytes.Clone(part), '!'), 5), part...)
	to.SetDeadline(time.Now().Add(time.Minute))
	got, err := io.ReadAll(to)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("received %d bytes, %d of them urgent, want %d and 5; %v", len(got), bytes.Count(got, []byte("!")), len(want), err)
	}
	for range relays {
		if err := <-over; err != nil {
			t.Error(err)
		}
	}
}

func sendUrgent(t testing.TB, c *net.TCPConn, b byte) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Error(err)
		return
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Send(int(fd), []byte{b}, unix.MSG_OOB)
		return sendErr != unix.EAGAIN
	})
	if err != nil || sendErr != nil {
		t.Errorf("urgent byte: %v, %v", err, sendErr)
	}
}
